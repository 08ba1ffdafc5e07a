"""What every ranker offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

from blockrank.types.documents import DocumentLike, check_id
from blockrank.types.rankings import Ranking
from blockrank.types.requests import RankRequest


class RequestRanker(ABC):
    """What every ranker offers: `rank` and `rank_many` over its own `rank_iter`."""

    @abstractmethod
    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        """Rank a stream of requests lazily, in order."""

    def rank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        top_k: int | None = None,
        query_id: str | int = "0",
        *,
        evidence: bool = False,
    ) -> Ranking:
        """Rank the documents of one query; arguments as in `RankRequest`.

        Raises `InputError` on input that cannot be ranked.
        """
        return self.rank_many([RankRequest(query, documents, check_id(query_id, "query_id"), top_k, evidence)])[0]

    def rank_many(self, requests: Iterable[RankRequest]) -> list[Ranking]:
        """Rank many requests, in order; each result equals that of its request alone."""
        return list(self.rank_iter(requests))

    def rank_groups(self, groups: Iterable[Sequence[RankRequest]]) -> Iterator[list[Ranking]]:
        """Rank groups of requests lazily, in order; what a group gets depends on that group alone."""
        return map(self.rank_many, groups)
