"""Scorers: from a request to prompts, and from those and a model to one score per document."""

from __future__ import annotations

from blockrank.scorers.attention import AttentionScorer
from blockrank.scorers.base import LayoutScorer, Scored, Scorer
from blockrank.scorers.decode import DecodeScorer
from blockrank.scorers.icr import IcrScorer
from blockrank.scorers.prompts import Prompts, PromptWriter
from blockrank.scorers.registry import SCORERS, resolve_scorer

__all__ = [
    "SCORERS",
    "AttentionScorer",
    "DecodeScorer",
    "IcrScorer",
    "LayoutScorer",
    "PromptWriter",
    "Prompts",
    "Scored",
    "Scorer",
    "resolve_scorer",
]
