"""The negatives of each query: from BM25, from an encoder, given by the source, siblings, random."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from blockrank.mine.judged import Judged, JudgedQuery
from blockrank.mine.pool import text_key
from blockrank.retrieve import Bm25Index
from blockrank.types import InputError

KINDS = ("bm25", "dense", "given", "siblings", "random")
_SMALL = 4096  # up to this many positions are shuffled at once; more are drawn one by one
_DRAWN = 64


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """What a training request is made of.

    candidates: documents of a request, the positives among them. negatives: share of each kind of `KINDS`; `random` is
    uniform over the pool. depth: `bm25` and `dense` draw from this many best documents that are not positives, after
    leaving out the first `skip_top`. max_positives: most positives in a request, drawn at random if there are more.
    max_queries: how many queries, drawn at random. fill: missing negatives are drawn at random; else requests are
    shorter.

    Raises `InputError` naming the field.
    """

    candidates: int = 30
    negatives: Mapping[str, float] = field(default_factory=lambda: {"bm25": 1.0})
    depth: int = 50
    skip_top: int = 0
    max_positives: int = 4
    max_queries: int | None = None
    fill: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"candidates": 2, "depth": 1, "skip_top": 0, "max_positives": 1, "seed": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise InputError(f"{name} must be at least {smallest}, not {getattr(self, name)}.")
        if self.max_queries is not None and self.max_queries < 1:
            raise InputError(f"max_queries must be at least 1, not {self.max_queries}.")
        if not self.negatives:
            raise InputError(f"negatives names no kind; there are {', '.join(KINDS)}.")
        for kind, share in self.negatives.items():
            if kind not in KINDS:
                raise InputError(f"negatives has the unknown kind {kind!r}; there are {', '.join(KINDS)}.")
            if not 0 < share < float("inf"):
                raise InputError(f"the share of {kind} must be above zero, not {share}.")


def parse_negatives(text: str) -> dict[str, float]:
    """Shares by kind of `bm25=0.7,random=0.3` or `bm25,random`. Raises `InputError` on an invalid share."""
    shares: dict[str, float] = {}
    for item in text.split(","):
        kind, _, share = item.strip().partition("=")
        if kind in shares:
            raise InputError(f"negatives names {kind} twice.")
        try:
            shares[kind] = float(share) if share else 1.0
        except ValueError:
            raise InputError(f"the share of {kind} must be a number, not {share!r}.") from None
    return shares


Finder = Callable[[int], Sequence[int]]  # row of a query -> positions in the pool, best first


def bm25_finder(index: Bm25Index, queries: Sequence[JudgedQuery], depth: int) -> Finder:
    """The best `depth` by BM25; the index is over the pool, in its order."""
    return lambda row: [position for position, _ in index.positions(queries[row].query, depth)]


def table_finder(table_ND: NDArray[np.int32]) -> Finder:
    """Rows of a table of positions, -1 where there is none."""
    return lambda row: [int(position) for position in table_ND[row] if position >= 0]


class Negatives:
    """Draws negatives for the queries of a source. finders: of the kinds `bm25` and `dense`, by row of `queries`.

    filled: how many were drawn so far in place of a kind that ran out.

    Never drawn are: positives, by id or text, of any query with the same words; barred documents; documents without
    text; and a text already drawn for the request.
    """

    def __init__(
        self, judged: Judged, queries: Sequence[JudgedQuery], plan: RequestPlan, finders: Mapping[str, Finder]
    ) -> None:
        self._keys_C, self._queries, self._plan, self._finders = judged.pool.keys_C, queries, plan, finders
        self.filled = 0
        self._barred: dict[int, set[int]] = {}
        self._groups: dict[str, dict[int, None]] = {}
        for query in judged.queries:
            barred = self._barred.setdefault(text_key(query.query), {0})
            barred.update(self._keys_C[[*query.positives, *query.barred]].tolist())
            if query.group and "siblings" in plan.negatives:
                self._groups.setdefault(query.group, {}).update(dict.fromkeys(query.positives))
        self._siblings = {name: np.fromiter(places, np.int64) for name, places in self._groups.items()}

    def draw(self, row: int, counts: Iterable[int], generator: Generator) -> list[tuple[int, str]]:
        """Positions and kinds of negatives: as many as each of `counts`, with the plan's mixture in each part.

        If one kind runs out, the others fill in, random ones last. Fewer if all run out.
        """
        taken = set(self._barred[text_key(self._queries[row].query)])
        streams = {kind: self._fresh(self._stream(kind, row, generator), taken) for kind in self._plan.negatives}
        if self._plan.fill and "random" not in streams:
            streams["random"] = self._fresh(self._stream("random", row, generator), taken)
        drawn: list[tuple[int, str]] = []
        for count in counts:
            wanted = len(drawn) + count
            for kind, share in quotas(self._plan.negatives, count).items():
                drawn += [(place, kind) for place in _first(streams[kind], share)]
            for kind in sorted(streams, key="random".__eq__):  # random ones after all others
                others = _first(streams[kind], wanted - len(drawn))
                drawn += [(place, kind) for place in others]
                self.filled += len(others)
        return drawn

    def _fresh(self, positions: Iterator[int], taken: set[int]) -> Iterator[int]:
        """Those whose text has not been taken; takes it."""
        for position in positions:
            key = int(self._keys_C[position])
            if key not in taken:
                taken.add(key)
                yield position

    def _stream(self, kind: str, row: int, generator: Generator) -> Iterator[int]:
        """Positions of one kind in random order."""
        query = self._queries[row]
        if kind == "random":
            return in_random_order(len(self._keys_C), generator)
        found: Sequence[int] | NDArray[np.int64]
        if kind == "siblings":
            found = self._siblings.get(query.group, np.zeros(0, dtype=np.int64))
        elif kind == "given":
            found = query.given
        else:
            barred = self._barred[text_key(query.query)]
            usable = [place for place in self._finders[kind](row) if int(self._keys_C[place]) not in barred]
            found = usable[self._plan.skip_top :][: self._plan.depth]
        return (int(found[at]) for at in in_random_order(len(found), generator))


def quotas(shares: Mapping[str, float], count: int) -> dict[str, int]:
    """`count` divided in proportion to the shares, by largest remainders; equal ones in the order of the shares."""
    total = sum(shares.values())
    exact = {kind: count * share / total for kind, share in shares.items()}
    found = {kind: int(value) for kind, value in exact.items()}
    rest = count - sum(found.values())
    for kind in sorted(exact, key=lambda kind: found[kind] - exact[kind])[:rest]:
        found[kind] += 1
    return found


def in_random_order(size: int, generator: Generator) -> Iterator[int]:
    """The numbers below `size`, each once, in random order; for a large `size`, time is spent only on the numbers
    requested."""
    if size <= _SMALL:
        yield from generator.permutation(size).tolist()
        return
    seen: set[int] = set()
    while len(seen) < size // 2:
        for number in generator.integers(0, size, _DRAWN).tolist():
            if number not in seen:
                seen.add(number)
                yield number
    rest = np.setdiff1d(np.arange(size), np.fromiter(seen, np.int64))
    yield from generator.permutation(rest).tolist()


def _first(stream: Iterator[int], count: int) -> list[int]:
    """The next `count` items of a stream, or all it has; consumes no more."""
    found: list[int] = []
    while len(found) < count and (item := next(stream, None)) is not None:
        found.append(item)
    return found
