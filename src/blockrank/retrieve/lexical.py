"""A ranker by shared words: BM25 over the candidates of a request alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from blockrank.retrieve.bm25 import K1, B, Bm25Index, versions
from blockrank.types import Document, Ranking, RankRequest, RequestRanker


class Bm25Ranker(RequestRanker):
    """Ranks candidates by BM25, where they are all the corpus there is: how rare a word is, they say themselves.

    Scores are shares: BM25's divided by their sum, and equal ones where no candidate shares a word with the query.
    There is no evidence, and no tokens are counted. Raises `MissingExtraError` without the extra.
    """

    reads_tokens = False

    def __init__(self, k1: float = K1, b: float = B) -> None:
        self._k1, self._b, self._versions = k1, b, versions()

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        """See `RequestRanker.rank_iter`."""
        for request in requests:
            yield Ranking.from_scores(request, self._shares(request))

    def _shares(self, request: RankRequest) -> list[float]:
        count = len(request.readable)
        documents = (Document(request.candidates[index].content, str(index)) for index in request.readable)
        found = Bm25Index.build(documents, k1=self._k1, b=self._b).positions(request.query, count)
        total = sum(score for _, score in found)
        if not total:
            return [1 / count] * count
        shares = [0.0] * count
        for place, score in found:
            shares[place] = score / total
        return shares

    def identity(self) -> dict[str, Any]:
        """See `RequestRanker.identity`."""
        return {"ranker": "bm25", "k1": self._k1, "b": self._b, **self._versions}
