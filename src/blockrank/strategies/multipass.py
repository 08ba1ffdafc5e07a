"""Passes of a sliding window, each of which settles the next places: the labels of FullRank (arXiv:2412.14574)."""

from __future__ import annotations

from dataclasses import dataclass

from blockrank.errors import InputError
from blockrank.strategies.base import Steps, Strategy, merged
from blockrank.strategies.sliding import Entries, check_windows, slide, windows
from blockrank.types import RankRequest


@dataclass
class Multipass(Strategy):
    """Slides a window, settles the best `freeze` candidates, and goes on with the rest until it fits into a window.

    So every place of the ranking is found as the first ones are, at the price of many calls: for teachers.
    """

    name = "multipass"
    size: int = 20
    step: int = 10
    freeze: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_windows(self.size, self.step)
        if not 0 < self.freeze <= (most := self.size - self.step):
            raise InputError(
                f"freeze must lie between 1 and size - step, {most}, not {self.freeze}: no more rise through windows."
            )

    def calls(self, count: int) -> int:
        """Requests that one of so many readable documents takes: those of a `Sliding` of one pass, summed over count,
        count - freeze, count - 2 · freeze ... down to the first that is not above size."""
        passes = range(count, self.size, -self.freeze)
        return sum(len(windows(left, self.size, self.step)) for left in passes) + 1

    def steps(self, request: RankRequest) -> Steps:
        """See `Strategy.steps`."""
        settled, rest, entries = list[int](), list(request.readable), Entries()
        while True:
            order, found = yield from slide(request, rest, self.size, self.step)
            entries |= found
            if len(rest) <= self.size:
                return merged(request, [(index, entries[index]) for index in (*settled, *order)])
            settled, rest = settled + order[: self.freeze], order[self.freeze :]
