"""What a request took goes when it ends, also where no garbage is collected: an idle server collects none."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import socket
import sys
import weakref
from collections.abc import Callable, Iterator
from threading import Thread

import pytest
from serving import PATIENCE_S, Running, device_lost, not_finite, out_of_memory, running, wait_until

from blockrank import Ranker, RankRequest
from blockrank.serve.memory import resident_bytes, trim
from blockrank.serve.settings import ServeSettings

ASKED = {"query": "who is left", "documents": [f"{number} " + "so many words " * 20 for number in range(20)]}
SOON = {"x-request-timeout-ms": "300"}
Play = Callable[[Running], int]


class Watched:
    """Counts the requests that are in memory, and logs nothing: pytest keeps every record with its error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[weakref.ref[RankRequest]] = []
        seen = self.seen

        class Request(RankRequest):
            __slots__ = ("__weakref__",)

            def __post_init__(self) -> None:
                super().__post_init__()
                seen.append(weakref.ref(self))

        monkeypatch.setattr("blockrank.serve.calls.RankRequest", Request)
        monkeypatch.setattr(logging.getLogger("blockrank.serve.worker"), "disabled", True)

    @property
    def kept(self) -> int:
        return sum(each() is not None for each in self.seen)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """Without the garbage collector."""
    found = Watched(monkeypatch)
    gc.disable()
    yield found
    gc.enable()


def ranked(server: Running) -> int:
    return int(server.post(body=ASKED).status_code)


def failing(failure: Callable[..., None]) -> Play:
    def play(server: Running) -> int:
        server.gate.failure = failure
        return ranked(server)

    return play


def a_fault(_: object) -> None:
    raise KeyError("inside")


def late(server: Running) -> int:
    """Its time is over while a device works for it."""
    server.gate.close()
    status = server.post(body=ASKED, headers=SOON).status_code
    server.gate.open.set()
    return int(status)


@contextlib.contextmanager
def behind_another(server: Running) -> Iterator[None]:
    server.gate.close()
    other = Thread(target=server.post)
    other.start()
    server.gate.hold()
    yield
    server.gate.open.set()
    other.join(PATIENCE_S)


def late_in_the_queue(server: Running) -> int:
    with behind_another(server):
        return int(server.post(body=ASKED, headers=SOON).status_code)


def leave(server: Running, reached: Callable[[], bool]) -> int:
    """Ask, and close the connection once the request is where it is to be."""
    content = json.dumps(ASKED).encode()
    head = b"POST /v1/rerank HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        connection.sendall(head + b"content-length: %d\r\n\r\n" % len(content) + content)
        wait_until(reached)
    wait_until(lambda: server.metric('blockrank_rejections_total{cause="disconnect"}') == 1)
    return 499


def left(server: Running) -> int:
    server.gate.close()
    status = leave(server, server.gate.entered.is_set)
    server.gate.open.set()
    return status


def left_in_the_queue(server: Running) -> int:
    with behind_another(server):
        return leave(server, lambda: server.metric("blockrank_queue_requests") == 1)


OUTCOMES: dict[str, tuple[Play, int]] = {
    "ranked": (ranked, 200),
    "a fault": (failing(a_fault), 500),
    "not finite": (failing(not_finite), 500),
    "memory": (failing(out_of_memory(0)), 503),
    "device lost": (failing(device_lost), 503),
    "late": (late, 504),
    "late in the queue": (late_in_the_queue, 504),
    "left": (left, 499),
    "left in the queue": (left_in_the_queue, 499),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_no_request_outlives_its_answer(mini: Ranker, watched: Watched, name: str) -> None:
    """Neither in a cycle of references nor in the hands of a thread that waits for the next one."""
    play, status = OUTCOMES[name]
    with running(mini) as server:
        assert play(server) == status
        wait_until(lambda: not watched.kept)
    assert watched.seen


@pytest.mark.parametrize("status", [200, 503])
def test_no_request_in_pieces_outlives_its_answer(mini: Ranker, watched: Watched, status: int) -> None:
    with running(mini, ServeSettings(batch_tokens=256)) as server:
        server.gate.failure = out_of_memory(0) if status == 503 else None
        assert ranked(server) == status
        wait_until(lambda: not watched.kept)
    assert watched.seen


def test_resident_memory_comes_back_after_large_requests(mini: Ranker, watched: Watched) -> None:
    """Of four requests of 8 MB less than two stay, where all of them would."""
    if not sys.platform.startswith("linux"):
        pytest.skip("resident memory is read from /proc")
    large = json.dumps({"query": "sea", "documents": [f"{number} " + "x" * 190_000 for number in range(40)]})

    def resident(count: int) -> int:
        for _ in range(count):
            assert server.client.post("/v1/rerank", content=large).status_code == 200
        wait_until(lambda: not watched.kept)
        trim()
        return resident_bytes()

    with running(mini) as server:
        before = resident(2)  # keys and tokens of these documents stay
        assert resident(4) - before < 2 * len(large)
