"""Setwise: the best of some passages, by its label (arXiv 2310.09497)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from blockrank.layout import PromptTokenizer
from blockrank.scorers.labels import LabelScorer
from blockrank.scorers.prompts import under_prompt
from blockrank.spec import RankSpec, Template


@dataclass(frozen=True)
class SetwiseScorer(LabelScorer):
    """Asks which passage answers the query best, and reads how likely each label is.

    One call orders all that it is given, so that it runs under a heap, which takes the first alone, and under windows.
    answer: "logits" reads the label's probability behind the prompt, in one forward.
    """

    name = "setwise"
    lead: ClassVar[str] = " "
    answer: Literal["logits"] = "logits"

    def adapted(self, spec: RankSpec) -> RankSpec:
        """See `Scorer.adapted`."""
        return under_prompt(spec, "setwise")

    def template(self, tokenizer: PromptTokenizer, spec: RankSpec) -> str | Template:
        """See `LabelScorer.template`."""
        del tokenizer
        return spec.template
