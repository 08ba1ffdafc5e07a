"""Fusion of two rankings, by ranks and by scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whims import KINDS, Careless, Whim, check_ranking, request_of

from blockrank import FakeRanker, InputError, Ranking, RankRequest, RequestRanker
from blockrank.strategies import STRATEGIES
from blockrank.strategies.first import OrderRanker
from blockrank.strategies.fusion import Fusion
from blockrank.types import ScoreKind


class Given(RequestRanker):
    """Gives the scores that it was made with."""

    def __init__(self, scores: list[float], kind: ScoreKind = "logit") -> None:
        self.given, self.kind = scores, kind

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        return (Ranking.from_scores(request, self.given, kind=self.kind) for request in requests)

    def identity(self) -> dict[str, Any]:
        return {"ranker": "given", "scores": self.given}


def indices(strategy: Fusion, count: int) -> list[int]:
    return [entry.index for entry in strategy.rank_many([request_of(count)])[0]]


@settings(deadline=None, max_examples=60)
@given(
    count=st.sampled_from([1, 2, 3, 20, 100]),
    kinds=st.tuples(st.sampled_from(KINDS[:-1]), st.sampled_from(KINDS[:-1])),
    tokens=st.tuples(st.booleans(), st.booleans()),
    method=st.sampled_from(["ranks", "scores"]),
    weight=st.floats(0, 1),
    unreadable=st.sets(st.integers(1, 20), max_size=3),
    top_k=st.one_of(st.none(), st.integers(1, 120)),
)
def test_whatever_rankers_say_all_documents_come_back_once(
    count: int,
    kinds: tuple[ScoreKind, ScoreKind],
    tokens: tuple[bool, bool],
    method: Any,
    weight: float,
    unreadable: set[int],
    top_k: int | None,
) -> None:
    request = request_of(count, unreadable=unreadable, top_k=top_k)
    first, ranker = (Whim(seed, kind, tokens=tokens[seed]) for seed, kind in enumerate(kinds))
    fusion = Fusion(ranker, first, method, weight)
    [ranking] = fusion.rank_many([request])
    check_ranking(request, ranking)
    assert [len(call) for call in ranker.calls + first.calls] == [len(request.readable)] * 2
    assert ranking.kind == "order"
    assert fusion.rank_many([request]) == [ranking]


@pytest.mark.parametrize("method", ["ranks", "scores"])
def test_the_weight_goes_from_one_ranking_to_the_other(method: Any) -> None:
    request = request_of(25)
    [first], [own] = Whim(1, "logit").rank_many([request]), Whim(2, "share").rank_many([request])
    for weight, expected in ((0.0, first), (1.0, own)):
        [ranking] = Fusion(Whim(2, "share"), Whim(1, "logit"), method, weight).rank_many([request])
        assert [entry.tokens for entry in ranking] == [len(entry.text) for entry in ranking]
        if method == "ranks" or weight:
            assert ranking.doc_ids == expected.doc_ids
        else:  # of equal scores of `first`, the ranker decides
            assert [first.doc_ids.index(item) // 25 for item in ranking.doc_ids] == [0] * 25
            scores = {entry.doc_id: entry.score for entry in first}
            assert [scores[item] for item in ranking.doc_ids] == [entry.score for entry in first]


def test_ranks_are_fused_by_their_reciprocals() -> None:
    """The sum is written out: weight / (k + rank) of both."""
    own, first = [5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 5.0, 4.0, 3.0]
    ranks = np.array([[1, 2, 3, 4, 5], [5, 4, 1, 2, 3]])
    for k, weight in ((60, 0.5), (0, 0.5), (1, 0.8)):
        sums = weight / (k + ranks[0]) + (1 - weight) / (k + ranks[1])
        expected = np.argsort(-sums, kind="stable").tolist()
        assert indices(Fusion(Given(own), Given(first), "ranks", weight, k), 5) == expected


def test_where_sums_are_equal_the_ranker_decides() -> None:
    assert indices(Fusion(Given([0.0, 1.0]), Given([1.0, 0.0])), 2) == [1, 0]
    assert indices(Fusion(Given([0.0, 1.0]), Given([3.0, 3.0]), "scores", 0.0), 2) == [1, 0]


def test_scores_are_fused_on_one_scale() -> None:
    """Neither shift nor scale of a ranker's scores changes what comes of them, and margins count."""
    own, first = [3.0, 2.9, 0.0, 0.1], [0.0, 1.0, 0.2, 0.0]
    expected = indices(Fusion(Given(own), Given(first), "scores"), 4)
    assert expected[0] == 1, "a hair behind for one, far ahead for the other"
    for scale, shift in ((100.0, -7.0), (1e-3, 40.0)):
        moved = [scale * score + shift for score in first]
        assert indices(Fusion(Given(own), Given(moved), "scores"), 4) == expected
    assert indices(Fusion(Given(own), Given(first), "ranks"), 4)[0] == 1


def test_a_first_ranker_without_an_opinion_changes_nothing() -> None:
    own = [0.1, 0.5, 0.2, 0.2]
    for value in (0.0, 0.1, 1 / 3):
        assert indices(Fusion(Given(own), Given([value] * 4), "scores", 0.3), 4) == [1, 2, 3, 0]


def test_names_and_identity() -> None:
    fusion = STRATEGIES.make("fusion:first=bm25,method=scores,weight=0.6", FakeRanker())
    ranking = fusion.rank("who wrote Dracula", ["the coast", "Stoker wrote Dracula", "who"])
    assert ranking[0].index == 1
    found = fusion.identity()
    assert (found["method"], found["weight"], found["k"]) == ("scores", 0.6, 60)
    assert (found["first"]["ranker"], found["of"]["ranker"]) == ("bm25", "FakeRanker")
    assert isinstance(Fusion(FakeRanker()).first, OrderRanker)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("fusion:method=votes", r"method must be one of \('ranks', 'scores'\)"),
        ("fusion:weight=1.5", r"weight must lie between 0 and 1, not 1\.5\."),
        ("fusion:k=-1", r"k must not be negative, not -1\."),
        ("fusion:method=scores", "method 'scores' needs a first ranker with scores, and 'order' has ranks alone"),
    ],
)
def test_settings_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        STRATEGIES.make(text, FakeRanker())


def test_orders_have_no_scores_to_fuse() -> None:
    for pair in ((Whim(0, "order"), Whim(1)), (Whim(0), Whim(1, "order"))):
        with pytest.raises(InputError, match="query_id '7': method 'scores' needs scores, and a ranking is an order"):
            Fusion(*pair, "scores").rank_many([request_of(4, "7")])
        assert len(Fusion(*pair, "ranks").rank_many([request_of(4)])[0]) == 4


@pytest.mark.parametrize("count", [1, 2, 5, 6, 40])
def test_rankings_that_lack_and_repeat_documents_lose_none(count: int) -> None:
    ranking = Fusion(Careless(), Careless(), "scores").rank_many([request_of(count)])[0]
    assert sorted(entry.index for entry in ranking) == list(range(count))
