"""Strategies by name; `STRATEGIES.add` enters one's own."""

from __future__ import annotations

from blockrank.registry import Registry
from blockrank.strategies.adaptive import Adaptive
from blockrank.strategies.base import Strategy
from blockrank.strategies.blocks import Blocks
from blockrank.strategies.bubble import Bubble
from blockrank.strategies.cascade import Cascade
from blockrank.strategies.fusion import Fusion
from blockrank.strategies.heap import Heap
from blockrank.strategies.multipass import Multipass
from blockrank.strategies.partition import Partition
from blockrank.strategies.sliding import Sliding
from blockrank.strategies.topdown import TopDown

STRATEGIES: Registry[Strategy] = Registry(
    "strategy",
    Strategy,  # type: ignore[type-abstract]
    group="blockrank.strategies",
    passed=("ranker",),
)

STRATEGIES.add(Blocks)
STRATEGIES.add(Bubble)
STRATEGIES.add(Heap)
STRATEGIES.add(Multipass)
STRATEGIES.add(Partition)
STRATEGIES.add(Sliding)
STRATEGIES.add(TopDown)
STRATEGIES.add(Cascade)
STRATEGIES.add(Fusion)
STRATEGIES.add(Adaptive)
