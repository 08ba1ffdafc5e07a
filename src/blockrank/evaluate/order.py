"""How far a ranking depends on the order in which the candidates are given.

The same candidates are ranked in several shuffled orders; Kendall's tau says how far two of the rankings agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from random import Random

import numpy as np
from numpy.typing import NDArray

from blockrank.types import Document, RankRequest, RequestRanker

SHUFFLES = 3  # of a query's candidates


def kendall_tau(first: Sequence[str], second: Sequence[str]) -> float:
    """Kendall's tau between two orders of the same ids, at least two: 1 where they are equal, -1 where one is the other
    reversed.

    That is concordant pairs minus discordant ones, over all pairs; the orders have no ties.
    """
    places = {doc_id: place for place, doc_id in enumerate(second)}
    places_C = np.array([places[doc_id] for doc_id in first])
    signs_CC: NDArray[np.int64] = np.sign(places_C[None, :] - places_C[:, None])
    count = len(first)
    return float(np.triu(signs_CC, 1).sum() / (count * (count - 1) / 2))


def shuffled(request: RankRequest) -> list[RankRequest]:
    """The request with its candidates in `SHUFFLES` orders, which depend on its query_id and their number alone."""
    requests = []
    for number in range(SHUFFLES):
        documents: list[Document] = list(request.candidates)
        Random(f"{number} {request.query_id}").shuffle(documents)  # noqa: S311  # it keeps no secret
        requests.append(RankRequest(request.query, documents, request.query_id))
    return requests


def order_tau(ranker: RequestRanker, request: RankRequest | None) -> float | None:
    """The mean of Kendall's tau over all pairs of rankings of a request whose candidates are shuffled; None where there
    are not two of them."""
    if request is None or len(request.candidates) < 2:
        return None
    rankings = ranker.rank_many(shuffled(request))
    taus = [kendall_tau(a.doc_ids, b.doc_ids) for a, b in combinations(rankings, 2)]
    return sum(taus) / len(taus)


def sampled(query_ids: Sequence[str], count: int) -> list[str]:
    """`count` of the queries, by chance but always the same; more of them begin with those that fewer are."""
    found = list(query_ids)
    Random(0).shuffle(found)  # noqa: S311  # it keeps no secret
    return found[:count]
