"""FIRST: the first token of a listwise answer is the ranking (arXiv 2406.15657)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blockrank.layout import PromptTokenizer
from blockrank.scorers.labels import LabelScorer, label_tokens
from blockrank.scorers.prompts import under_prompt
from blockrank.spec import TEMPLATES, RankSpec, Template
from blockrank.types import InputError

_PROMPTS = {"letters": "listwise-letters", "numbers": "listwise"}


@dataclass(frozen=True)
class FirstTokenScorer(LabelScorer):
    """Asks for the order of all documents, and reads how likely each id is to be written first.

    ids: "letters" or "numbers" as ids; "auto" takes numbers where the tokenizer has a token of its own for more of
    them than there are letters. prompt: "checkpoint" reads the prompt of the checkpoint's own spec instead of the one
    for any model, with the ids and the attention that it has there.
    """

    name = "first_token"
    ids: Literal["auto", "letters", "numbers"] = "auto"
    prompt: Literal["listwise", "checkpoint"] = "listwise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt == "checkpoint" and self.ids != "auto":
            raise InputError(f"ids are those of the checkpoint's own prompt, not {self.ids!r}.")

    def adapted(self, spec: RankSpec) -> RankSpec:
        """See `Scorer.adapted`."""
        if self.prompt == "checkpoint":
            return spec
        return under_prompt(spec, *(_PROMPTS.values() if self.ids == "auto" else [_PROMPTS[self.ids]]))

    def template(self, tokenizer: PromptTokenizer, spec: RankSpec) -> str | Template:
        """See `LabelScorer.template`."""
        if self.prompt == "checkpoint":
            return spec.template
        return _PROMPTS[self._more(tokenizer) if self.ids == "auto" else self.ids]

    def _more(self, tokenizer: PromptTokenizer) -> str:
        """Of which ids there are more."""
        letters, numbers = (TEMPLATES[_PROMPTS[ids]] for ids in ("letters", "numbers"))
        reach = len(label_tokens(tokenizer, letters, self.lead, 26))
        return "numbers" if len(label_tokens(tokenizer, numbers, self.lead, reach + 1)) > reach else "letters"
