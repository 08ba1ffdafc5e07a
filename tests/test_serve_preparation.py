"""What threads do for a request before a device and after it: deadlines, lanes, and what happens to stuck threads."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from conftest import EXHAUSTED, exhaust
from serving import BODY, QUERY, TEXTS, Running, running, wait_until

from blockrank import Ranker, RankRequest
from blockrank.layout import PromptTokenizer, TokenisedRequest
from blockrank.serve.deadline import Deadline
from blockrank.serve.faults import Faults
from blockrank.serve.lanes import Lane
from blockrank.serve.metrics import Metrics
from blockrank.serve.preparation import new_trace
from blockrank.serve.refusals import Refusal
from blockrank.serve.settings import ServeSettings

LARGE = {"query": "held", "documents": ["word " * 10_000] * 6}  # 300 kB
FOREVER = 1e9


class Held:
    """Requests whose query is "held" stay in their thread until they are let go."""

    def __init__(self) -> None:
        self.let_go, self.begun = Event(), list[int]()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    found, tokenise = Held(), Ranker.tokenise

    def slowly(self: Ranker, request: RankRequest, *rest: Any, **options: Any) -> TokenisedRequest:
        if request.query == "held":
            found.begun.append(len(request.candidates))
            assert found.let_go.wait(30)
        return tokenise(self, request, *rest, **options)

    monkeypatch.setattr(Ranker, "tokenise", slowly)
    yield found
    found.let_go.set()


def at_rest(server: Running) -> bool:
    return server.metric("blockrank_reading_bytes") == 0 == server.metric("blockrank_tokens_under_way")


def test_the_deadline_is_kept_while_a_request_is_prepared(mini: Ranker, held: Held) -> None:
    with running(mini, ServeSettings(timeout_s=0.4)) as server:
        for path, body in (
            ("/v1/rerank", {**BODY, "query": "held"}),
            ("/v2/rerank", {**BODY, "query": "held"}),
            ("/rerank", {"query": "held", "texts": TEXTS}),
        ):
            started = time.monotonic()
            answer = server.post(path, body, headers={"x-request-timeout-ms": "200"} if path == "/rerank" else {})
            assert time.monotonic() - started < 5
            assert answer.status_code == 504
            assert "time allowed" in json.dumps(answer.json())
        assert answer.json()["error_type"] == "Backend", "in the words of the body's dialect"
        held.let_go.set()
        wait_until(lambda: at_rest(server))
        assert server.post().status_code == 200
        assert server.metric('blockrank_rejections_total{cause="deadline"}') == 3


def test_what_is_large_keeps_nothing_small_waiting_and_is_not_begun_late(mini: Ranker, held: Held) -> None:
    """All threads for large bodies are stuck: small requests are served, and others are not begun after their time."""
    with running(mini) as server, ThreadPoolExecutor(12) as pool:
        stuck = [pool.submit(server.post, body=LARGE) for _ in range(server.service._lanes.large._threads)]
        wait_until(lambda: len(held.begun) == len(stuck))
        late = server.post(body={**LARGE, "documents": ["word " * 60_000]}, headers={"x-request-timeout-ms": "100"})
        assert late.status_code == 504
        assert server.post().status_code == 200
        assert not any(answer.done() for answer in stuck)
        held.let_go.set()
        assert {answer.result().status_code for answer in stuck} == {200}
        wait_until(lambda: at_rest(server))
        assert 1 not in held.begun, "nothing was spent on what was late"


@pytest.mark.parametrize("body", [LARGE, {**BODY, "query": "held"}], ids=["large", "small"])
def test_threads_that_are_stuck_make_the_server_not_ready(mini: Ranker, held: Held, body: dict[str, Any]) -> None:
    with running(mini) as server, ThreadPoolExecutor(16) as pool:
        lane = server.service._lanes.of(len(json.dumps(body)))
        answers = [
            pool.submit(server.post, body=body, headers={"x-request-timeout-ms": "300"}) for _ in range(lane._threads)
        ]
        assert server.client.get("/readyz").status_code == 200
        assert {answer.result().status_code for answer in answers} == {504}
        wait_until(lambda: server.client.get("/readyz").json()["status"] == "stalled")
        assert server.client.get("/livez").status_code == 200
        assert server.service.is_busy
        held.let_go.set()
        wait_until(lambda: server.client.get("/readyz").status_code == 200)


def test_work_ends_between_documents_when_its_time_is_over(mini: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first group of documents takes longer than is allowed: the others are left."""
    groups, tokenise = list[int](), PromptTokenizer.tokenise

    def slowly(self: PromptTokenizer, texts: Any, *rest: Any, **options: Any) -> TokenisedRequest:
        groups.append(len(texts))
        time.sleep(0.3 if len(groups) == 1 else 0)
        return tokenise(self, texts, *rest, **options)

    with running(mini) as server:
        monkeypatch.setattr(PromptTokenizer, "tokenise", slowly)
        monkeypatch.setattr("blockrank.layout.tokens._GROUP_CHARACTERS", 40)
        body = {"query": QUERY, "documents": [f"{i} rivers and seas and lakes" for i in range(20)]}
        assert server.post(body=body, headers={"x-request-timeout-ms": "200"}).status_code == 504
        wait_until(lambda: at_rest(server) and not server.service._lanes.is_busy)
        assert len(groups) == 1
        groups.append(0)
        assert server.post(body=body).status_code == 200
        assert len(groups) > 20


def test_groups_change_no_token(mini: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    request = RankRequest(QUERY, [*TEXTS, "word " * 400, *TEXTS[:1]], evidence=True)
    whole, looks = mini.tokenise(request), list[int]()
    monkeypatch.setattr("blockrank.layout.tokens._GROUP_CHARACTERS", 40)
    parts = mini.tokenise(request, between=lambda: looks.append(1))
    assert len(looks) > 4
    for one, other in zip(whole.only.segments, parts.only.segments, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert (one.kind, one.body_tokens, one.cut) == (other.kind, other.body_tokens, other.cut)


# Lanes


class Token:
    """Something that can be asked whether it is still there."""


def test_a_lane_is_bounded_in_bytes_and_keeps_nothing_of_what_was_cancelled() -> None:
    lane, gate = Lane("test", 1, 100), Event()
    held = lane.submit(lambda: gate.wait(20), Deadline(FOREVER), 90)
    wait_until(lambda: lane.is_busy)
    token = Token()
    kept, waiting = weakref.ref(token), lane.submit(lambda token=token: token, Deadline(FOREVER), 10)  # type: ignore[misc]
    del token
    with pytest.raises(Refusal, match="bodies of 100 bytes wait to be read") as caught:
        lane.submit(lambda: None, Deadline(FOREVER), 1)
    assert (caught.value.status, 1 <= (caught.value.retry_after or 0) <= 60) == (429, True)
    lane.submit(lambda: None, Deadline(FOREVER)).cancel()
    assert waiting.cancel()
    assert (kept(), lane.waiting_bytes) == (None, 90)
    assert not lane.is_stalled(time.monotonic(), 60.0)
    assert lane.is_stalled(time.monotonic() + 61, 60.0)
    gate.set()
    assert held.result(10)
    wait_until(lambda: not lane.is_busy and lane.waiting_bytes == 0)
    assert lane.submit(lambda: "over the limit, alone", Deadline(FOREVER), 1000).result(10)
    for deadline, status in ((Deadline(0.0), 504), (Deadline(FOREVER, abandoned=True), 499)):
        with pytest.raises(Refusal) as caught:
            lane.submit(lambda: pytest.fail("it was begun"), deadline).result(10)
        assert caught.value.status == status
    lane.close()


class Marked(bytes):
    """A body that says whether it is still there."""

    token: Token


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"query": "a", "query": "b"}', 422),
        (b'{"query": "a"', 400),
        (json.dumps({**BODY, "documents": [""]}).encode(), 422),
        (json.dumps({**BODY, "query": "held"}).encode(), 504),
        (json.dumps(BODY).encode(), 200),
    ],
    ids=["twice", "no JSON", "empty", "late", "ranked"],
)
def test_no_body_outlives_its_request(mini: Ranker, held: Held, body: bytes, status: int) -> None:
    """Without the garbage collector: 16 MB of it would wait for a collection, which an idle server does not run."""
    marked = Marked(body)
    marked.token = Token()
    kept = weakref.ref(marked.token)
    with running(mini) as server:
        rank = server.service.rank("/v1/rerank", marked, new_trace("/v1/rerank", "1"), 0.2 if status == 504 else None)
        del marked
        gc.disable()
        try:
            future = asyncio.run_coroutine_threadsafe(rank, server.service._end.get_loop())
            del rank
            found = future.exception(20)
            assert (200 if found is None else found.status) == status  # type: ignore[attr-defined]
            del found, future
            held.let_go.set()
            wait_until(lambda: kept() is None)
        finally:
            gc.enable()


# Errors


@pytest.mark.parametrize("kind", [*EXHAUSTED, "a fault"])
def test_an_error_of_preparation_is_told_in_the_dialect(
    mini: Ranker, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        if kind in EXHAUSTED:
            exhaust(kind)
        raise KeyError("what is inside stays in the log")

    with running(mini) as server:
        monkeypatch.setattr("blockrank.serve.preparation.read_json", fail)
        status = 503 if kind in EXHAUSTED else 500
        words = "there is not enough memory" if kind in EXHAUSTED else "the server's log has more under"
        for path, body, name in (("/v1/rerank", BODY, "detail"), ("/v2/rerank", BODY, "message")):
            answer = server.post(path, body)
            assert (answer.status_code, words in answer.json()[name]) == (status, True)
            assert "stays" not in answer.text
        tei = server.post("/rerank", {"query": QUERY, "texts": TEXTS})
        assert (tei.status_code, tei.json()["error_type"]) == (status, "Backend")
        assert server.metric("blockrank_tokens_under_way") == 0


def test_an_error_of_another_route_is_told_too(mini: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("inside")

    with running(mini) as server:
        monkeypatch.setattr("blockrank.serve.app.models_body", fail)
        answer = server.client.get("/v1/models", headers={"x-request-id": "seven"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "internal")
        assert "seven" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_a_request_that_the_end_interrupts_is_told(path: str) -> None:
    """The server waits no longer and cancels what is under way: an answer in the dialect, not in plain text."""
    sent: list[Any] = []

    async def app(*_: Any) -> None:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    async def interrupt() -> None:
        scope = {"type": "http", "state": {"trace": new_trace(path, "1")}}
        task = asyncio.ensure_future(Faults(app, metrics=Metrics())(scope, app, send))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    asyncio.run(interrupt())
    assert sent[0]["status"] == 503
    assert b"shutting down" in sent[1]["body"]
    assert json.loads(sent[1]["body"])


def test_a_large_request_keeps_no_small_one_out(mini: Ranker) -> None:
    """One request over the whole limit is let in alone, and small ones beside it; another large one is not."""
    with running(mini, ServeSettings(max_queue_tokens=400, batch_tokens=300)) as server, ThreadPoolExecutor(2) as pool:
        large = {"query": "rivers", "documents": [f"{i} rivers and seas" for i in range(200)]}
        server.gate.close()
        first = pool.submit(server.post, body=large)
        wait_until(lambda: server.metric("blockrank_tokens_under_way") > 400)
        small = pool.submit(server.post)
        assert server.post(body=large).status_code == 429
        server.gate.open.set()
        assert [first.result().status_code, small.result().status_code] == [200, 200]
        wait_until(lambda: at_rest(server))
