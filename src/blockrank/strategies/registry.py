"""Strategies by name; `STRATEGIES.add` enters one's own."""

from __future__ import annotations

from blockrank.registry import Registry
from blockrank.strategies.adaptive import Adaptive
from blockrank.strategies.base import Strategy
from blockrank.strategies.cascade import Cascade
from blockrank.strategies.fusion import Fusion

STRATEGIES: Registry[Strategy] = Registry(
    "strategy",
    Strategy,  # type: ignore[type-abstract]
    group="blockrank.strategies",
    passed=("ranker",),
)

STRATEGIES.add(Cascade)
STRATEGIES.add(Fusion)
STRATEGIES.add(Adaptive)
