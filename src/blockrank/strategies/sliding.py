"""A window that slides up the candidates, as in RankGPT (arXiv:2304.09542)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from blockrank.errors import InputError
from blockrank.strategies.base import Ask, Steps, Strategy, merged, part, placed
from blockrank.types import RankedDocument, Ranking, RankRequest

Entries = dict[int, RankedDocument]


def check_windows(size: int, step: int) -> None:
    """Raise `InputError` where windows would compare nothing, or leave candidates out."""
    if size < 2:
        raise InputError(f"size must be at least 2, not {size}: a document alone is compared with nothing.")
    if not 0 < step <= size:
        raise InputError(f"step must lie between 1 and size {size}, not {step}.")


def windows(count: int, size: int, step: int) -> list[tuple[int, int]]:
    """Start and end of each window over so many candidates: the last first, and at the end always the head."""
    found, end = list[tuple[int, int]](), count
    while end > size:
        found.append((end - size, end))
        end -= step
    return [*found, (0, end)]


def slide(
    request: RankRequest, order: list[int], size: int, step: int
) -> Generator[Ask, list[Ranking], tuple[list[int], Entries]]:
    """Slide over candidates once: their indices in the new order, and the latest entry of each."""
    order, entries = list(order), Entries()
    for start, end in windows(len(order), size, step):
        window = order[start:end]
        [ranking] = yield Ask([part(request, window)])
        found = dict(placed(request, window, ranking))
        order[start:end] = list(found)
        entries |= found
    return order, entries


@dataclass
class Sliding(Strategy):
    """Ranks `size` candidates at once, from the last to the first, `step` further up each time.

    The best `size` - `step` of a window are in the next one too, so that so many can rise from anywhere to the top.
    Other than in the code of RankGPT, the head of the list is ranked whatever the number of candidates. passes: how
    often the window slides over all of them.
    """

    name = "sliding"
    size: int = 20
    step: int = 10
    passes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_windows(self.size, self.step)
        if self.passes < 1:
            raise InputError(f"passes must be positive, not {self.passes}.")

    def calls(self, count: int) -> int:
        """Requests that one of so many readable documents takes: passes · (1 + ⌈max(0, count - size) / step⌉)."""
        return self.passes * len(windows(count, self.size, self.step))

    def steps(self, request: RankRequest) -> Steps:
        """See `Strategy.steps`."""
        order = list(request.readable)
        for _ in range(self.passes):
            order, entries = yield from slide(request, order, self.size, self.step)
        return merged(request, [(index, entries[index]) for index in order])
