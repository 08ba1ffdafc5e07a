"""Candidates compared with a pivot from the first window, top-down partitioning (arXiv:2405.14589)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from blockrank.errors import InputError
from blockrank.strategies.base import Ask, Steps, Strategy, merged, part, placed
from blockrank.types import RankedDocument, RankRequest


@dataclass
class TopDown(Strategy):
    """Ranks the first `size` candidates, and all others in groups beside a pivot from them, at once.

    pivot: its rank among the first. What is before it, there or in its own group, is ranked anew in the same way,
    until it fits into one call or nothing better was found; what is behind it follows it in the order of the groups.
    The paper stops early once it holds as many candidates as a budget allows; here all groups are compared.
    """

    name = "topdown"
    size: int = 20
    pivot: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 2:
            raise InputError(f"size must be at least 2, not {self.size}: a document alone is compared with nothing.")
        if not 0 < self.pivot <= self.size:
            raise InputError(f"pivot must lie between 1 and size {self.size}, not {self.pivot}.")

    def calls(self, count: int) -> int:
        """The most requests that one of so many readable documents takes: 1 + ⌈(left - size) / (size - 1)⌉ summed over
        left = count, count - (size - pivot + 1) ... above size, and 1 at the end. For in each round the pivot and what
        was behind it among the first drop out at least. Where nothing is before the pivot it is the first term alone.
        """
        rounds = range(count, self.size, -(self.size - self.pivot + 1))
        return sum(1 + ceil((left - self.size) / (self.size - 1)) for left in rounds) + 1

    def steps(self, request: RankRequest) -> Steps:
        """See `Strategy.steps`."""
        kept, behind = list(request.readable), list[int]()
        entries = dict[int, RankedDocument]()
        while True:
            first, others = kept[: self.size], kept[self.size :]
            [ranking] = yield Ask([part(request, first)])
            entries |= (found := dict(placed(request, first, ranking)))
            first = list(found)
            if not others:
                return merged(request, [(index, entries[index]) for index in (*first, *behind)])
            kept, pivot, worse = first[: self.pivot - 1], first[self.pivot - 1], first[self.pivot :]
            groups = [[pivot, *others[start : start + self.size - 1]] for start in range(0, len(others), self.size - 1)]
            rankings = yield Ask([part(request, group) for group in groups])
            better = list[int]()
            for group, ranking in zip(groups, rankings, strict=True):
                entries |= (found := dict(placed(request, group, ranking)))
                order = list(found)
                better += order[: (at := order.index(pivot))]
                worse += order[at + 1 :]
            behind = [pivot, *worse, *behind]
            if not better:
                return merged(request, [(index, entries[index]) for index in (*kept, *behind)])
            kept += better
