"""The outermost error handler: an error that nothing else caught still becomes an answer in the client's dialect."""

from __future__ import annotations

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blockrank.serve.front import refused
from blockrank.serve.metrics import Metrics
from blockrank.serve.preparation import Trace
from blockrank.serve.refusals import Refusal, draining
from blockrank.serve.worker import refusal_of

_log = logging.getLogger(__name__)
_SERVER_ERROR = 500


class Faults:
    """Middleware: an error, or a shutdown, in the middle of a request becomes a refusal in its dialect.

    Nothing can be done where the answer has begun.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        begun = False

        async def send_noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except (Exception, asyncio.CancelledError) as error:
            if begun or scope["type"] != "http":
                raise
            trace: Trace = scope["state"]["trace"]
            await refused(_refusal(error, trace), trace, self._metrics)(scope, receive, send)


def _refusal(error: BaseException, trace: Trace) -> Refusal:
    if not isinstance(error, Exception):  # shutdown: the server waits no longer
        return draining()
    refusal = refusal_of(error)
    if refusal.status >= _SERVER_ERROR:
        _log.error("request %s failed", trace.request_id, exc_info=error)
    if refusal.cause == "internal":
        refusal = Refusal(500, "internal", f"ranking failed; the server's log has more under {trace.request_id}.")
    return refusal
