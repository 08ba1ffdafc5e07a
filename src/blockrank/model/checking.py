"""Whether a ranker will take a request, known without its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from blockrank.layout import PromptTokenizer
from blockrank.model.loading import load_tokenizer, resolve_spec
from blockrank.spec import RankSpec
from blockrank.types import RankRequest


@dataclass(frozen=True, slots=True)
class RequestCheck:
    """Refuses what a ranker with this tokenizer and spec refuses, so that it is told before anything is ranked."""

    tokenizer: PromptTokenizer
    spec: RankSpec

    @classmethod
    def load(cls, name_or_path: str | Path | None, **changes: object) -> RequestCheck:
        """The check of a checkpoint whose spec differs in the given fields. Raises as `load_tokenizer` does."""
        spec = resolve_spec(name_or_path, None).changed(**changes)
        return cls(load_tokenizer(name_or_path)[0], spec)

    def __call__(self, request: RankRequest) -> None:
        """Raise `InputError` on a query over the limit, and on a query or a document that cannot be tokenised."""
        self.tokenizer.tokenise_request(replace(request, evidence=False), self.spec)
