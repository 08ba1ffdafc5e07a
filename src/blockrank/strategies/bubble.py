"""Bubble sort by choosing the best of several candidates, as in Setwise (arXiv:2310.09497)."""

from __future__ import annotations

from dataclasses import dataclass

from blockrank.strategies.base import Ask, Steps, Strategy, merged, part, placed
from blockrank.strategies.heap import check_choice
from blockrank.strategies.sliding import windows
from blockrank.types import RankedDocument, RankRequest


@dataclass
class Bubble(Strategy):
    """Finds the best `top` candidates one after the other: the best of each window is the last of the next one.

    Windows go from the last candidates to the first. Of each call only the first of the ranking counts: it changes
    places with the first of its window. A window that holds what it held before is not asked about again. What is not
    among the best keeps the order that it came in. size: candidates of a call.
    """

    name = "bubble"
    size: int = 20
    top: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.size, self.top)

    def calls(self, count: int) -> int:
        """The most requests that one of so many readable documents takes: 1 + ⌈max(0, left - size) / (size - 1)⌉ for
        each of the best, of those that are left then."""
        passes = range(count, max(1, count - self.top), -1)
        return max(1, sum(len(windows(left, self.size, self.size - 1)) for left in passes))

    def steps(self, request: RankRequest) -> Steps:
        """See `Strategy.steps`."""
        order, entries = list(request.readable), dict[int, RankedDocument]()
        settled = set[tuple[int, ...]]()  # windows that begin with their best
        best = min(self.top, len(order))
        for place in range(best):
            for start, end in windows(len(order) - place, self.size, self.size - 1):
                window = order[place + start : place + end]
                if tuple(window) in settled or (len(window) == 1 and window[0] in entries):
                    continue
                [ranking] = yield Ask([part(request, window)])
                found = placed(request, window, ranking)
                entries |= found
                winner = window.index(found[0][0])
                window[0], window[winner] = window[winner], window[0]
                settled.add(tuple(window))
                order[place + start : place + end] = window
        order[best:] = sorted(order[best:])
        return merged(request, [(index, entries[index]) for index in order])
