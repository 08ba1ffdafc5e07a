"""A call from its body to its answer, without HTTP: limits, threads, devices, and shutdown."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from threading import Thread
from typing import Any, Literal, TypeVar

from blockrank.serve.admission import Admission
from blockrank.serve.batcher import Batcher, QueuedRequest
from blockrank.serve.deadline import Deadline, over
from blockrank.serve.lanes import Lane, Lanes
from blockrank.serve.metrics import Metrics
from blockrank.serve.preparation import Preparation, Prepared, Trace, give_back
from blockrank.serve.refusals import Refusal, draining
from blockrank.serve.settings import ServeSettings
from blockrank.serve.worker import Worker, devices_of, lost
from blockrank.types import BlockrankError, ServedRanker

Result = TypeVar("Result")
State = Literal["loading", "ready", "draining", "failed"]
Load = Callable[[], Sequence[ServedRanker]]
_log = logging.getLogger(__name__)
_QUEUE_BATCHES = 16
_DRAIN_STEP = 0.02  # seconds between two checks of requests in progress
_JOIN_S = 1.0


class Service:
    """The rankers of a server, its queue and its state. Used from one event loop.

    load: gives the rankers; it runs in a thread, while the server says that it is loading. on_failure: called with a
    message when loading fails or a device is lost; after that nothing is served.
    """

    def __init__(
        self,
        settings: ServeSettings,
        load: Load,
        metrics: Metrics,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        self.settings, self.metrics = settings, metrics
        self._load, self._on_failure = load, on_failure
        self._state: State = "loading"
        self._admission = Admission(settings.max_requests, settings.max_queue_tokens or 1, settings.max_bytes)
        self._batcher: Batcher | None = None
        self._workers: list[Worker] = []
        self._loading: Thread | None = None
        self._ranker: ServedRanker | None = None
        self._preparation: Preparation
        self._lanes = Lanes(settings.max_body_bytes)
        self._end: asyncio.Future[None]
        self._watch()

    # State

    @property
    def state(self) -> State:
        """Whether the server is loading, ready, draining or failed."""
        return self._state

    @property
    def ranker(self) -> ServedRanker | None:
        """The ranker that tokenises; None while loading."""
        return self._ranker

    @property
    def under_way(self) -> int:
        """Requests in the server."""
        return self._admission.requests

    def readiness(self) -> str:
        """What is wrong, or "ready" if every device has ranked recently and threads take new requests."""
        if self._state != "ready":
            return self._state
        now = time.monotonic()
        if self._lanes.is_stalled(now, self.settings.stall_s):
            return "stalled"
        states = [worker.state(now, self.settings.ready_s, self.settings.stall_s) for worker in self._workers]
        return next((state for state in states if state != "ready"), "ready")

    def start(self) -> None:
        """Begin to load, in a daemon thread. Called in the event loop."""
        self._end = asyncio.get_running_loop().create_future()
        self._loading = Thread(target=self._start, name="blockrank-load", daemon=True)
        self._loading.start()

    def _start(self) -> None:
        started = time.monotonic()
        try:
            self._build()
        except Exception as error:
            if not isinstance(error, BlockrankError):
                _log.exception("loading failed")
            self._fail(str(error) or type(error).__name__)
            return
        if self._state == "loading":
            for worker in self._workers:
                worker.start()
            self._state = "ready"
            names, seconds = [worker.name for worker in self._workers], round(time.monotonic() - started, 2)
            _log.info("ready", extra={"fields": {"devices": names, "seconds": seconds}})

    def _build(self) -> None:
        """Load the rankers and run the first forwards."""
        devices = devices_of(self._load())
        settings = self.settings
        budget = settings.batch_tokens or devices[0][1].facts.forward_tokens
        self._batcher = Batcher(budget, batching=settings.batching)
        self._admission.batch_tokens = budget
        self._admission.max_tokens = settings.max_queue_tokens or _QUEUE_BATCHES * budget
        for name, ranker in devices:
            worker = Worker(
                name,
                ranker,
                self._batcher,
                idle_s=settings.ready_s / 3,
                cache_bytes=settings.cache_bytes,
                on_forward=self._forward_ran,
                on_failure=self._fail,
            )
            worker.warm()
            self._workers.append(worker)
        self._ranker = devices[0][1]
        self._preparation = Preparation(self._ranker, settings, self._admission, self.metrics)

    def _fail(self, sentence: str) -> None:
        """Serve nothing any more. Called from any thread."""
        self._state = "failed"
        _log.error("%s", sentence)
        if self._batcher is not None:
            self._batcher.close(lost)
        if self._on_failure is not None:
            self._on_failure(sentence)

    async def drain(self) -> None:
        """Take no new requests and wait for those in progress, for `drain_s` at most."""
        if self._state != "failed":
            self._state = "draining"
        until = time.monotonic() + self.settings.drain_s
        while self.under_way and time.monotonic() < until:
            await asyncio.sleep(_DRAIN_STEP)
        if self.under_way:
            _log.warning("%d requests were not finished in time", self.under_way)
        self._drop()

    def _drop(self) -> None:
        """Refuse all remaining requests."""
        if self._batcher is not None:
            self._batcher.close(draining)
        if not self._end.done():
            self._end.set_result(None)

    async def close(self) -> None:
        """Drop what is left and end the threads."""
        if self._state != "failed":
            self._state = "draining"
        self._drop()
        for worker in self._workers:
            if worker.started:
                await asyncio.to_thread(worker.join, _JOIN_S)
        self._lanes.close()

    @property
    def is_busy(self) -> bool:
        """Whether a thread still loads, runs a forward or works on a request; none of these can be interrupted."""
        is_loading = self._loading is not None and self._loading.is_alive()
        return is_loading or self._lanes.is_busy or any(worker.is_alive for worker in self._workers)

    # One call

    def body(self) -> AbstractContextManager[Callable[[int], None]]:
        """Counts the bytes of a call, from the first that arrives until its answer; see `Admission.body`."""
        return self._admission.body()

    def check(self) -> None:
        """Raise `Refusal` where nothing can be served now."""
        if self._state == "ready":
            return
        if self._state == "failed":
            raise lost()
        raise draining() if self._state == "draining" else _not_loaded()

    async def rank(self, path: str, body: bytes, trace: Trace, timeout_s: float | None) -> bytes:
        """The body of the answer to a call. Raises `Refusal`; if cancelled, the call leaves the queue."""
        deadline = Deadline(time.monotonic() + min(timeout_s or self.settings.timeout_s, self.settings.timeout_s))
        self.check()
        with self._admission.request():
            lane = self._lanes.of(len(body))
            prepared = await self._prepared(lane, path, body, trace, deadline)
            scored = await self._scores(prepared, deadline)
            finish = partial(self._preparation.finish, prepared, scored, trace)
            return await self._result(lane.submit(finish, deadline), deadline)

    async def _prepared(self, lane: Lane, path: str, body: bytes, trace: Trace, deadline: Deadline) -> Prepared:
        """Prepare a call in a thread. If it is abandoned, the thread releases what it had taken."""
        prepare = partial(self._preparation.prepare, path, body, trace, deadline)
        future = lane.submit(prepare, deadline, len(body))
        try:
            return await self._result(future, deadline)
        except BaseException:
            future.add_done_callback(give_back)
            raise
        finally:
            del future  # see `_result`

    async def _scores(self, prepared: Prepared, deadline: Deadline) -> Any:
        """Wait for a device."""
        job, ticket = prepared.job, prepared.ticket
        job.future.add_done_callback(lambda _: ticket.release())  # `prepared` in it would make a cycle
        assert self._batcher is not None, "ready"
        try:
            self._batcher.put(job)
        except Refusal:
            job.future.cancel()
            raise
        return await self._result(job.future, deadline)

    async def _result(self, future: Future[Result], deadline: Deadline) -> Result:
        """The result of a thread, awaited until the request's deadline or until the server drops remaining requests.

        Raises `Refusal` then. A thread cannot be interrupted: it finds the request abandoned when it looks.
        """
        result = asyncio.wrap_future(future)
        try:
            await asyncio.wait((result, self._end), timeout=deadline.remaining, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            raise draining() if self._end.done() else over()
        finally:
            if not result.done():
                deadline.abandoned = True
                result.cancel()
            # The error refers to this frame, and the frame through these names to the error: the cycle would keep the
            # body in memory until the garbage collector runs.
            del future, result

    def _forward_ran(self, jobs: Sequence[QueuedRequest], tokens: int, seconds: float) -> None:
        self._admission.ran(tokens, seconds)
        self.metrics.forward(len(jobs), tokens)

    def _watch(self) -> None:
        """Values that Prometheus reads."""

        def of_stores(name: str) -> float:
            return float(sum(getattr(worker.store, name) for worker in self._workers if worker.store is not None))

        batcher = self._queued
        self.metrics.watch(
            {
                "queue_requests": ("Requests that wait for a device.", lambda: batcher("waiting")),
                "queue_tokens": ("Tokens of requests that wait for a device.", lambda: batcher("waiting_tokens")),
                "reading_bytes": ("Bytes of bodies that wait to be read.", lambda: float(self._lanes.waiting_bytes)),
                "requests_under_way": ("Requests in the server.", lambda: float(self._admission.requests)),
                "tokens_under_way": ("Tokens of requests in the server.", lambda: float(self._admission.tokens)),
                "ready": ("1 where requests are served.", lambda: float(self.readiness() == "ready")),
                "cache_bytes": ("Memory of the keys kept of documents.", lambda: of_stores("used_bytes")),
            },
            {
                "cache_hits": ("Documents whose keys were kept.", lambda: of_stores("hits")),
                "cache_misses": ("Documents whose keys were not kept.", lambda: of_stores("misses")),
            },
        )

    def _queued(self, name: str) -> float:
        return 0.0 if self._batcher is None else float(getattr(self._batcher, name))


def _not_loaded() -> Refusal:
    return Refusal(503, "loading", "the model is being loaded.", retry_after=5)
