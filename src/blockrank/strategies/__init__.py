"""How many candidates a ranker sees at once, and how partial results become one ranking."""

from __future__ import annotations

from blockrank.strategies.base import Ask, Steps, Strategy, merged, part, placed, randomness
from blockrank.strategies.registry import STRATEGIES

__all__ = ["STRATEGIES", "Ask", "Steps", "Strategy", "merged", "part", "placed", "randomness"]
