"""What a server is put through by `faults.py`: clients and bodies that aim at its limits, each with an end of its own.

All of it is meant for a server that the script has started on this machine.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from load import words

_LARGEST = 16 << 20  # bytes of a body that a server takes
_PATIENCE_S = 60.0
_HEAD = b"POST /v1/rerank HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
Statuses = Counter[str]
Play = Callable[[int], Statuses]


@dataclass(frozen=True)
class Attack:
    """A fault by name. play: given the port, does it, bounded in count and time, and says what came back; options: of
    the server; shell: what bash does before it starts; reads_log: whether anybody reads its standard error."""

    name: str
    play: Play
    options: tuple[str, ...] = ()
    shell: str = ""
    reads_log: bool = True


# Connections


@contextlib.contextmanager
def connections(port: int, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections on which these bytes are sent; those that are refused are left out."""
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            with contextlib.suppress(OSError):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S))
                connection.sendall(sent)
                opened.append(connection)
        yield opened


def hold(port: int, *, count: int, seconds: float, sent: bytes = b"", drip: bytes = b"") -> Statuses:
    """Hold connections open for a time, where asked sending a byte on each now and then."""
    with connections(port, count, sent) as opened:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.5)
            for connection in opened if drip else ():
                with contextlib.suppress(OSError):
                    connection.sendall(drip)
    return Counter()


def leave_unread(port: int, *, count: int, seconds: float) -> Statuses:
    """Ask for large answers and read none of them."""
    body = json.dumps({"query": "sea", "documents": [f"sea {i} " + "x" * 190_000 for i in range(80)]}).encode()
    head = _HEAD + f"content-length: {len(body)}\r\n\r\n".encode()
    with connections(port, 0) as opened, contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(_PATIENCE_S)
            with contextlib.suppress(OSError):
                connection.connect(("127.0.0.1", port))
                connection.sendall(head + body)
            opened.append(connection)
        time.sleep(seconds)
    return Counter()


def declare(port: int, *, count: int, expect: bytes = b"") -> Statuses:
    """Declare bodies of a terabyte, one after the other, and send nothing of them."""
    found: Statuses = Counter()
    for _ in range(count):
        with connections(port, 1, _HEAD + expect + b"content-length: 1000000000000\r\n\r\n") as opened:
            found += Counter(_first_status(connection) for connection in opened)
    return found


def send_more_than_declared(port: int, *, count: int) -> Statuses:
    """Send four times the limit in chunks, several at once."""
    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"

    def send(_: int) -> str:
        with connections(port, 1, _HEAD + b"transfer-encoding: chunked\r\n\r\n") as opened:
            for connection in opened:
                with contextlib.suppress(OSError):
                    for _ in range(64):
                        connection.sendall(chunk)
                return _first_status(connection)
        return "refused"

    return _at_once(count, send)


def tiny_chunks(port: int, *, count: int, size: int) -> Statuses:
    """Bodies in chunks of one byte, several at once."""
    body = json.dumps({"query": "sea", "documents": ["x" * size]}).encode()
    chunked = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"

    def send(_: int) -> str:
        with connections(port, 1, _HEAD + b"transfer-encoding: chunked\r\n\r\n") as opened:
            for connection in opened:
                with contextlib.suppress(OSError):
                    connection.sendall(chunked)
                return _first_status(connection)
        return "refused"

    return _at_once(count, send)


def pipeline(port: int, *, count: int, requests: int) -> Statuses:
    """Many small requests in one go, several at once, of which no answer is read."""
    sent = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n" * requests

    def send(_: int) -> str:
        with contextlib.suppress(OSError), connections(port, 1) as opened:
            opened[0].settimeout(5)
            opened[0].sendall(sent)
        return "sent"

    return _at_once(count, send)


def ask_for_nothing(port: int, *, count: int) -> Statuses:
    """Requests that are refused, each of which makes a line of the log."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    found: Statuses = Counter()
    for number in range(count):
        connection.request("POST", f"/none/{number}", b"{}", {"x-request-id": "x" * 120})
        answer = connection.getresponse()
        answer.read()
        found[str(answer.status)] += 1
    connection.close()
    return found


def _first_status(connection: socket.socket) -> str:
    """The status of the answer, or what happened instead."""
    try:
        line = connection.recv(1 << 16).split(b"\r\n", 1)[0].split()
        return line[1].decode() if len(line) > 1 else "closed"
    except OSError as error:
        return type(error).__name__


def _at_once(count: int, send: Callable[[int], str]) -> Statuses:
    with ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(send, range(count)))


# Bodies


def post(port: int, *, bodies: Callable[[], Sequence[bytes]]) -> Statuses:
    """Send bodies, all at once."""
    made = bodies()

    def send(number: int) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
        try:
            connection.request("POST", "/v1/rerank", made[number], {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            return str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            connection.close()

    return _at_once(len(made), send)


def documents(*texts: str) -> bytes:
    """A body with these documents."""
    return json.dumps({"query": "q", "documents": texts}).encode()


def filled(start: bytes, piece: bytes, end: bytes) -> bytes:
    """A body of the largest size: a piece again and again."""
    return start + piece * ((_LARGEST - len(start) - len(end)) // len(piece)) + end


def long_words() -> list[bytes]:
    """The largest request that makes sense: 1,000 documents of 16,000 characters."""
    generator = random.Random(0)
    texts = [words(generator, 2300)[:16_000] for _ in range(20)]
    return [documents(*(f"{number} {texts[number % 20]}"[:16_000] for number in range(1000)))]


def _names() -> list[bytes]:
    return [b"{" + b",".join(b'"%d":1' % number for number in range(_LARGEST // 13)) + b"}"]


_PARSING: dict[str, Callable[[], Sequence[bytes]]] = {
    "empty arrays": lambda: 2 * [filled(b'{"documents":[', b"[],", b"0]}")],
    "objects": lambda: [filled(b'{"documents":[', b'{"a":1},', b"0]}")],
    "names": _names,
    "one long name": lambda: [filled(b'{"', b"x", b'":1}')],
    "brackets": lambda: [b"[" * _LARGEST, b'{"query":' + b"[" * 900 + b"]" * 900 + b"}"],
    "one long number": lambda: [filled(b'{"query":"q","documents":["a"],"top_n":', b"1", b"}")],
    "empty texts": lambda: [filled(b'{"documents":[', b'"",', b'""]}')],
    "escapes": lambda: [filled(b'{"query":"', b"\\n", b'","documents":["a"]}')],
}
ATTACKS: tuple[Attack, ...] = (
    Attack("idle connections", partial(hold, count=1500, seconds=10)),
    Attack("half a header", partial(hold, count=500, seconds=10, sent=b"GET /livez HTTP/1.1\r\nhost: lo", drip=b"c")),
    Attack(
        "slow bodies", partial(hold, count=500, seconds=10, sent=_HEAD + b"content-length: 9999\r\n\r\n{", drip=b" ")
    ),
    Attack("unread answers", partial(leave_unread, count=24, seconds=20), ("--write-timeout", "10")),
    Attack("terabytes declared", partial(declare, count=200)),
    Attack("terabytes declared, 100-continue", partial(declare, count=200, expect=b"expect: 100-continue\r\n")),
    Attack("four times the limit", partial(send_more_than_declared, count=8)),
    Attack("tiny chunks", partial(tiny_chunks, count=8, size=150_000)),
    Attack("pipelined requests", partial(pipeline, count=8, requests=20_000)),
    Attack("no descriptors", partial(hold, count=31, seconds=10), shell="ulimit -n 34;"),
    Attack("unread log", partial(ask_for_nothing, count=3000), reads_log=False),
    *(Attack(f"parsing: {name}", partial(post, bodies=bodies)) for name, bodies in _PARSING.items()),
    Attack("control tokens", partial(post, bodies=lambda: 2 * [documents("[SEP]" * 5000, "b")]), ("--timeout", "5")),
    Attack("control tokens, long", partial(post, bodies=lambda: [documents("[SEP]" * 40_000)]), ("--timeout", "5")),
    Attack("dots", partial(post, bodies=lambda: [documents(*80 * ["." * 199_000])]), ("--timeout", "10")),
    Attack("long words", partial(post, bodies=long_words)),
)


def busy(port: int) -> Statuses:
    """Work for a server that is about to be told to end."""
    return post(port, bodies=lambda: [*long_words(), *2 * [documents("[SEP]" * 5000, "b")]])


def as_record(statuses: Statuses) -> dict[str, Any]:
    """Statuses in the order of their names."""
    return dict(sorted(statuses.items()))
