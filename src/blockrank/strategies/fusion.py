"""Fusion: two rankings of the same candidates become one, by ranks or by scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from blockrank.errors import InputError
from blockrank.strategies.base import Ask, Steps, merged, part, placed
from blockrank.strategies.first import ORDER, OrderRanker, WithFirst
from blockrank.types import Ranking, RankRequest


@dataclass
class Fusion(WithFirst):
    """Fuses the ranker's ranking with that of `first`; each sees all candidates, in one request.

    method: "ranks" sums weight / (k + rank), reciprocal rank fusion (Cormack et al., SIGIR 2009), and needs nothing
    but two orders. "scores" sums weight times the score less the mean of the request's scores, over their standard
    deviation; what has no scores, an order, is refused with `InputError`. weight: of the ranker, in [0, 1]; `first` has
    the rest. Where sums are equal the ranker decides.

    The ranking is an order for both methods: a standardised score says where a document stands among those of its
    request, on no scale that another request shares.
    """

    name = "fusion"
    method: Literal["ranks", "scores"] = "ranks"
    weight: float = 0.5
    k: int = 60

    def check(self) -> None:
        """See `WithFirst.check`."""
        if not 0 <= self.weight <= 1:
            raise InputError(f"weight must lie between 0 and 1, not {self.weight}.")
        if self.k < 0:
            raise InputError(f"k must not be negative, not {self.k}.")
        if self.method == "scores" and (self.first == ORDER or isinstance(self.first, OrderRanker)):
            raise InputError("method 'scores' needs a first ranker with scores, and 'order' has ranks alone.")

    def steps(self, request: RankRequest) -> Steps:
        """See `Strategy.steps`."""
        others = yield from self.first_ranking(request)
        [own] = yield Ask([part(request, request.readable)])
        count = len(request.readable)
        sums_C = self.weight * self._values(own, count) + (1 - self.weight) * self._values(others, count)
        order = placed(request, request.readable, own)
        return merged(request, sorted(order, key=lambda pair: -sums_C[pair[1].index]))

    def _values(self, ranking: Ranking, count: int) -> NDArray[np.float64]:
        """What is summed, (C,), by a candidate's index in the ranking's request; one not there has the least."""
        if self.method == "scores" and ranking.kind == "order":
            raise InputError(
                f"query_id {ranking.query_id!r}: method 'scores' needs scores, and a ranking is an order: "
                "use method 'ranks'."
            )
        by_ranks = self.method == "ranks"
        found = [(entry.index, 1 / (self.k + entry.rank) if by_ranks else entry.score) for entry in ranking]
        values_C = np.full(count, min(value for _, value in found))
        for index, value in reversed(found):  # one that is there twice counts where it is first
            values_C[index] = value
        return values_C if by_ranks else _standardised(values_C)


def _standardised(scores_C: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean 0 and standard deviation 1; all 0 where all are equal."""
    spread = float(np.ptp(scores_C))
    return (scores_C - scores_C.mean()) / scores_C.std() if spread else np.zeros_like(scores_C)
