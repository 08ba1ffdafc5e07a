"""Timeouts for everything that a client can make the server wait for, and a limit on the number of connections.

uvicorn waits without limit for a header, for the rest of an unwanted body and for a client to read its answer, and it
parses everything from one read at once. `Connection` is its protocol class plus the state that a watcher needs;
`Connections` checks all of them twice a second.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from typing import Any, Literal

import h11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from blockrank.serve.metrics import Ending, Metrics
from blockrank.serve.settings import CROWDED, ServeSettings

_log = logging.getLogger(__name__)
# Events of one connection in an iteration of the event loop. A body may come in chunks of one byte, 40,000 in a read:
# parsed at once they block all other connections for a third of a second.
_EVENTS_A_TURN = 256
_LEAST_PROGRESS = 64 << 10  # bytes of an answer that must be sent within the write timeout
_UNWANTED_BODY_S = 5.0  # for the rest of a body after its answer was sent
# Connections beyond the limit that get 503 or, for a probe, its answer. Further ones are closed at once.
_RESERVE = 32
# File descriptors reserved for sockets accepted but not yet counted, and for files that a forward or an import opens.
_SPARE_DESCRIPTORS = 24
Waiting = Literal["idle", "header", "body", "write"]


class Connections:
    """All connections of a server and their timeouts. Used from its event loop."""

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._limit, self._reserve = connection_limits(settings.max_connections)
        self._unparsed: deque[Connection] = deque()
        self._open: dict[Connection, None] = {}  # oldest wait first
        metrics.watch(
            {
                "connections": ("Open connections.", lambda: float(len(self._open))),
                "unsent_bytes": ("Bytes of answers that clients have not read.", lambda: float(self.unsent)),
            },
            {},
        )

    @property
    def unsent(self) -> int:
        """Bytes of answers that clients have not read."""
        return sum(connection.unsent for connection in [*self._open])

    def add(self, connection: Connection) -> bool:
        """Add a new connection; one over the limit takes another's place. Returns whether it is within the limit."""
        displaced = self._waited_for_longest() if len(self._open) >= self._limit else None
        self._open[connection] = None
        if displaced is not None:
            self.end(displaced, "full")
        elif len(self._open) > self._limit + self._reserve:
            self.end(connection, "full")
        return len(self._open) <= self._limit

    def _waited_for_longest(self) -> Connection | None:
        """The connection to end first among those not being served: one before its request, else one with a part of its
        body, else one that does not read its answer."""
        found: dict[Waiting, Connection] = {}
        for connection in self._open:
            waits_for = connection.waits_for
            if waits_for in ("idle", "header"):
                return connection
            if waits_for is not None:
                found.setdefault(waits_for, connection)
        return found.get("body") or found.get("write")

    def touch(self, connection: Connection) -> None:
        """A connection begins to be waited for now."""
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None

    def discard(self, connection: Connection) -> None:
        """A connection has ended."""
        self._open.pop(connection, None)

    def end(self, connection: Connection, why: Ending) -> None:
        """End a connection, whatever is under way on it."""
        self._open.pop(connection, None)
        self._metrics.ended(why)
        if why in ("full", "write"):
            _log.warning("a connection was ended: %s", _WHY[why])
        connection.abort(told=why == "header")

    def parse_later(self, connection: Connection) -> None:
        """Queue a connection with more to parse: one connection is parsed in each iteration of the event loop.

        After each, parsing pauses for as long as it took: it holds the GIL, which a forward needs often.
        """
        self._unparsed.append(connection)
        if len(self._unparsed) == 1:
            connection.loop.call_soon(self._parse_one)

    def _parse_one(self) -> None:
        connection = self._unparsed[0]
        loop, started = connection.loop, connection.loop.time()
        try:
            connection.parse_on()
        except Exception:
            _log.exception("a connection could not be parsed")
            connection.transport.abort()
        self._unparsed.popleft()
        if self._unparsed:
            loop.call_later(loop.time() - started, self._parse_one)

    def sweep(self, now: float) -> None:
        """End connections past their timeouts, and, where too much is unsent, those that have made no progress for
        longest."""
        for connection in [*self._open]:
            waits_for = connection.waits_for
            if waits_for == "write":
                if now - connection.moved(now) > self._settings.write_timeout_s:
                    self.end(connection, "write")
            elif waits_for is not None and now - connection.since > self._seconds_for(waits_for, connection):
                self.end(connection, waits_for)
        standing = sorted((each for each in self._open if each.unsent), key=lambda each: each.moved(now))
        unsent = sum(connection.unsent for connection in standing)
        while unsent > self._settings.max_unsent_bytes:
            longest = standing.pop(0)
            unsent -= longest.unsent
            self.end(longest, "write")

    def _seconds_for(self, waits_for: Waiting, connection: Connection) -> float:
        if waits_for == "body":
            return _UNWANTED_BODY_S if connection.is_answered else float("inf")  # else the application has a deadline
        if waits_for == "idle" and connection.is_answered:
            return self._settings.idle_timeout_s
        return self._settings.header_timeout_s


_WHY = {
    "full": "there are as many as this server takes.",
    "write": "its client did not read the answer.",
}


class Connection(H11Protocol):
    """uvicorn's protocol, with what it waits for and since when."""

    def __init__(self, connections: Connections, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.conn: _Parser = _Parser(h11.SERVER)
        self._all = connections
        self.since = self.loop.time()  # when its present wait began
        self._unsent_mark, self._moved = 0, self.since

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self.flow = self._flow = _Flow(transport)
        if not self._all.add(self):
            self.app_state = {**self.app_state, CROWDED: True}

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._all.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self.waits_for == "idle":
            self._begin_to_wait()
        super().data_received(data)

    def handle_events(self) -> None:
        """Parse the received bytes: some now, the rest in later turns; reading pauses until then."""
        self.conn.left = _EVENTS_A_TURN
        super().handle_events()
        if self.conn.left == 0 and not self.transport.is_closing():
            self._flow.hold()
            self._all.parse_later(self)

    def parse_on(self) -> None:
        """Parse more of what has arrived."""
        self._flow.release()
        if not self.transport.is_closing():
            self.handle_events()

    def on_response_complete(self) -> None:
        """An answer was sent: the client has read the one before it, since uvicorn waits for that."""
        self._unsent_mark = 0
        self._begin_to_wait()
        super().on_response_complete()

    def _begin_to_wait(self) -> None:
        self.since = self.loop.time()
        self._all.touch(self)

    def shutdown(self) -> None:
        """The server ends."""
        try:
            super().shutdown()
        except h11.LocalProtocolError:  # the client did not send HTTP
            self.transport.close()

    @property
    def is_answered(self) -> bool:
        """Whether there was a request, and its answer is out."""
        return self.cycle is not None and self.cycle.response_complete

    @property
    def unsent(self) -> int:
        """Bytes of answers that the client has not read."""
        return 0 if self.transport is None else int(self.transport.get_write_buffer_size())

    @property
    def waits_for(self) -> Waiting | None:
        """What the server is waiting for from the client; None while a request is being served."""
        if self.unsent:
            return "write"
        if self.cycle is not None and not self.cycle.response_complete:
            return "body" if self.cycle.more_body else None
        if self.conn.their_state is h11.IDLE:
            return "header" if self.conn.trailing_data[0] else "idle"
        return "body"

    def moved(self, now: float) -> float:
        """When an unfinished answer last made progress of at least `_LEAST_PROGRESS` bytes; called at every sweep."""
        unsent = self.unsent
        if not self._unsent_mark or unsent <= self._unsent_mark - _LEAST_PROGRESS:
            self._unsent_mark, self._moved = unsent, now
        return self._moved

    def abort(self, *, told: bool) -> None:
        """Close it at once; `told`: first answer that its header took too long."""
        if self.transport.is_closing() and not self.unsent:
            return
        if told and self.conn.our_state is h11.IDLE:
            headers = [(b"content-length", b"0"), (b"connection", b"close")]
            answer = h11.Response(status_code=408, headers=headers, reason=STATUS_PHRASES[408])
            self.transport.write((self.conn.send(answer) or b"") + (self.conn.send(h11.EndOfMessage()) or b""))
            self.transport.close()
        else:
            self.transport.abort()


class _Parser(h11.Connection):
    """h11's parser, limited to `left` events."""

    left = _EVENTS_A_TURN

    def next_event(self) -> Any:
        """See `h11.Connection`."""
        if self.left == 0:
            return h11.NEED_DATA
        self.left -= 1
        return super().next_event()


class _Flow(FlowControl):
    """uvicorn's flow control, which also pauses reading until all earlier bytes are parsed."""

    _held = False

    def hold(self) -> None:
        """Read nothing until `release`."""
        self.pause_reading()
        self._held = True

    def release(self) -> None:
        """Read again."""
        self._held = False
        self.resume_reading()

    def resume_reading(self) -> None:
        """Read on, unless held."""
        if not self._held:
            super().resume_reading()


def connection_limits(wanted: int) -> tuple[int, int]:
    """The limit of connections and the reserve beyond it: as wanted, or fewer if the system allows fewer
    descriptors."""
    try:
        import resource
    except ImportError:  # no limit of this kind on this system
        return wanted, _RESERVE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = _SPARE_DESCRIPTORS + _open_descriptors()
    needed = wanted + _RESERVE + taken
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted, _RESERVE
    raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    except (OSError, ValueError):
        raised = soft
    if raised == needed:
        return wanted, _RESERVE
    room = max(raised - taken, 2)
    reserve = max(min(_RESERVE, room // 4), 1)
    _log.warning("%d descriptors are allowed: at most %d connections are served", raised, room - reserve)
    return room - reserve, reserve


def _open_descriptors() -> int:
    """How many descriptors are open, or a guess."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 16
