"""BlockRank: the attention of the signal tokens at one layer is the ranking (method, section 2)."""

from __future__ import annotations

from typing import ClassVar

from blockrank.layout import PackedLayout
from blockrank.model import RankModel
from blockrank.scorers.base import Scored
from blockrank.signals import log_scores, token_shares


class AttentionScorer:
    """Share of the signal tokens' attention that each document gets, as the model's `RankSpec` says to read it."""

    name: ClassVar[str] = "attention"
    needs_head: ClassVar[bool] = False

    def score(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
        """Scores (C,) that sum to one over a request's documents (unless the spec's softmax is over all keys)."""
        capture = model.read(layout)
        read = (capture.q_GNH, capture.k_PKH, layout, model.spec, capture.scale)
        return Scored(log_scores(*read).exp(), token_shares(*read) if evidence else None)
