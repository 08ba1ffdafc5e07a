"""Adaptive search: scores of some candidates say which to read next.

After ADACUR (Yadav et al., EMNLP Findings 2023) and AXN (Yadav et al., ICLR 2024, arXiv 2405.03651), which search an
index with a cross-encoder in rounds: a linear regression of the scores known so far on vectors of the documents says
which look best of the others. Theirs are absolute scores. Those of a prompt with several documents may not be, so that
rounds here share candidates by which they are brought onto one scale; and the first stage's order is one more column of
the vectors, as AXN holds its regression to the vector of the query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockrank.errors import InputError
from blockrank.strategies.base import Ask, Steps, merged, part, placed
from blockrank.strategies.first import WithFirst
from blockrank.strategies.vectors import LEXICAL, encoder_named
from blockrank.types import RankedDocument, Ranking, RankRequest

_RIDGE = 1.0  # on vectors whose mean square length is 1
_ORDER_WEIGHT = 0.3  # of the column that holds the order of `first`, against them
_LEAST = 1e-6  # what shares and probabilities count as that are smaller, so that one near zero does not bend the fit
_DIGITS = 9  # of scores: equal ones of different rounds differ by rounding


@dataclass
class Adaptive(WithFirst):
    """Reads `budget` of the candidates at most, in rounds of `size`, and says of the others what those let expect.

    The first round reads the best of `first`. After each a ridge regression of the scores on vectors of the documents
    (and on the logarithm of the rank that `first` gave) foretells the others, and the best of these are read next. What
    was never read follows by what was foretold of it. Where there are no more than `budget`, they are ranked at once.

    Scores of kind `logit` and `probability` mean the same in every round. Where they are shares or an order, a round
    reads the best `anchors` of those before it again, and its scores (logarithms of shares; minus logarithms of ranks)
    are moved by what these differ by. Of shares that is exact where documents do not influence each other, of an order
    an approximation. Anchors count as read each time.

    vectors: "lexical" compares words; else a model of sentence-transformers (a folder or a hub name), or an object with
    `documents(texts)`, which gives (N, D), and `identity`.
    """

    name = "adaptive"
    budget: int = 30
    size: int = 10
    anchors: int = 1
    vectors: Any = LEXICAL

    def __post_init__(self) -> None:
        super().__post_init__()
        self.vectors = encoder_named(self.vectors)

    def check(self) -> None:
        """See `WithFirst.check`."""
        if not 0 < self.size <= self.budget:
            raise InputError(f"size must lie between 1 and budget {self.budget}, not {self.size}.")
        if self.anchors < 1:
            raise InputError(f"anchors must be positive, not {self.anchors}.")
        if self.anchors >= self.size:
            raise InputError(f"anchors must be fewer than size {self.size}, not {self.anchors}: nothing new were read.")

    def steps(self, request: RankRequest) -> Steps:
        """See `Strategy.steps`."""
        readable = request.readable
        if len(readable) <= self.budget:
            [ranking] = yield Ask([part(request, readable)])
            return merged(request, placed(request, readable, ranking))
        first = yield from self.first_ranking(request)
        gram_CC = self._gram(request, first)
        readings, rest, left = Readings(), [*dict.fromkeys(entry.index for entry in first)], self.budget
        anchors: list[int] = []
        while count := max(0, min(self.size, left) - len(anchors)):
            read = [*anchors, *rest[:count]]
            [ranking] = yield Ask([part(request, [readable[place] for place in read])])
            anchors = readings.add(read, ranking, self.anchors)
            left -= len(read)
            rest = foretold(gram_CC, readings.scores, rest[count:])
        unread = ((readable[place], RankedDocument(0, 0.0, 0, request.candidates[readable[place]])) for place in rest)
        return merged(request, [(readable[place], entry) for place, entry in readings.ordered()], rest=unread)

    def _gram(self, request: RankRequest, first: Ranking) -> NDArray[np.float64]:
        """Products of what scores are fitted to: centred vectors of the candidates, and the order of `first`."""
        texts = [request.candidates[index].content for index in request.readable]
        vectors_CD = np.asarray(self.vectors.documents(texts), np.float64)
        if vectors_CD.ndim != 2 or len(vectors_CD) != len(texts) or not np.isfinite(vectors_CD).all():
            raise InputError(f"vectors must give a finite vector for each of {len(texts)} documents.")
        vectors_CD = vectors_CD - vectors_CD.mean(0)
        length = float(np.sqrt((vectors_CD**2).sum(1).mean()))
        order_C = np.full(len(texts), -np.log(len(texts)))
        order_C[[entry.index for entry in first]] = -np.log([entry.rank for entry in first])
        order_C = (order_C - order_C.mean()) / order_C.std()  # there are two ranks at least
        vectors_CD /= length or 1.0
        gram_CC: NDArray[np.float64] = vectors_CD @ vectors_CD.T + _ORDER_WEIGHT**2 * np.outer(order_C, order_C)
        return gram_CC

    def identity(self) -> dict[str, Any]:
        """See `Strategy.identity`."""
        return super().identity() | {"vectors": self.vectors.identity}


@dataclass
class Readings:
    """What was read of the candidates of a request, each known by its place: entries, and scores on one scale.

    A document of which the ranker read no token has an entry and no score.
    """

    entries: dict[int, RankedDocument] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)

    def add(self, read: Sequence[int], ranking: Ranking, anchors: int) -> list[int]:
        """Take in the ranking of a round; the best so many that the next one must read again, none where scores are
        absolute."""
        is_absolute = ranking.kind in ("logit", "probability")
        are_counted = any(entry.tokens for entry in ranking)
        found = {
            read[entry.index]: score
            for entry, score in zip(ranking, ranking.logits(_LEAST), strict=True)
            if entry.tokens or not are_counted
        }
        both = found.keys() & self.scores.keys()
        shift = 0.0
        if both and not is_absolute:
            shift = sum(self.scores[place] - found[place] for place in sorted(both)) / len(both)
        self.entries |= {read[entry.index]: entry for entry in ranking}
        self.scores |= {place: score + shift for place, score in found.items()}
        return [] if is_absolute else sorted(self.scores, key=self._before)[:anchors]

    def ordered(self) -> list[tuple[int, RankedDocument]]:
        """Entries by score, those without one last; equal ones as they were read."""
        return sorted(self.entries.items(), key=lambda pair: self._before(pair[0]))

    def _before(self, place: int) -> float:
        return -round(self.scores.get(place, -np.inf), _DIGITS)


def foretold(gram_CC: NDArray[np.float64], scores: dict[int, float], places: Sequence[int]) -> list[int]:
    """Places by what a ridge regression of the known scores expects there, best first; equal ones as given.

    gram_CC: products of the vectors of all candidates, which are all that the regression needs of them.
    """
    if not scores:
        return list(places)
    known, known_N = list(scores), np.array(list(scores.values()))
    gram_NN = gram_CC[np.ix_(known, known)]
    weights_N = np.linalg.solve(gram_NN + _RIDGE * np.eye(len(known)), known_N - known_N.mean())
    expected_M = gram_CC[np.ix_(places, known)] @ weights_N
    return [places[at] for at in np.argsort(-expected_M, kind="stable")]
