"""The server over a socket: load, clients that leave, deadlines, faults of the device."""

from __future__ import annotations

import json
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from conftest import EXHAUSTED
from serving import BODY, QUERY, TEXTS, Gate, Running, not_finite, out_of_memory, running, wait_until

from blockrank import Ranker
from blockrank.serve.settings import ServeSettings


def test_429_under_load_and_recovery(mini: Ranker) -> None:
    settings = ServeSettings(max_queue_tokens=100)
    with running(mini, settings) as server, ThreadPoolExecutor(24) as pool:
        server.gate.close()
        held = pool.submit(server.post)
        server.gate.hold()
        answers = [pool.submit(server.post) for _ in range(20)]
        wait_until(lambda: sum(answer.done() for answer in answers) > 10)
        refused = [answer.result() for answer in answers if answer.done()]
        assert {answer.status_code for answer in refused} == {429}
        assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
        tei = server.post("/rerank", {"query": QUERY, "texts": TEXTS})
        assert tei.json()["error_type"] == "Overloaded"
        server.gate.open.set()
        assert held.result().status_code == 200
        assert {answer.result().status_code for answer in answers} == {200, 429}
        assert server.post().status_code == 200
        assert server.metric("blockrank_tokens_under_way") == 0
        assert server.metric('blockrank_rejections_total{cause="overload"}') >= 11


def test_requests_are_bounded_too(mini: Ranker) -> None:
    with running(mini, ServeSettings(max_requests=2)) as server, ThreadPoolExecutor(2) as pool:
        server.gate.close()
        held = [pool.submit(server.post) for _ in range(2)]
        wait_until(lambda: server.service.under_way == 2)
        assert server.post().status_code == 429
        server.gate.open.set()
        assert [answer.result().status_code for answer in held] == [200, 200]


def test_bodies_are_bounded_together(mini: Ranker) -> None:
    """Bodies that fit alone do not fit together: the second is refused while the first is under way, not after it."""
    size = len(json.dumps(BODY))
    with running(mini, ServeSettings(max_bytes=size + 10)) as server, ThreadPoolExecutor(1) as pool:
        server.gate.close()
        held = pool.submit(server.post)
        server.gate.hold()
        refused = server.post()
        assert (refused.status_code, "retry-after" in refused.headers) == (429, True)
        assert "bytes are here and the limit is" in refused.text
        server.gate.open.set()
        assert held.result().status_code == 200
        assert server.post().status_code == 200
    with running(mini, ServeSettings(max_bytes=1)) as server:
        assert server.post().status_code == 200, "one body alone is under its own limit"


def test_a_request_over_the_queue_s_limit_runs_alone(mini: Ranker) -> None:
    with running(mini, ServeSettings(max_queue_tokens=1)) as server:
        assert server.post().status_code == 200


def leave(server: Running) -> None:
    """Send a request and hang up once the server has it."""
    before = server.service.under_way
    body = json.dumps(BODY).encode()
    head = f"POST /v1/rerank HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head + body)
        wait_until(lambda: server.service.under_way > before)


def test_disconnect_frees_the_slot(mini: Ranker) -> None:
    with running(mini, ServeSettings(max_requests=2)) as server, ThreadPoolExecutor(1) as pool:
        server.gate.close()
        held = pool.submit(server.post)
        server.gate.hold()
        server.gate.requests.clear()
        leave(server)
        wait_until(lambda: server.service.under_way == 1)
        assert server.metric('blockrank_rejections_total{cause="disconnect"}') == 1
        assert server.metric("blockrank_queue_requests") == 0
        server.gate.open.set()
        assert held.result().status_code == 200
        assert server.post().status_code == 200
        assert server.gate.requests == [1], "nothing was spent on who had left"
        assert server.metric("blockrank_tokens_under_way") == 0


def test_deadline(mini: Ranker) -> None:
    with running(mini) as server, ThreadPoolExecutor(1) as pool:
        server.gate.close()
        held = pool.submit(server.post)
        server.gate.hold()
        server.gate.requests.clear()
        late = server.post("/v2/rerank", headers={"x-request-timeout-ms": "100"})
        assert late.status_code == 504
        assert "time allowed" in late.json()["message"]
        assert not held.done(), "its own limit is the server's"
        server.gate.open.set()
        assert held.result().status_code == 200
        wait_until(lambda: server.metric("blockrank_tokens_under_way") == 0)
        assert server.post().status_code == 200
        assert server.gate.requests == [1], "nothing was spent on what was late"
        assert server.post(headers={"x-request-timeout-ms": "soon"}).status_code == 400


def test_the_servers_own_deadline(mini: Ranker) -> None:
    with running(mini, ServeSettings(timeout_s=0.3)) as server:
        server.gate.close()
        assert server.post().status_code == 504
        server.gate.open.set()
        wait_until(lambda: server.metric("blockrank_tokens_under_way") == 0)


def test_every_device_takes_requests(mini: Ranker) -> None:
    """Two devices: while one is held, the other serves."""
    other = Gate()
    gates: list[Gate] = []

    def load() -> list[Ranker]:
        gates[:] = [Gate(), other]
        return [Ranker(mini.model, gate) for gate in gates]

    with running(mini, load=load) as server, ThreadPoolExecutor(16) as pool:
        for gate in gates:
            gate.requests.clear()
        gates[0].close()
        answers: list[Future[Any]] = []

        def both_took_some() -> bool:
            """Asks once more, until both did: either may be quick enough to take the first few alone."""
            answers.append(pool.submit(server.post))
            return any(answer.done() for answer in answers) and gates[0].entered.is_set()

        wait_until(both_took_some)
        assert server.post().status_code == 200
        assert other.requests
        gates[0].open.set()
        assert {answer.result().status_code for answer in answers} == {200}
        assert sum(sum(gate.requests) for gate in gates) == len(answers) + 1, "exactly once"


# Faults


def test_nan_is_a_500_with_its_cause(mini: Ranker) -> None:
    with running(mini) as server:
        server.gate.failure = not_finite
        answer = server.post()
        assert answer.status_code == 500
        assert "the model's scores are not finite" in answer.json()["detail"]
        assert "results" not in answer.json()
        server.gate.failure = None
        assert server.post().status_code == 200
        assert server.metric('blockrank_rejections_total{cause="not_finite"}') == 1


@pytest.mark.parametrize("kind", EXHAUSTED)
def test_out_of_memory_halves_then_503(mini: Ranker, kind: str) -> None:
    with running(mini) as server, ThreadPoolExecutor(8) as pool:
        server.gate.failure = out_of_memory(3, kind)
        server.gate.close()
        answers = [pool.submit(server.post)]
        server.gate.hold()
        answers += [pool.submit(server.post) for _ in range(7)]
        wait_until(lambda: server.metric("blockrank_queue_requests") == 7)
        server.gate.open.set()
        assert {answer.result().status_code for answer in answers} == {200}
        assert [*server.gate.requests][-1] == 1
        large = server.post("/rerank", {"query": QUERY, "texts": [*TEXTS, "one more"]})
        assert (large.status_code, large.json()["error_type"]) == (503, "Backend")
        assert "do not fit into the memory of cpu" in large.json()["error"]
        assert server.post().status_code == 200
        assert server.client.get("/readyz").status_code == 200


def test_one_request_s_fault_is_its_own(mini: Ranker) -> None:
    def fails(layout: Any) -> None:
        if 4 in [int((layout.document_request_C == i).sum()) for i in range(layout.requests)]:
            raise RuntimeError("a kernel that dislikes four")

    with running(mini) as server, ThreadPoolExecutor(4) as pool:
        server.gate.close()
        first = pool.submit(server.post)
        server.gate.hold()
        server.gate.failure = fails
        good = [pool.submit(server.post) for _ in range(2)]
        bad = pool.submit(server.post, body={**BODY, "documents": [*TEXTS, "d"]})
        wait_until(lambda: server.metric("blockrank_queue_requests") == 3)
        server.gate.open.set()
        assert [answer.result().status_code for answer in (first, *good)] == [200] * 3
        assert bad.result().status_code == 500
        assert "dislikes" not in bad.result().text, "what is inside stays in the log"
