"""Scorers: from a request to prompts, and from those and a model to one score per document."""

from __future__ import annotations

from blockrank.scorers.attention import AttentionScorer
from blockrank.scorers.base import LayoutScorer, Scored, Scorer
from blockrank.scorers.decode import DecodeScorer
from blockrank.scorers.generation import GenerationScorer
from blockrank.scorers.groupwise import GroupwiseScorer
from blockrank.scorers.prompts import Prompts, PromptWriter
from blockrank.scorers.reasoned import ReasonedChoiceScorer
from blockrank.scorers.registry import SCORERS, resolve_scorer

__all__ = [
    "SCORERS",
    "AttentionScorer",
    "DecodeScorer",
    "GenerationScorer",
    "GroupwiseScorer",
    "LayoutScorer",
    "PromptWriter",
    "Prompts",
    "ReasonedChoiceScorer",
    "Scored",
    "Scorer",
    "resolve_scorer",
]
