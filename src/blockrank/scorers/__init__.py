"""Scorers: from a packed layout and a model to one score a document."""

from __future__ import annotations

from blockrank.scorers.attention import AttentionScorer
from blockrank.scorers.base import Scored, Scorer
from blockrank.scorers.decode import DecodeScorer

__all__ = ["AttentionScorer", "DecodeScorer", "Scored", "Scorer"]
