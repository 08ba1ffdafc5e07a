"""Decoding: the model writes the ids of the documents (method, section 2, *Inference*)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blockrank.decode import DEFAULT_BEAMS, Form, check_search, check_spec, decode_layout
from blockrank.layout import PackedLayout
from blockrank.model import Needs, RankModel
from blockrank.scorers.base import LayoutScorer, Scored
from blockrank.scorers.prompts import Prompts, PromptWriter
from blockrank.spec import RankSpec
from blockrank.types import InputError, RankRequest


@dataclass(frozen=True)
class DecodeScorer(LayoutScorer):
    """The order in which document ids are decoded; what is not generated follows in the order of the request.

    beams, form, top: see `blockrank.decode.decode`. A score is minus the rank: decoding gives an order, and no number
    for what was not generated. Log-probabilities of what was generated are in what `decode` returns.
    """

    name = "decode"
    kind = "order"
    beams: int = DEFAULT_BEAMS
    form: Form = "first"
    top: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_search(self.beams, self.form, self.top)

    def needs(self, spec: RankSpec) -> Needs:
        """See `Scorer.needs`."""
        del spec
        return Needs(generation=True)

    def prompts(self, request: RankRequest, writer: PromptWriter) -> Prompts:
        """See `Scorer.prompts`."""
        check_spec(writer.spec)
        return super().prompts(request, writer)

    def check_evidence(self, spec: RankSpec) -> None:
        """See `Scorer.check_evidence`."""
        del spec
        raise InputError("a decoded ranking has no evidence: no attention is read.")

    def read(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
        """Scores (C,): -1 for the best document of a request, -2 for the next."""
        if evidence:
            self.check_evidence(model.spec)
        parts = []
        for decoded in decode_layout(model, layout, beams=self.beams, form=self.form, top=self.top):
            scores_C = torch.empty(decoded.candidates)
            scores_C[list(decoded.order)] = -torch.arange(1.0, decoded.candidates + 1)
            parts.append(scores_C)
        return Scored(torch.cat(parts))
