"""Strategies with a first ranker beside the one that they ask, and the names that one can be given by."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blockrank.errors import InputError
from blockrank.spec import EMBEDDED
from blockrank.strategies.base import Ask, Strategy, part
from blockrank.types import Ranking, RankRequest, RequestRanker

ORDER, BM25 = "order", "bm25"


class OrderRanker(RequestRanker):
    """Leaves candidates in the order in which they are given: that of the first stage that found them."""

    reads_tokens = False

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        """See `RequestRanker.rank_iter`."""
        for request in requests:
            scores = [-float(rank) for rank in range(1, len(request.readable) + 1)]
            yield Ranking.from_scores(request, scores, kind="order")

    def identity(self) -> dict[str, Any]:
        """See `RequestRanker.identity`."""
        return {"ranker": ORDER}


@dataclass
class WithFirst(Strategy):
    """Asks two rankers: `first`, which costs little, and `ranker`.

    first: "order" leaves the candidates as they are given, "bm25" ranks them by the words that they share with the
    query; else a checkpoint (a folder, a hub name, or "embedded"), which is loaded, or a ranker that is made already.
    Raises `InputError` and `ModelError` where it cannot be made, `MissingExtraError` for "bm25" without the extra.
    """

    first: RequestRanker | str = ORDER

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
        if isinstance(self.first, str):
            self.first = ranker_named(self.first)

    def check(self) -> None:
        """Refuse settings, before anything is loaded; raises `InputError`."""

    def first_ranking(self, request: RankRequest) -> Generator[Ask, list[Ranking], Ranking]:
        """What `first` makes of all readable candidates; it is not asked for evidence."""
        assert isinstance(self.first, RequestRanker), "names are resolved when a strategy is made"
        [ranking] = yield Ask([replace(part(request, request.readable), evidence=False)], ranker=self.first)
        return ranking


def ranker_named(name: str) -> RequestRanker:
    """The ranker that a name stands for; see `WithFirst`."""
    if name == ORDER:
        return OrderRanker()
    if name == BM25:
        from blockrank.retrieve.lexical import Bm25Ranker

        return Bm25Ranker()
    if name != EMBEDDED and not is_checkpoint(name):
        raise InputError(f"first is 'order', 'bm25', or a checkpoint's folder or hub name, not {name!r}.")
    from blockrank.ranker import Ranker

    return Ranker.from_pretrained(name)


def is_checkpoint(name: str) -> bool:
    """Whether a name can be that of a folder or a model of a hub."""
    return "/" in name or Path(name).is_dir()
