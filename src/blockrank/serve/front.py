"""The outermost layer of every request: its id, checks of Host, Origin and key, the time it took, and its log line."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from functools import partial

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blockrank.serve.hosts import HostCheck
from blockrank.serve.metrics import Metrics
from blockrank.serve.paths import canonical_path
from blockrank.serve.preparation import Trace, new_trace
from blockrank.serve.refusals import Refusal
from blockrank.serve.settings import CROWDED, OPEN_PATHS, ServeSettings

_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_QUIET = frozenset({"/livez", "/readyz", "/health", "/metrics"})  # polled every few seconds
_DROPPED, _DROP_S = 4, 5.0  # at most so many times the body limit, and seconds, of an unwanted body are read
_TOO_SLOW = 408
_SERVER_ERROR = 500
OTHER_ROUTE = "other"  # paths that are no route share one label


class Front:
    """Middleware around the whole application. Without the key only `open_paths` answer, whether a path is a route or
    not; probes answer under every Host."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: ServeSettings,
        metrics: Metrics,
        routes: Sequence[BaseRoute],
        open_paths: Collection[str],
    ) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes
        self._open_paths = open_paths
        self._keys = [key.encode() for key in settings.keys]
        self._check_host = HostCheck(settings)
        self._most_dropped = _DROPPED * settings.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it for its key."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), canonical_path(scope["path"], scope["method"])
        trace = new_trace(path, _request_id(headers))
        scope["state"] = {**scope.get("state", {}), "trace": trace}
        exchange = _Exchange(receive, send, headers, trace.request_id, self._most_dropped)
        exchange.on_answer = partial(self._note, scope, trace)
        try:
            refusal = self._refusal(scope, headers, is_canonical=path == scope["path"])
            scope["path"] = path
            app = self._app if refusal is None else refused(refusal, trace, self._metrics)
            await app(scope, exchange.receive, exchange.send)
        finally:
            exchange.answered()

    def _refusal(self, scope: Scope, headers: Headers, *, is_canonical: bool) -> Refusal | None:
        """The reason to refuse a request, None if there is none. Open paths are compared exactly: a POST to / is no
        page."""
        is_probe = scope["path"] in OPEN_PATHS
        if scope["state"].get(CROWDED) and not is_probe:
            return Refusal(503, "crowded", "all connections of this server are taken; try again later.", retry_after=1)
        try:
            if not is_probe:
                self._check_host(scope, headers)
        except Refusal as refusal:
            return refusal
        is_open = is_canonical and scope["path"] in self._open_paths
        if is_open or self._opens(headers.get("authorization", "")):
            return None
        return Refusal(401, "key", "this server needs a key: send 'Authorization: Bearer KEY'.")

    def _note(self, scope: Scope, trace: Trace, status: int, seconds: float) -> None:
        """Count a request that was answered, and log it."""
        path = scope["path"]
        known = any(getattr(route, "path", None) == path for route in self._routes)
        self._metrics.answered(path if known else OTHER_ROUTE, status, seconds)
        _log_request(scope, trace, status, seconds)

    def _opens(self, authorization: str) -> bool:
        """Whether a header carries one of the keys. Takes constant time for every wrong key."""
        scheme, _, given = authorization.partition(" ")
        found = not self._keys
        for key in self._keys:
            found |= hmac.compare_digest(given.strip().encode(), key)
        return found and (not self._keys or scheme.lower() == "bearer")


class _Exchange:
    """The messages of a request and of its answer.

    The rest of an unwanted body is read and dropped after the answer's body is sent and before the answer is closed: if
    the server closed the connection while the client still sends, the client would lose the answer. on_answer: called
    once, with status and seconds.
    """

    def __init__(self, receive: Receive, send: Send, headers: Headers, request_id: str, most_dropped: int) -> None:
        self._receive, self._send, self._request_id, self._most_dropped = receive, send, request_id, most_dropped
        self._expects = "expect" in headers
        self._ended = "content-length" not in headers and "transfer-encoding" not in headers
        self._size, self._status, self._started = 0, _SERVER_ERROR, time.monotonic()
        self.on_answer: Callable[[int, float], None] | None = None

    async def receive(self) -> Message:
        """The next message of the request."""
        message = await self._receive()
        self._size += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the answer."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._request_id
            if not self._ended and self._expects:  # its body may follow or not: only a new connection is safe
                headers["connection"] = "close"
        elif not self._ended and self._status != _TOO_SLOW and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            self.answered()
            await self._drop()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    def answered(self) -> None:
        """The answer is out."""
        if self.on_answer is not None:
            self.on_answer(self._status, time.monotonic() - self._started)
            self.on_answer = None

    async def _drop(self) -> None:
        """Read to the end, or to some bytes, or for a few seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DROP_S):
                while not self._ended and self._size < self._most_dropped:
                    await self.receive()


def refused(refusal: Refusal, trace: Trace, metrics: Metrics) -> Response:
    """A refusal as a response in the words of its dialect; counted and noted in the log."""
    metrics.refused(refusal.cause)
    status, body = trace.dialect.refusal(refusal, trace.request_id)
    trace.fields |= {"refused": refusal.cause, "sentence": refusal.sentence}
    headers = {}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    if refusal.cause == "key":
        headers["www-authenticate"] = "Bearer"
    if refusal.cause in ("draining", "body", "failed", "crowded"):
        headers["connection"] = "close"
    return JSONResponse(body, status, headers)


def _request_id(headers: Headers) -> str:
    """The caller's id of the request where it is a plain one, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _log_request(scope: Scope, trace: Trace, status: int, seconds: float) -> None:
    level = logging.DEBUG if scope["path"] in _QUIET else logging.WARNING if status >= _SERVER_ERROR else logging.INFO
    fields = {
        "request_id": trace.request_id,
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "ms": round(1000 * seconds, 2),
        **trace.fields,
    }
    _log.log(level, "request", extra={"fields": fields})
