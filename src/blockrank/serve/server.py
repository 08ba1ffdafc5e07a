"""Serve an application with uvicorn until it is told to stop, and drain it then."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from types import FrameType
from typing import Any

import blockrank.serve.packages  # noqa: F401  # first: says what is missing

# isort: split
import uvicorn
from starlette.applications import Starlette

from blockrank.serve.app import create_app
from blockrank.serve.connections import Connection, Connections
from blockrank.serve.memory import share_arenas
from blockrank.serve.service import Load, Service
from blockrank.serve.settings import ServeSettings
from blockrank.serve.sockets import BACKLOG, ServerError, listen
from blockrank.types import ServedRanker

_log = logging.getLogger(__name__)
_ACCEPTED_A_TURN = 4  # few, so that ending connections keeps up with new ones
_SWEEP_TICKS = 5  # of uvicorn's loop, a tenth of a second each
_SWITCH_S = 0.001  # shorter than the default 5 ms: a forward waits for the GIL hundreds of times
_LAST_GRACE_S = 2  # for answers still being sent when everything else has ended


class Server(uvicorn.Server):
    """uvicorn with connection timeouts and its own shutdown: the first signal drains, a second one ends at once."""

    def __init__(self, config: uvicorn.Config, service: Service, connections: Connections) -> None:
        super().__init__(config)
        self._service, self._connections = service, connections
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._told = False
        self.failure: str | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(_log_failure)
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)  # asyncio has set the backlog to the number that it accepts in an iteration

    async def on_tick(self, counter: int) -> bool:
        """See `uvicorn.Server`: called every tenth of a second."""
        if counter % _SWEEP_TICKS == 0 and self._loop is not None:
            self._connections.sweep(self._loop.time())
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came. It is not raised again at the end: a server that has drained has done its work."""
        del frame
        if self._told or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        self._told = True
        _log.info("draining", extra={"fields": {"signal": signal.Signals(sig).name}})
        self._loop.call_soon_threadsafe(self._end)

    async def _drain(self) -> None:
        await self._service.drain()
        self.should_exit = True

    def fail(self, sentence: str) -> None:
        """Nothing can be served any more: shut down after requests in progress were answered. Called from any
        thread."""
        self.failure = sentence
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())


def _log_failure(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error of the event loop in one line: without descriptors it reports thousands of errors a second."""
    del loop
    _log.error("%s: %s", context.get("message"), context.get("exception"))


def make_server(app: Starlette) -> Server:
    """A server of an application, not started yet."""
    service: Service = app.state.service
    connections = Connections(service.settings, service.metrics)
    config = uvicorn.Config(
        app,
        http=partial(Connection, connections),  # type: ignore[arg-type]  # called like a class, and nothing else
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=math.ceil(service.settings.idle_timeout_s),
        timeout_graceful_shutdown=_LAST_GRACE_S,
        backlog=_ACCEPTED_A_TURN,
        ws="none",
        lifespan="on",
    )
    return Server(config, service, connections)


def run(settings: ServeSettings, load: Load, *, host: str, port: int) -> bool:
    """Serve until a signal. Returns whether all threads have ended: one that loads or runs a forward cannot be stopped.

    Raises `ServerError` where loading failed, a device was lost, or the port is taken.
    """
    share_arenas()
    sys.setswitchinterval(_SWITCH_S)
    servers: list[Server] = []

    def on_failure(sentence: str) -> None:
        servers[0].fail(sentence)

    def load_for_good() -> Sequence[ServedRanker]:
        """Freeze loaded objects, so that the garbage collector no longer traverses them: that takes 0.2 s each time,
        during which no other thread runs."""
        rankers = load()
        gc.collect()
        gc.freeze()
        return rankers

    listener = listen(host, port)
    server = make_server(create_app(settings, load_for_good, on_failure=on_failure))
    servers.append(server)
    address, shown = listener.getsockname()[:2], f"[{host}]" if ":" in host else host
    _log.info("listening", extra={"fields": {"url": f"http://{shown}:{address[1]}"}})
    server.run([listener])
    if server.failure is not None:
        raise ServerError(server.failure)
    service: Service = server.config.app.state.service  # type: ignore[union-attr]
    return not service.is_busy
