"""Decoding: the model writes the ids of the documents (method, section 2, *Inference*)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from blockrank.decode import DEFAULT_BEAMS, Form, decode_layout
from blockrank.layout import PackedLayout
from blockrank.model import RankModel
from blockrank.scorers.base import Scored
from blockrank.types import InputError


@dataclass(frozen=True)
class DecodeScorer:
    """The order in which document ids are decoded; what is not generated follows in the order of the request.

    beams, form: see `blockrank.decode.decode`. A score is minus the rank: decoding gives an order, and no number for
    what was not generated. Log-probabilities of what was generated are in what `decode` returns.
    """

    name: ClassVar[str] = "decode"
    needs_head: ClassVar[bool] = True
    beams: int = DEFAULT_BEAMS
    form: Form = "first"

    def score(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
        """Scores (C,): -1 for the best document of a request, -2 for the next."""
        if evidence:
            raise InputError("a decoded ranking has no evidence: no attention is read.")
        parts = []
        for decoded in decode_layout(model, layout, beams=self.beams, form=self.form):
            scores_C = torch.empty(decoded.candidates)
            scores_C[list(decoded.order)] = -torch.arange(1.0, decoded.candidates + 1)
            parts.append(scores_C)
        return Scored(torch.cat(parts))
