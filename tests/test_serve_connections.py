"""Connections of the server: what ends them, how many there may be, and bodies that are not wanted."""

from __future__ import annotations

import http.client
import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import h11
import pytest
from serving import BODY, QUERY, Running, running, wait_until

from blockrank import Ranker
from blockrank.serve import connections
from blockrank.serve.settings import ServeSettings

HEAD = b"POST /v1/rerank HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
LARGE = json.dumps({"query": QUERY, "documents": [f"sea {i} " + "x" * 190_000 for i in range(4)]}).encode()
LARGE_REQUEST = HEAD + f"content-length: {len(LARGE)}\r\n\r\n".encode() + LARGE
PROBE = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"


@contextmanager
def connected(server: Running, **options: int) -> Iterator[socket.socket]:
    with socket.socket() as found:
        for name, value in options.items():
            found.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        found.settimeout(10)
        found.connect(("127.0.0.1", server.port))
        yield found


def rest(connection: socket.socket) -> bytes:
    """What comes until the server hangs up."""
    found = b""
    try:
        while piece := connection.recv(1 << 16):
            found += piece
    except ConnectionResetError:
        pass
    return found


def status(connection: socket.socket) -> int:
    """The status of the next answer, which is read to its end."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer.status


def drip(connection: socket.socket) -> None:
    """Send a byte now and then until something comes back, for twenty seconds at most."""
    for _ in range(400):
        connection.sendall(b"x")
        if select.select([connection], [], [], 0.05)[0]:
            return


def ended(server: Running, cause: str) -> float:
    return server.metric(f'blockrank_connections_ended_total{{cause="{cause}"}}')


@pytest.fixture(scope="module")
def impatient(mini: Ranker) -> Iterator[Running]:
    settings = ServeSettings(
        header_timeout_s=0.3, idle_timeout_s=0.6, write_timeout_s=1, body_timeout_s=2, max_body_bytes=8 << 20,
        max_document_chars=1 << 20,
    )  # fmt: skip
    with running(mini, settings, headers={"connection": "close"}, send_buffer=1 << 14) as found:
        yield found


# Deadlines


@pytest.mark.parametrize(
    ("sent", "answer", "cause"),
    [
        (b"", b"", "idle"),
        (b"GET /livez HT", b"HTTP/1.1 408 ", "header"),
        (b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: ", b"HTTP/1.1 408 ", "header"),
        (PROBE, b"HTTP/1.1 200 ", "idle"),
        (PROBE + b"GET /li", b"HTTP/1.1 200 ", "header"),
    ],
    ids=["nothing", "half a line", "half a header", "a request", "a request and a half"],
)
def test_a_connection_that_is_left_ends(impatient: Running, sent: bytes, answer: bytes, cause: str) -> None:
    before = ended(impatient, cause)
    with connected(impatient) as connection:
        connection.sendall(sent)
        assert rest(connection).startswith(answer)
    assert answer[9:12] == b"200" or ended(impatient, cause) == before + 1
    assert impatient.post().status_code == 200


def test_bytes_one_by_one_do_not_put_a_header_off(impatient: Running) -> None:
    with connected(impatient) as connection:
        started = time.monotonic()
        drip(connection)
        assert time.monotonic() - started < 15


def test_a_body_that_drips_ends(impatient: Running) -> None:
    with connected(impatient) as connection:
        connection.sendall(HEAD + b"content-length: 100000\r\n\r\n")
        drip(connection)
        assert status(connection) == 408


def test_an_answer_that_is_not_read_is_dropped(impatient: Running) -> None:
    """It stands still for the time allowed; one that is read on, however slowly, arrives."""
    before = ended(impatient, "write")
    with connected(impatient, SO_RCVBUF=4096) as connection:
        connection.sendall(LARGE_REQUEST)
        wait_until(lambda: impatient.metric("blockrank_unsent_bytes") > 0, 30)
        wait_until(lambda: impatient.metric("blockrank_unsent_bytes") == 0, 30)
        assert ended(impatient, "write") == before + 1
    with connected(impatient, SO_RCVBUF=1 << 16) as connection:
        connection.sendall(LARGE_REQUEST)
        found = b""
        while len(found) < len(LARGE):
            found += connection.recv(1 << 16)
            time.sleep(0.1)
        assert found.startswith(b"HTTP/1.1 200 ")
    assert ended(impatient, "write") == before + 1


def test_answers_that_are_not_read_have_a_limit_together(mini: Ranker) -> None:
    """The one that has stood still longest goes first, and what is sent now is not touched."""
    settings = ServeSettings(max_unsent_bytes=3 << 19)
    with running(mini, settings, send_buffer=1 << 14) as server, ExitStack() as held:
        for _ in range(4):
            connection = held.enter_context(connected(server, SO_RCVBUF=4096))
            connection.sendall(LARGE_REQUEST)
        wait_until(lambda: ended(server, "write") >= 2, 30)
        assert 0 < server.metric("blockrank_unsent_bytes") <= 3 << 19
        assert server.post().status_code == 200


# How many


def test_a_connection_more_takes_the_place_of_the_one_waited_for_longest(mini: Ranker) -> None:
    with running(mini, ServeSettings(max_connections=4)) as server, ExitStack() as held:
        opened = [held.enter_context(connected(server)) for _ in range(12)]
        wait_until(lambda: ended(server, "full") >= 8)
        assert server.post().status_code == 200
        assert rest(opened[0]) == b""
        assert server.metric("blockrank_connections ") <= 4


def test_where_all_are_served_probes_are_answered_and_others_refused(mini: Ranker) -> None:
    settings = ServeSettings(max_connections=3)
    with running(mini, settings) as server, ExitStack() as held:
        server.client.close()  # its connection would count
        server.gate.close()
        busy = [held.enter_context(connected(server)) for _ in range(3)]
        body = json.dumps(BODY).encode()
        for connection in busy:
            connection.sendall(HEAD + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        server.gate.hold()
        wait_until(lambda: server.service.under_way == 3)
        with connected(server) as connection:
            connection.sendall(PROBE)
            assert status(connection) == 200
        with connected(server) as connection:
            connection.sendall(HEAD + f"content-length: {len(body)}\r\n\r\n".encode() + body)
            found = rest(connection)
        assert found.startswith(b"HTTP/1.1 503 ")
        assert b"all connections of this server are taken" in found
        assert b"retry-after: 1" in found
        server.gate.open.set()
        for connection in busy:
            assert status(connection) == 200


def test_slow_bodies_make_room(mini: Ranker) -> None:
    """A body that has not arrived is work for nobody yet."""
    with running(mini, ServeSettings(max_connections=4)) as server, ExitStack() as held:
        for _ in range(8):
            held.enter_context(connected(server)).sendall(HEAD + b"content-length: 1000\r\n\r\n{")
        wait_until(lambda: ended(server, "full") >= 4)
        assert server.post().status_code == 200


def test_there_are_fewer_connections_than_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    told: list[Any] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: told.append(limits))
    monkeypatch.setattr(connections, "_open_descriptors", lambda: 10)
    for (soft, hard), expected, raised in (
        ((100_000, 100_000), (1000, 32), None),
        ((256, 100_000), (1000, 32), 1066),
        ((256, resource.RLIM_INFINITY), (1000, 32), 1066),
        ((64, 64), (23, 7), 64),
        ((34, 34), (1, 1), 34),
        ((5, 5), (1, 1), 5),
    ):
        told.clear()
        monkeypatch.setattr(resource, "getrlimit", lambda _, found=(soft, hard): found)
        assert connections.connection_limits(1000) == expected
        assert [limits[0] for limits in told] == ([] if raised is None else [raised])


# Bodies that nobody wants


@pytest.mark.parametrize("expect", [b"", b"expect: 100-continue\r\n"])
@pytest.mark.parametrize("length", [8 * (1 << 20) + 1, 10**12, 10**19])
def test_a_body_over_the_limit_is_refused_by_its_length(impatient: Running, expect: bytes, length: int) -> None:
    """Before a byte of it has come, and without asking for it."""
    with connected(impatient) as connection:
        connection.sendall(HEAD + expect + f"content-length: {length}\r\n\r\n".encode())
        found = connection.recv(1 << 16)
        assert found.startswith(b"HTTP/1.1 413 ")  # 408 where it was waited for
        assert b"connection: close" in found.lower()
        assert b"100 Continue" not in found


def test_a_client_that_expects_to_continue_is_told_to(impatient: Running) -> None:
    body = json.dumps(BODY).encode()
    with connected(impatient) as connection:
        head = HEAD + f"expect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        connection.sendall(head)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert status(connection) == 200


def test_what_is_refused_without_its_body_leaves_the_connection_in_use(impatient: Running) -> None:
    """The answer is there before the body is; what is left of it is dropped, and the next request answered."""
    with connected(impatient) as connection:
        connection.sendall(b"POST /nope HTTP/1.1\r\nhost: localhost\r\ncontent-length: 200000\r\n\r\n")
        assert status(connection) == 404
        connection.sendall(b"x" * 200_000 + PROBE)
        assert status(connection) == 200


# Chunks


def test_tiny_chunks_are_read_in_turns(impatient: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body in chunks of one byte is a body; the event loop never parses more than some of them in a turn."""
    turns, seen = [0], list[int]()
    real_next, real_turn = connections._Parser.next_event, connections.Connection.handle_events

    def next_event(self: Any) -> Any:
        event = real_next(self)
        turns[0] += isinstance(event, h11.Data)
        return event

    def handle_events(self: Any) -> None:
        turns[0] = 0
        real_turn(self)
        seen.append(turns[0])

    monkeypatch.setattr(connections._Parser, "next_event", next_event)
    monkeypatch.setattr(connections.Connection, "handle_events", handle_events)
    body = json.dumps({**BODY, "documents": ["river " * 500, "sea"]}).encode()
    chunked = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in body) + b"0\r\n\r\n"
    with connected(impatient) as connection:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunked)
        assert status(connection) == 200
    assert sum(seen) == len(body)
    assert max(seen) <= connections._EVENTS_A_TURN
    assert len(seen) > 3


def test_chunks_over_the_limit_are_refused(impatient: Running) -> None:
    piece = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    with connected(impatient) as connection:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + 9 * piece)
        assert status(connection) == 413
