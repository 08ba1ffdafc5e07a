"""Scorers: from a packed layout and a model to one score a document."""

from __future__ import annotations

from blockrank.scorers.attention import AttentionScorer
from blockrank.scorers.base import Scored, Scorer

__all__ = ["AttentionScorer", "Scored", "Scorer"]
