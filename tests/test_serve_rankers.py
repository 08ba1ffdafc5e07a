"""Any ranker whose steps can be told apart is served, over a socket, as a tool and on a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving import BODY, QUERY, TEXTS, Running, running, wait_until

from blockrank import FakeRanker, Ranking, RankRequest, SteppedRanker
from blockrank.integrations.mcp import create_mcp_server
from blockrank.integrations.ray_serve import loaded_app
from blockrank.serve.settings import ServeSettings
from blockrank.types import RankerFacts

LONG = "one two three four five six"


class Lengths(SteppedRanker["Sized", int]):
    """As little as a ranker can be: the longest document wins."""

    def identity(self) -> dict[str, Any]:
        return {"ranker": "Lengths"}

    def tokenise(
        self, request: RankRequest, max_segment_tokens: int | None = None, between: Callable[[], None] | None = None
    ) -> Sized:
        return Sized(request)

    def score(
        self, requests: Sequence[RankRequest], tokenised: Sequence[Sized], between: Callable[[], None] | None = None
    ) -> list[int]:
        return [item.length for item in tokenised]

    def ranking(self, request: RankRequest, tokenised: Sized, scored: int) -> Ranking:
        return Ranking.from_scores(request, [len(document.text) / scored for document in request.candidates])


class Sized:
    cuts, query_cut = (), 0

    def __init__(self, request: RankRequest) -> None:
        self.length = sum(len(document.text) for document in request.candidates)


class Counts:
    """A cache that says what it was asked for."""

    hits, misses = 5, 7

    def __init__(self, used_bytes: int) -> None:
        self.used_bytes = used_bytes


class Elaborate(FakeRanker):
    """A ranker on two devices, with a cache, and limits of its own."""

    device = "left"

    @property
    def facts(self) -> RankerFacts:
        return RankerFacts(self.device, 50, 6, 9)

    def on_each_device(self) -> Sequence[FakeRanker]:
        other = Elaborate(self._score)
        other.device = "right"
        return self, other

    def reuse(self, max_bytes: int) -> Counts:
        return Counts(max_bytes)


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running(None, load=lambda: [FakeRanker()]) as server:
        yield server


def test_a_fake_is_served_as_it_ranks(served: Running) -> None:
    expected = FakeRanker().rank(QUERY, TEXTS)
    answer = served.post("/v2/rerank").json()
    assert [item["index"] for item in answer["results"]] == [entry.index for entry in expected]
    assert [item["relevance_score"] for item in answer["results"]] == [entry.score for entry in expected]
    with ThreadPoolExecutor(4) as pool:  # many at once, in batches
        found = list(pool.map(lambda _: served.post("/v2/rerank").json()["results"], range(12)))
    assert found == [answer["results"]] * 12


@pytest.mark.parametrize(
    ("path", "key", "documents"),
    [("/v1/rerank", "results", "documents"), ("/rerank", "", "texts"), ("/v1/score", "data", "")],
)
def test_every_dialect_serves_it(served: Running, path: str, key: str, documents: str) -> None:
    body = {"query": QUERY, documents: TEXTS} if documents else {"text_1": QUERY, "text_2": TEXTS}
    answer = served.post(path, body).json()
    found = sorted(answer[key] if key else answer, key=lambda item: item["index"])
    expected = sorted(FakeRanker().rank(QUERY, TEXTS), key=lambda entry: entry.index)
    assert [item.get("relevance_score", item.get("score")) for item in found] == [entry.score for entry in expected]


def test_what_a_fake_cuts_is_told(served: Running) -> None:
    body = {"query": "six", "documents": [LONG, "six"], "max_tokens_per_doc": 4, "token_counts": True}
    response = served.post("/v1/rerank", body)
    assert response.headers["x-truncated-documents"] == "1"
    by_index = {item["index"]: item for item in response.json()["results"]}
    assert (by_index[0]["tokens"], by_index[0]["cut_tokens"], by_index[0]["relevance_score"]) == (4, 2, 0.0)
    assert (by_index[1]["tokens"], by_index[1]["cut_tokens"]) == (1, 0)
    refused = served.post("/v1/rerank", {**body, "truncation": False})
    assert refused.status_code == 422
    assert refused.json()["detail"] == "documents[0] is 2 tokens over the limit and may not be cut."


def test_evidence_of_a_fake_comes_with_its_answer(served: Running) -> None:
    answer = served.post(body={**BODY, "evidence": True}).json()
    spans = {item["index"]: item["evidence"] for item in answer["results"]}
    assert TEXTS[1][spans[1][0]["start"] : spans[1][0]["end"]] == "wrote"


def test_what_has_no_limit_says_so(served: Running) -> None:
    [row] = served.client.get("/v1/models").json()["data"]
    assert row["limits"]["max_document_tokens"] is None
    assert row["limits"]["max_query_tokens"] is None
    assert served.metric("blockrank_cache_bytes") == 0


@pytest.mark.parametrize(
    ("score", "status"), [(lambda *_: -1.0, 422), (lambda *_: 1 / 0, 500), (lambda *_: float("nan"), 500)]
)
def test_a_ranker_that_fails_is_an_answer_and_the_server_goes_on(score: Any, status: int) -> None:
    failing = [False]

    def scored(query: str, text: str) -> float:
        return float(score(query, text)) if failing[0] else 1.0

    with running(None, load=lambda: [FakeRanker(scored)]) as server:
        failing[0] = True
        assert server.post().status_code == status
        failing[0] = False
        assert server.post().status_code == 200


def test_three_steps_make_a_ranker_that_is_served() -> None:
    assert Lengths().rank("q", ["a", "bbb"]).doc_ids == ["1", "0"]
    with running(None, load=lambda: [Lengths()]) as server:
        results = server.post(body={"query": "q", "documents": ["a", "bbb"]}).json()["results"]
        assert [(item["index"], item["relevance_score"]) for item in results] == [(1, 0.75), (0, 0.25)]


def test_devices_limits_budget_and_cache_are_those_of_the_ranker() -> None:
    with running(None, ServeSettings(cache_bytes=1 << 20), load=lambda: [Elaborate()]) as server:
        [row] = server.client.get("/v1/models").json()["data"]
        assert (row["limits"]["max_document_tokens"], row["limits"]["max_query_tokens"]) == (6, 9)
        assert server.metric("blockrank_cache_bytes") == 2 << 20
        assert server.metric("blockrank_cache_hits") == 10
        assert [worker.name for worker in server.service._workers] == ["left", "right"]
        assert server.service._batcher is not None
        assert server.service._batcher.batch_tokens == 50
        wait_until(lambda: server.client.get("/readyz").status_code == 200)
        assert server.post().status_code == 200


def test_a_fake_is_a_tool_as_well() -> None:
    tool = create_mcp_server(FakeRanker(max_segment_tokens=3))._tool_manager.get_tool("rank")
    assert tool is not None
    found = tool.fn(arguments={"query": "two six", "documents": [LONG, "six"]})
    assert [(item["index"], item["score"]) for item in found["results"]] == [(0, 0.5), (1, 0.5)]
    assert found["warnings"] == ["1 of 2 documents were cut at their end to fit (at most 3 tokens were left out)."]


def test_a_fake_is_what_a_copy_on_a_cluster_serves() -> None:
    app = loaded_app(ServeSettings(), FakeRanker)

    async def state() -> str:
        async with app.router.lifespan_context(app):
            return str(app.state.service.readiness())

    assert asyncio.run(state()) == "ready"
