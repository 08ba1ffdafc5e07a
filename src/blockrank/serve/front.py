"""What every request passes first: its id, the key, the time it took, and a line in the log."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blockrank.serve.metrics import Metrics
from blockrank.serve.preparation import Trace, new_trace
from blockrank.serve.refusals import Refusal
from blockrank.serve.settings import ServeSettings

_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_QUIET = frozenset({"/livez", "/readyz", "/health", "/metrics"})  # asked for every few seconds
_DROPPED, _DROP_S = 4, 5.0  # of a body that is not wanted: times the limit, and seconds, that are read at most
_TOO_SLOW = 408
_SERVER_ERROR = 500
OTHER_ROUTE = "other"  # paths that are no route share one label


class Front:
    """Middleware around the whole application. Without the key no path answers but `open_paths`, a route or not."""

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
        self._most_dropped = _DROPPED * settings.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it for its key."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, headers = scope["path"], Headers(scope=scope)
        trace = new_trace(path, _request_id(headers))
        scope["state"] = {**scope.get("state", {}), "trace": trace}
        status, started = 500, time.monotonic()
        body = _Body(receive)

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status != _TOO_SLOW:
                    await body.drop(self._most_dropped)
                MutableHeaders(scope=message)["x-request-id"] = trace.request_id
            await send(message)

        try:
            if path in self._open_paths or self._opens(headers.get("authorization", "")):
                await self._app(scope, body, send_marked)
            else:
                await self._no_key(trace)(scope, body, send_marked)
        finally:
            seconds = time.monotonic() - started
            known = any(getattr(route, "path", None) == path for route in self._routes)
            self._metrics.answered(path if known else OTHER_ROUTE, status, seconds)
            _log_request(scope, trace, status, seconds)

    def _opens(self, authorization: str) -> bool:
        """Whether a header carries one of the keys. Takes the same time for every wrong one."""
        scheme, _, given = authorization.partition(" ")
        found = not self._keys
        for key in self._keys:
            found |= hmac.compare_digest(given.strip().encode(), key)
        return found and (not self._keys or scheme.lower() == "bearer")

    def _no_key(self, trace: Trace) -> Response:
        refusal = Refusal(401, "key", "this server needs a key: send 'Authorization: Bearer KEY'.")
        return refused(refusal, trace, self._metrics)


class _Body:
    """The messages of a request. A body that nobody wanted is read and dropped before the answer begins: a server that
    hangs up on a client that is still sending takes the answer from it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended, self._size = False, 0

    async def __call__(self) -> Message:
        """The next message."""
        message = await self._receive()
        self._size += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        return message

    async def drop(self, most: int) -> None:
        """Read to the end, or to `most` bytes, or for a few seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DROP_S):
                while not self._ended and self._size < most:
                    await self()


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
    if refusal.cause in ("draining", "body", "failed"):
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
