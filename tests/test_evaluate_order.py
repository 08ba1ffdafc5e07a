"""How far rankings depend on the order of the candidates: Kendall's tau, and what is shuffled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from blockrank import FakeRanker, Ranking, RankRequest
from blockrank.evaluate.order import SHUFFLES, kendall_tau, order_tau, sampled, shuffled
from blockrank.types import RequestRanker

TEXTS = ["a tide", "the tide of a harbour", "an engine", "a willow", "copper and a tide"]


@given(st.integers(2, 30).flatmap(lambda count: st.tuples(*[st.permutations(range(count))] * 2)))
def test_tau_is_that_of_scipy(orders: tuple[list[int], list[int]]) -> None:
    first, second = ([f"d{number}" for number in order] for order in orders)
    places = [[order.index(number) for number in range(len(order))] for order in orders]
    assert kendall_tau(first, second) == pytest.approx(kendalltau(*places).statistic)
    assert kendall_tau(first, second) == pytest.approx(kendall_tau(second, first))
    assert kendall_tau(first, first) == 1
    assert kendall_tau(first, first[::-1]) == -1


class GivenOrder(RequestRanker):
    """Leaves every request as it is."""

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        for request in requests:
            yield Ranking.from_scores(request, [0.0] * len(request.candidates))

    def identity(self) -> dict[str, Any]:
        return {}


def test_scores_that_do_not_depend_on_the_order_have_tau_one() -> None:
    ranker = FakeRanker(lambda _, text: len(text))  # no two are equally long
    assert order_tau(ranker, RankRequest("tide", TEXTS)) == 1
    request = RankRequest("tide", [f"word {number}" for number in range(40)])
    assert abs(order_tau(GivenOrder(), request) or 0) < 0.3, "as random orders agree"
    assert order_tau(ranker, None) is order_tau(ranker, RankRequest("tide", ["a"])) is None


def test_shuffles_are_the_same_each_time() -> None:
    request = RankRequest("tide", TEXTS, "q1")
    orders = [[document.doc_id for document in item.candidates] for item in shuffled(request)]
    assert orders == [[document.doc_id for document in item.candidates] for item in shuffled(request)]
    assert len(orders) == SHUFFLES
    assert all(sorted(order, key=str) == sorted(orders[0], key=str) for order in orders)
    other = [item.candidates for item in shuffled(RankRequest("tide", TEXTS, "q2"))]
    assert other != [item.candidates for item in shuffled(request)]


def test_more_queries_begin_with_those_that_fewer_are() -> None:
    ids = [f"q{number}" for number in range(20)]
    assert sampled(ids, 5) == sampled(ids, 9)[:5] != ids[:5]
    assert sorted(sampled(ids, 99)) == sorted(ids)
    assert sampled(ids, 0) == []
