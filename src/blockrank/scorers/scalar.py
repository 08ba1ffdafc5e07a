"""Checkpoints for sequence classification with one output, such as RankLLaMA: a number for each document alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from blockrank.engine import Capture, Wanted
from blockrank.layout import PackedLayout
from blockrank.model import Needs, RankModel
from blockrank.scorers.base import Scored
from blockrank.scorers.pointwise import AloneScorer, last_tokens
from blockrank.spec import RankSpec, Template


@dataclass(frozen=True)
class ScalarScorer(AloneScorer):
    """What a head with one output makes of the last hidden state behind query and document.

    A checkpoint without words of its own (see `AloneScorer`) is asked as RankLLaMA was trained. start, end: what stands
    before query and document, and what behind the document. RankLLaMA's released checkpoints end without a token for
    that; where one was trained with it, it must stand there, because it is what the head reads.
    """

    name = "scalar"
    kind = "logit"
    start: str = "<s>"
    end: str = ""

    def template(self, spec: RankSpec) -> Template:
        """See `AloneScorer.template`."""
        if (own := self.own_prompt(spec)) is not None:
            return own
        # In pieces, as the query and the document were tokenised apart.
        return Template((self.start, "query: {query}"), (self.start, "document: {text}", self.end), ())

    def needs(self, spec: RankSpec) -> Needs:
        """See `Scorer.needs`."""
        del spec
        return Needs(score=True)

    def read(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
        """Scores (C,), any numbers."""
        if evidence:
            self.check_evidence(model.spec)
        return Scored(self.logits(model, model.forward(layout, self.wanted(model, layout))))

    def wanted(self, model: RankModel, layout: PackedLayout) -> Wanted:
        """See `Scorer.wanted`."""
        del model
        return Wanted(hidden_R=last_tokens(layout))

    def logits(self, model: RankModel, capture: Capture) -> Tensor:
        """See `Scorer.logits`."""
        assert capture.hidden_RD is not None, "hidden states were asked for"
        head = model.module.score
        bias = None if head.bias is None else head.bias.float()
        return F.linear(capture.hidden_RD.float(), head.weight.float(), bias)[:, 0]
