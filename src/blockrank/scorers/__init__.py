"""Scorers: from a request to prompts, and from those and a model to one score per document."""

from __future__ import annotations

from blockrank.scorers.attention import AttentionScorer
from blockrank.scorers.base import LayoutScorer, Scored, Scorer
from blockrank.scorers.decode import DecodeScorer
from blockrank.scorers.embedding import EmbeddingScorer
from blockrank.scorers.first_token import FirstTokenScorer
from blockrank.scorers.generation import GenerationScorer
from blockrank.scorers.groupwise import GroupwiseScorer
from blockrank.scorers.icr import IcrScorer
from blockrank.scorers.listwise import ListwiseScorer
from blockrank.scorers.multi_view import MultiViewScorer
from blockrank.scorers.pointwise import PointwiseScorer
from blockrank.scorers.prompts import Prompts, PromptWriter
from blockrank.scorers.reasoned import ReasonedChoiceScorer
from blockrank.scorers.registry import SCORERS, resolve_scorer
from blockrank.scorers.scalar import ScalarScorer
from blockrank.scorers.setwise import SetwiseScorer

__all__ = [
    "SCORERS",
    "AttentionScorer",
    "DecodeScorer",
    "EmbeddingScorer",
    "FirstTokenScorer",
    "GenerationScorer",
    "GroupwiseScorer",
    "IcrScorer",
    "LayoutScorer",
    "ListwiseScorer",
    "MultiViewScorer",
    "PointwiseScorer",
    "PromptWriter",
    "Prompts",
    "ReasonedChoiceScorer",
    "ScalarScorer",
    "Scored",
    "Scorer",
    "SetwiseScorer",
    "resolve_scorer",
]
