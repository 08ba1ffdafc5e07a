"""Rankers for tests of strategies: any order at all, of every kind of score, and a record of what was asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any
from zlib import crc32

import numpy as np

from blockrank import Document, Ranking, RankRequest, RequestRanker
from blockrank.types import SCORE_KINDS, ScoreKind

KINDS: tuple[ScoreKind, ...] = SCORE_KINDS


class Whim(RequestRanker):
    """Scores that depend on seed, query and texts in no way that means anything; `calls` has the indices' texts.

    tokens: whether it counts any. most: candidates that it takes at once.
    """

    def __init__(self, seed: int = 0, kind: ScoreKind = "share", *, tokens: bool = True, most: int = 1000) -> None:
        self.seed, self.kind, self.tokens, self.most = seed, kind, tokens, most
        self.calls: list[list[str]] = []

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        for request in requests:
            texts = [request.candidates[index].text for index in request.readable]
            assert len(request.candidates) <= self.most
            self.calls.append(texts)
            numbers = np.random.default_rng(crc32(repr((self.seed, request.query, texts)).encode()))
            tokens = [len(text) for text in texts] if self.tokens else None
            yield Ranking.from_scores(request, self.scores(numbers, len(texts)), tokens, kind=self.kind)

    def scores(self, numbers: np.random.Generator, count: int) -> list[float]:
        """Scores of the kind; some are equal."""
        logits = numbers.integers(0, 2 * count, count).astype(float)
        if self.kind == "logit":
            return (logits - count).tolist()
        if self.kind == "probability":
            return (logits / (2 * count)).tolist()
        if self.kind == "share":
            return (logits / max(logits.sum(), 1)).tolist()
        return [-float(rank) for rank in 1 + numbers.permutation(count)]

    def identity(self) -> dict[str, Any]:
        return {"ranker": "whim", "seed": self.seed, "kind": self.kind}


class Careless(Whim):
    """Leaves out the last document of a ranking, and has the first once more in its place."""

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        for ranking in super().rank_iter(requests):
            yield replace(ranking, ranked=(*ranking.ranked[:-1], ranking.ranked[0]))


def request_of(count: int, query_id: str = "0", unreadable: Iterable[int] = (), **options: Any) -> RankRequest:
    """A request for texts that are numbers; those at `unreadable` are empty."""
    empty = set(unreadable)
    texts = ["" if index in empty else f"{index} word{index % 7} common" for index in range(count)]
    return RankRequest("common word3", [Document(text, f"d{i}") for i, text in enumerate(texts)], query_id, **options)


def check_ranking(request: RankRequest, ranking: Ranking) -> None:
    """What every ranking of a request must be."""
    count = min(len(request.candidates), request.top_k or len(request.candidates))
    assert len(ranking) == count
    assert len({entry.index for entry in ranking}) == count
    assert [entry.rank for entry in ranking] == list(range(1, count + 1))
    assert all(entry.document == request.candidates[entry.index] for entry in ranking)
    scores = [entry.score for entry in ranking]
    assert scores == sorted(scores, reverse=True)
    last = [entry.index for entry in ranking[len(request.readable) :]]
    assert last == sorted(set(range(len(request.candidates))) - set(request.readable))[: len(last)]
    assert ranking.warnings == request.warnings
