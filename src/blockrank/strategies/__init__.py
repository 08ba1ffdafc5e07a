"""How many candidates a ranker sees at once, and how partial results become one ranking."""

from __future__ import annotations

from blockrank.strategies.base import Ask, Steps, Strategy, merged, part, placed, randomness
from blockrank.strategies.registry import FULL, STRATEGIES, in_strategies

__all__ = ["FULL", "STRATEGIES", "Ask", "Steps", "Strategy", "in_strategies", "merged", "part", "placed", "randomness"]
