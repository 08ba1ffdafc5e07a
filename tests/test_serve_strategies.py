"""A strategy behind HTTP answers as it ranks in Python, with limits of a request, evidence and refusals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving import BODY, QUERY, TEXTS, Running, running

from blockrank import Document, FakeRanker, InputError, Ranker, Ranking, RankRequest, RequestRanker
from blockrank.serve.settings import ServeSettings
from blockrank.strategies import STRATEGIES
from blockrank.types import RankerFacts

MANY = [f"{text} {number}" for number in range(8) for text in TEXTS]
NAMES = ("sliding:size=4,step=2", "partition:size=5,repeats=2", "heap:size=4,top=3", "blocks:size=6")
LONG = "one two three four five six"


class Devices(FakeRanker):
    """On two devices, of few tokens to a forward."""

    device = "left"

    @property
    def facts(self) -> RankerFacts:
        return RankerFacts(self.device, 20, 9)

    def on_each_device(self) -> Sequence[FakeRanker]:
        other = Devices(self._score)
        other.device = "right"
        return self, other


class Whole(RequestRanker):
    """A ranker without steps."""

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        return FakeRanker().rank_iter(requests)

    def identity(self) -> dict[str, Any]:
        return {"ranker": "whole"}


@pytest.fixture(scope="module", params=NAMES)
def served(request: pytest.FixtureRequest, mini: Ranker) -> Iterator[tuple[str, Running]]:
    with running(None, load=lambda: [STRATEGIES.make(request.param, mini)]) as server:
        yield request.param, server


def test_a_strategy_is_served_as_it_ranks(served: tuple[str, Running], mini: Ranker) -> None:
    name, server = served
    expected = STRATEGIES.make(name, mini).rank(QUERY, MANY)
    body = {"query": QUERY, "documents": MANY}
    answer = server.post("/v2/rerank", body).json()["results"]
    assert [item["index"] for item in answer] == [entry.index for entry in expected]
    assert [item["relevance_score"] for item in answer] == [1 / entry.rank for entry in expected]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: server.post("/v2/rerank", body).json()["results"], range(4))) == [answer] * 4
    top = server.post("/v2/rerank", {**body, "top_n": 2}).json()["results"]
    assert top == answer[:2]


def test_a_limit_of_a_request_holds_in_every_call(served: tuple[str, Running], mini: Ranker) -> None:
    name, server = served
    documents = [*TEXTS, "word " * 40 + "Dracula"]
    body = {"query": QUERY, "documents": documents, "max_tokens_per_doc": 12, "token_counts": True}
    response = server.post("/v1/rerank", body)
    assert response.headers["x-truncated-documents"] == "1"
    by_index = {item["index"]: item for item in response.json()["results"]}
    limited: Any = STRATEGIES.make(name, mini.with_spec(max_segment_tokens=12))
    expected = limited.rank(QUERY, documents)
    assert [item["index"] for item in response.json()["results"]] == [entry.index for entry in expected]
    assert {index: item["cut_tokens"] for index, item in by_index.items()} == {
        entry.index: entry.cut_tokens for entry in expected
    }
    refused = server.post("/v1/rerank", {**body, "truncation": False})
    assert refused.status_code == 422
    assert "documents[3] is" in refused.json()["detail"]


def test_what_the_ranker_refuses_is_refused_at_once(served: tuple[str, Running]) -> None:
    _, server = served
    refused = server.post(body={"query": "word " * 900, "documents": TEXTS})
    assert refused.status_code == 422
    assert "query is" in refused.json()["detail"]


def test_evidence_and_documents_that_cannot_be_read() -> None:
    with running(None, load=lambda: [STRATEGIES.make("sliding:size=2,step=1", FakeRanker())]) as server:
        answer = server.post(body={**BODY, "documents": ["", *TEXTS], "evidence": True}).json()["results"]
    assert [item["index"] for item in answer] == [2, 1, 3, 0]
    assert answer[0]["evidence"]


def test_each_device_has_the_strategy_over_its_ranker() -> None:
    strategy: Any = STRATEGIES.make("sliding:size=2,step=1", STRATEGIES.make("heap:size=2", Devices()))
    assert [item.ranker.ranker.device for item in strategy.on_each_device()] == ["left", "right"]
    assert [item.identity() for item in strategy.on_each_device()] == [strategy.identity()] * 2
    with running(None, ServeSettings(), load=lambda: [strategy]) as server:
        [row] = server.client.get("/v1/models").json()["data"]
        assert row["limits"]["max_document_tokens"] == 9
        assert [worker.name for worker in server.service._workers] == ["left", "right"]
        assert server.post().status_code == 200


def test_between_is_called_before_each_forward() -> None:
    turns, ranker = list[int](), Devices()
    strategy: Any = STRATEGIES.make("sliding:size=2,step=1", ranker)
    request = RankRequest(QUERY, TEXTS)
    tokenised = strategy.tokenise(request)
    assert tokenised.length >= sum(len(text.split()) for text in TEXTS)
    strategy.score([request], [tokenised], lambda: turns.append(len(ranker.calls)))
    assert [turn for at, turn in enumerate(turns) if turn not in turns[:at]] == [0, 1]

    def ended() -> None:
        raise InputError("no longer wanted.")

    with pytest.raises(InputError, match="no longer wanted"):
        strategy.score([request], [tokenised], ended)


def test_parts_share_forwards_up_to_what_is_best_on_the_device() -> None:
    ranker = Devices()
    sizes = list[int]()
    score = ranker.score
    ranker.score = lambda *args: sizes.append(len(args[0])) or score(*args)  # type: ignore[method-assign, func-returns-value]
    strategy: Any = STRATEGIES.make("partition:size=2", ranker)
    request = RankRequest("q", [f"a b c {n}" for n in range(8)])
    [ranking] = strategy.score([request], [strategy.tokenise(request)])
    assert ranking == strategy.rank_many([request])[0]
    assert sizes[:2] == [2, 2], "nine tokens each, twenty to a forward"


def test_a_ranker_without_steps_can_be_under_a_strategy_too() -> None:
    strategy: Any = STRATEGIES.make("sliding", Whole())
    request = RankRequest(QUERY, [Document(text) for text in TEXTS])
    tokenised = strategy.tokenise(request)
    assert strategy.score([request], [tokenised]) == strategy.rank_many([request])
    assert strategy.on_each_device() == [strategy]
    assert strategy.reuse(1 << 20) is None
    assert not strategy.remember([Document("a")], 1 << 20)
    strategy.forget()
    with pytest.raises(InputError, match="max_segment_tokens cannot be set for a request: Whole takes no limit"):
        strategy.score([request], [strategy.tokenise(request, 3)])


def test_what_a_ranker_remembers_serves_every_call(mini: Ranker) -> None:
    strategy: Any = STRATEGIES.make("sliding:size=4,step=2", mini)
    documents = [Document(text) for text in MANY]
    expected = strategy.rank(QUERY, MANY)
    remembered = strategy.remember(documents, 1 << 28)
    try:
        assert remembered == mini.can_reuse
        assert strategy.rank(QUERY, MANY).doc_ids == expected.doc_ids
    finally:
        strategy.forget()
    assert mini.model.store is None
