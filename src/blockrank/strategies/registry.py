"""Strategies by name; `STRATEGIES.add` enters one's own."""

from __future__ import annotations

import re
from typing import TypeVar

from blockrank.errors import InputError
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
from blockrank.types import RequestRanker

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

Asked = TypeVar("Asked", bound=RequestRanker)
FULL = "full"  # no strategy: all candidates at once
_NEXT = re.compile(r"\s*\+\s*(?=[A-Za-z][\w.-]*\s*(?:[:+]|$))")  # a plus before a name; others belong to a value


def strategy_texts(text: str | None) -> list[str]:
    """The strategies that a text names one inside the other, the innermost first; none for "full" and None.

    Raises `InputError` where "full" stands beside others.
    """
    texts = [] if text is None else _NEXT.split(text.strip())
    if FULL in texts and len(texts) > 1:
        raise InputError(f"{FULL!r} means no strategy: it stands alone, not in {text!r}.")
    return [item for item in texts if item != FULL]


def in_strategies(ranker: Asked, text: str | None) -> Asked | Strategy:
    """A ranker asked by the strategies of a text, as in "sliding:size=20+cascade:keep=50".

    The first asks the ranker, and each of the others the one before it: here a cascade chooses fifty candidates, which
    are then ranked in windows. "full" and None give the ranker itself. Raises `InputError` on a strategy or a setting
    that there is not.
    """
    made: Asked | Strategy = ranker
    for item in strategy_texts(text):
        made = STRATEGIES.make(item, made)
    return made
