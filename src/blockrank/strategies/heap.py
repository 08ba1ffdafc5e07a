"""Heap sort by choosing the best of several candidates, as in Setwise (arXiv:2310.09497)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from blockrank.errors import InputError
from blockrank.strategies.base import Ask, Steps, Strategy, merged, part, placed
from blockrank.types import RankedDocument, Ranking, RankRequest


def check_choice(size: int, top: int) -> None:
    """Raise `InputError` where there is nothing to choose from, or nothing to be found."""
    if size < 2:
        raise InputError(f"size must be at least 2, not {size}: there is nothing to choose from.")
    if top < 1:
        raise InputError(f"top must be positive, not {top}.")


@dataclass
class Heap(Strategy):
    """Finds the best `top` candidates by heap sort, in which each call chooses the best of a parent and its children.

    Of each call only the first of the ranking counts: it takes the place of the parent. Parents that do not depend on
    each other are asked about together while the heap is made. What is not among the best keeps the order that it came
    in. size: candidates of a call, the parent one of them.
    """

    name = "heap"
    size: int = 20
    top: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.size, self.top)

    def calls(self, count: int) -> int:
        """The most requests that one of so many readable documents takes: for each parent of the heap, and for the
        root once more before each of the best but the first, one a level that a document can sink from there."""
        made = sum(self._levels(node, count) for node in range(count))
        taken = sum(self._levels(0, count - gone) for gone in range(1, min(self.top, count)))
        return max(1, made + taken)

    def steps(self, request: RankRequest) -> Steps:
        """See `Strategy.steps`."""
        heap, best = list(request.readable), list[int]()
        entries = dict[int, RankedDocument]()
        if len(heap) == 1:  # nothing to choose from, but it is to be read
            [ranking] = yield Ask([part(request, heap)])
            return merged(request, placed(request, heap, ranking))
        for level in reversed(self._heights(len(heap))):
            yield from self._sink(request, heap, level, entries)
        while True:
            best.append(heap[0])
            last = heap.pop()
            if not heap or len(best) == self.top:
                break
            heap[0] = last
            yield from self._sink(request, heap, range(1), entries)
        others = sorted(entries.keys() - set(best))
        return merged(request, [(index, entries[index]) for index in (*best, *others)])

    def _sink(
        self, request: RankRequest, heap: list[int], nodes: range, entries: dict[int, RankedDocument]
    ) -> Generator[Ask, list[Ranking], None]:
        """Exchange what is at some nodes with the best of its children, until it is the best itself.

        nodes: of which none is below another, so that all of them sink at once.
        """
        sinking = list(nodes)
        while families := [family for node in sinking if len(family := self._family(node, len(heap))) > 1]:
            members = [[heap[node] for node in family] for family in families]
            rankings = yield Ask([part(request, group) for group in members])
            sinking = []
            for family, group, ranking in zip(families, members, rankings, strict=True):
                found = placed(request, group, ranking)
                entries |= found
                node, winner = family[0], family[group.index(found[0][0])]
                if winner != node:
                    heap[node], heap[winner] = heap[winner], heap[node]
                    sinking.append(winner)

    def _family(self, node: int, count: int) -> list[int]:
        """A node and its children, in a heap of so many."""
        first = self._first_child(node)
        return [node, *range(first, min(first + self.size - 1, count))]

    def _first_child(self, node: int) -> int:
        return (self.size - 1) * node + 1

    def _heights(self, count: int) -> list[range]:
        """The nodes of each level, from the root, in a heap of so many."""
        found, start = list[range](), 0
        while start < count:
            end = self._first_child(start)
            found.append(range(start, min(end, count)))
            start = end
        return found

    def _levels(self, node: int, count: int) -> int:
        """How many levels a document can sink from a node, in a heap of so many."""
        return 0 if (first := self._first_child(node)) >= count else 1 + self._levels(first, count)
