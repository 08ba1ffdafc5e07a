"""BlockRank: the attention of the signal tokens at one layer is the ranking (method, section 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blockrank.engine.capture import Capture
from blockrank.layout import PackedLayout
from blockrank.model import RankModel
from blockrank.readout.exits import with_exits
from blockrank.readout.signals import log_scores, token_shares
from blockrank.scorers.base import LayoutScorer, Scored
from blockrank.scorers.prompts import Prompts, PromptWriter
from blockrank.spec import RankSpec
from blockrank.types import InputError, RankRequest


@dataclass(frozen=True)
class AttentionScorer(LayoutScorer):
    """Share of the signal tokens' attention that each document gets, as the model's `RankSpec` says to read it."""

    name = "attention"
    kind = "share"
    reuses_keys = True

    def prompts(self, request: RankRequest, writer: PromptWriter) -> Prompts:
        """See `Scorer.prompts`."""
        if not (writer.spec.prompt.query or writer.spec.prompt.answer):
            raise InputError("the template's query is empty: there are no signal tokens whose attention could be read.")
        return super().prompts(request, writer)

    def check_evidence(self, spec: RankSpec) -> None:
        """See `Scorer.check_evidence`."""
        spec.check_none_leaves("evidence needs every document at the scoring layer")

    def read(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
        """Scores (C,) that sum to one over a request's documents (unless the spec's softmax is over all keys)."""
        if evidence:
            self.check_evidence(model.spec)
        capture = model.read(layout)
        layer = capture.only
        read = (layer.q_GNH, layer.k_PKH, capture.layout, model.spec, layer.scale)
        logs_C = log_scores(*read)
        if capture.exits:
            logs_C = _all_documents(logs_C, capture, layout)
        return Scored(logs_C.exp(), token_shares(*read) if evidence else None)


def _all_documents(logs_C: torch.Tensor, capture: Capture, layout: PackedLayout) -> torch.Tensor:
    """Log scores of all documents of a layout from those that stayed to the end, on the host."""
    assert capture.alive_C is not None, "documents left"
    found = with_exits(logs_C.cpu().numpy(), capture.alive_C, capture.exits, layout.document_request_C)
    return torch.from_numpy(found)
