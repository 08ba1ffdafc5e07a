"""Each scorer behind HTTP answers as it ranks in Python, also where requests of several clients share a forward."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from everyscorer import SCORER_TEXTS, TEXTS, ranker
from serving import Running, running

from blockrank import RankRequest

REQUESTS = [
    (f"fox {number} oak", [f"{text} {number}".strip() for text in TEXTS[: 2 + number % 5]]) for number in range(20)
]


@pytest.fixture(scope="module", params=SCORER_TEXTS)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, Running]]:
    with running(None, load=lambda: [ranker(request.param)]) as server:
        yield request.param, server


def test_answers_are_those_of_the_ranker(served: tuple[str, Running]) -> None:
    name, server = served

    def post(item: tuple[str, list[str]]) -> Any:
        query, documents = item
        response = server.post("/v1/rerank", {"query": query, "documents": documents})
        assert response.status_code == 200, response.text
        return response.json()["results"]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(post, REQUESTS))
    rankings = ranker(name).rank_many([RankRequest(query, documents) for query, documents in REQUESTS])
    for ranking, answer in zip(rankings, answers, strict=True):
        ranking = ranking.in_unit_range()
        assert [item["index"] for item in answer] == [entry.index for entry in ranking]
        found = [item["relevance_score"] for item in answer]
        assert found == pytest.approx([entry.score for entry in ranking], abs=1e-4)
