"""Whether a ranker will take a request, known without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from blockrank.layout import PromptTokenizer
from blockrank.model import load_tokenizer
from blockrank.scorers.base import Scorer
from blockrank.scorers.prompts import PromptWriter
from blockrank.scorers.registry import resolve_scorer
from blockrank.spec import RankSpec
from blockrank.types import RankRequest


@dataclass(frozen=True, slots=True)
class RequestCheck:
    """Refuses what a ranker with this tokenizer, spec and scorer refuses, so that it is told before anything is ranked.

    spec: as the scorer has adapted it.
    """

    tokenizer: PromptTokenizer
    spec: RankSpec
    scorer: Scorer

    @classmethod
    def load(
        cls,
        name_or_path: str | Path | None,
        changes: Mapping[str, object] | None = None,
        scorer: str | Scorer | None = None,
        spec: RankSpec | str | None = None,
    ) -> RequestCheck:
        """The check of a checkpoint whose spec differs in the given fields. Raises as `load_tokenizer` does."""
        made, found = resolve_scorer(name_or_path, scorer, spec)
        found = found.changed(**(changes or {}))
        return cls(load_tokenizer(name_or_path)[0], made.adapted(found), made)

    def check_evidence(self) -> None:
        """Raise `InputError` where the scorer gives no evidence."""
        self.scorer.check_evidence(self.spec)

    def __call__(self, request: RankRequest) -> None:
        """Raise `InputError` on a query over the limit, and on a query or a document that cannot be tokenised."""
        request = replace(request, evidence=False)
        writer = PromptWriter(self.tokenizer, self.spec)
        self.scorer.prompts(request, writer)
