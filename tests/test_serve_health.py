"""The server over a socket: readiness and keys."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import PATIENCE_S
from serving import QUERY, TEXTS, Running, device_lost, not_finite, running, wait_until

from blockrank import AttentionScorer, ModelError, Ranker
from blockrank.serve.settings import OPEN_PATHS, ServeSettings

KEY = "correct-horse"


def test_readiness(mini: Ranker) -> None:
    """503 while loading, 200, 503 after a lost device."""
    loaded, told = threading.Event(), list[str]()

    with running(mini, load=None, wait=False, on_failure=told.append) as server:
        wait_until(lambda: server.client.get("/readyz").status_code == 200)
        assert server.client.get("/health").json() == {"status": "ready"}
        server.gate.failure = device_lost
        lost = server.post("/rerank", {"query": QUERY, "texts": TEXTS})
        assert (lost.status_code, lost.json()["error_type"]) == (503, "Unhealthy")
        for path in ("/readyz", "/health", "/livez"):
            answer = server.client.get(path)
            assert (answer.status_code, answer.json()["status"]) == (503, "failed")
        assert server.post().status_code == 503
        assert "illegal memory access" in told[0]

    def load() -> list[Ranker]:
        assert loaded.wait(PATIENCE_S)
        return [Ranker(mini.model)]

    with running(mini, load=load, wait=False) as server:
        answer = server.client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "loading")
        assert server.client.get("/livez").status_code == 200
        refused = server.post()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        tei = server.post("/rerank", {"query": QUERY, "texts": TEXTS})
        assert (tei.status_code, tei.json()) == (
            503,
            {"error": "the model is being loaded.", "error_type": "Unhealthy"},
        )
        loaded.set()
        wait_until(lambda: server.client.get("/readyz").status_code == 200)
        assert server.post().status_code == 200


def test_readiness_comes_from_a_recent_forward(mini: Ranker) -> None:
    """An idle device runs one of its own; a stalled forward, and a device that fails it, are told."""
    with running(mini, ServeSettings(ready_s=0.3, stall_s=0.4)) as server, ThreadPoolExecutor(1) as pool:
        before = len(server.gate.requests)
        wait_until(lambda: len(server.gate.requests) > before)
        server.gate.close()
        held = pool.submit(server.post)
        server.gate.hold()
        wait_until(lambda: server.client.get("/readyz").json()["status"] == "stalled")
        server.gate.open.set()
        assert held.result().status_code == 200
        assert server.client.get("/readyz").status_code == 200
        server.gate.failure = not_finite
        wait_until(lambda: server.client.get("/readyz").json()["status"] == "stale")
        server.gate.failure = None
        wait_until(lambda: server.client.get("/readyz").status_code == 200)


def test_loading_that_fails_is_told(mini: Ranker) -> None:
    told: list[str] = []

    def load() -> list[Ranker]:
        raise ModelError("the checkpoint is no checkpoint.")

    with running(mini, load=load, wait=False, on_failure=told.append) as server:
        wait_until(lambda: server.client.get("/livez").status_code == 503)
        assert server.post().status_code == 503
    assert told == ["the checkpoint is no checkpoint."]


def test_a_model_that_yields_nan_is_never_ready(mini: Ranker) -> None:
    told: list[str] = []

    class Broken(AttentionScorer):
        name = "broken"

        def read(self, model: Any, layout: Any, *, evidence: bool = False) -> Any:
            return not_finite(layout)

    with running(mini, load=lambda: [Ranker(mini.model, Broken())], wait=False, on_failure=told.append) as server:
        wait_until(lambda: server.client.get("/livez").status_code == 503)
    assert "not finite" in told[0]


# Keys


@pytest.fixture(scope="module")
def guarded(mini: Ranker) -> Iterator[Running]:
    with running(mini, ServeSettings(keys=("first", KEY))) as found:
        yield found


def test_auth_matrix(guarded: Running) -> None:
    """Every route and method, unknown ones too, answers 401 without the key; only the open ones do not."""
    paths = [str(getattr(route, "path", "")) for route in guarded.routes]
    assert {"/v1/rerank", "/v2/rerank", "/rerank", "/v1/models", "/health", "/metrics", "/openapi.json"} < {*paths}
    paths += ["/docs", "/", "/nope", "/v1/../livez", "/livez/", "//livez", "/LIVEZ", "/livez%2f"]
    wrong = ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"]
    for path in paths:
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
            for header in wrong:
                answer = raw(guarded, method, path, header)
                assert (answer[0] == 401) == (path not in OPEN_PATHS), (method, path, header, answer)
            for key in (KEY, "first"):
                assert raw(guarded, method, path, f"Bearer {key}")[0] != 401, (method, path)
    assert raw(guarded, "POST", "/v2/rerank", "")[1]["www-authenticate"] == "Bearer"
    assert guarded.post("/v2/rerank").json()["message"].startswith("this server needs a key")
    assert guarded.post(headers={"authorization": f"bearer {KEY}"}).status_code == 200


def raw(server: Running, method: str, path: str, authorization: str) -> tuple[int, dict[str, str]]:
    """A request whose path nobody tidies."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, headers={"Authorization": authorization} if authorization else {})
        answer = connection.getresponse()
        answer.read()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def test_a_key_that_is_no_ascii_is_refused(guarded: Running) -> None:
    answer = guarded.client.get("/v1/models", headers={b"authorization": "Bearer schlüssel".encode()})
    assert answer.status_code == 401
