"""The order of all documents, written by the model: RankGPT's prompt in one turn (arXiv 2312.02724, 2412.14574)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blockrank.decode import Form
from blockrank.scorers.decode import DecodeScorer
from blockrank.scorers.prompts import under_prompt
from blockrank.spec import RankSpec


@dataclass(frozen=True)
class ListwiseScorer(DecodeScorer):
    """The order that a model writes when it is asked for all ids, best first: greedily, each id once.

    What is written is constrained to be such an order, so that nothing has to be repaired afterwards. top: how many
    ids are written; the other documents follow in the order of the request. beams, form: see `DecodeScorer`. prompt:
    "checkpoint" asks in the words of the checkpoint's own spec instead of those for any model.
    """

    name = "listwise"
    zero_shot = True
    beams: int = 1
    form: Form = "full"
    prompt: Literal["listwise", "checkpoint"] = "listwise"

    def adapted(self, spec: RankSpec) -> RankSpec:
        """See `Scorer.adapted`."""
        return spec if self.prompt == "checkpoint" else under_prompt(spec, "listwise")
