"""What is the same to the last bit, and how far apart scores of other forwards may be: the table in the README.

The same forward on the same machine with the same threads gives the same bits. Another forward adds the same numbers up
in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from conftest import TOLERANCE, same_order

from blockrank import Ranker, RankRequest

WORDS = ("harbour", "engine", "willow", "copper", "lantern", "meadow", "signal", "anchor", "quartz", "river")
REQUESTS = [
    RankRequest(f"{WORDS[n]} near the {WORDS[(n * 3 + 1) % 10]}", [" ".join(WORDS[i % 10 : i % 10 + 2 + (i + n) % 7])
                for i in range(6 + n)], str(n))
    for n in range(6)
]  # fmt: skip
# Documents of 1 to 250 tokens, as in real text: how they are padded must not depend on what is beside them.
LONG_REQUESTS = [
    RankRequest(f"{WORDS[n]} and {WORDS[(n * 7 + 2) % 10]}", [" ".join(WORDS[(i * i + j * (n + 3)) % 10] for j in
                range(1 + (37 * i + 61 * n) % 240)) for i in range(5 + n)], str(n))
    for n in (0, 3)
]  # fmt: skip


@pytest.fixture(scope="module", params=sorted(TOLERANCE))
def ranker(request: pytest.FixtureRequest, mini: Ranker) -> Ranker:
    return mini.with_spec() if request.param == "float32" else Ranker.from_pretrained(device="cpu", dtype=request.param)


@pytest.fixture
def tolerance(request: pytest.FixtureRequest) -> float:
    return TOLERANCE[request.node.callspec.params["ranker"]]


def scores(ranker: Ranker, requests: list[RankRequest]) -> list[list[float]]:
    """Each request's scores, in the order of its documents."""
    return [[e.score for e in sorted(item, key=lambda e: e.index)] for item in ranker.rank_many(requests)]


def agree(found: list[list[float]], expected: list[list[float]], tolerance: float) -> None:
    for one, two in zip(found, expected, strict=True):
        assert one == pytest.approx(two, abs=tolerance, rel=0)
        assert same_order(one, two, 2 * tolerance)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_the_same_forward_gives_the_same_bits(ranker: Ranker) -> None:
    assert scores(ranker, REQUESTS) == scores(ranker, REQUESTS)


def test_a_request_in_a_batch_scores_as_alone(ranker: Ranker, tolerance: float) -> None:
    agree(scores(ranker, REQUESTS), [scores(ranker, [request])[0] for request in REQUESTS], tolerance)


def test_a_request_of_long_documents_in_a_batch_scores_as_alone(ranker: Ranker, tolerance: float) -> None:
    agree(scores(ranker, LONG_REQUESTS), [scores(ranker, [request])[0] for request in LONG_REQUESTS], tolerance)


def test_documents_that_are_remembered_score_as_new_ones(ranker: Ranker, tolerance: float) -> None:
    new = [scores(ranker, [request])[0] for request in REQUESTS]
    documents = [document for request in REQUESTS for document in request.candidates]
    assert ranker.remember(documents, 1 << 24)
    try:
        kept = [scores(ranker, [request])[0] for request in REQUESTS]
        assert [scores(ranker, [request])[0] for request in REQUESTS] == kept, "the same forward again"
    finally:
        ranker.forget()
    agree(kept, new, tolerance)
    assert ranker.remember(documents, 1 << 24), "as after a restart"
    try:
        assert [scores(ranker, [request])[0] for request in REQUESTS] == kept
    finally:
        ranker.forget()


def test_another_number_of_threads_scores_alike(ranker: Ranker, tolerance: float) -> None:
    expected = scores(ranker, REQUESTS)
    with threads(2):
        agree(scores(ranker, REQUESTS), expected, tolerance)
