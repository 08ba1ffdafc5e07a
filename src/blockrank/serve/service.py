"""What happens to a call between its body and its answer, without HTTP: limits, threads, devices, and the end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any, Literal, get_args

from blockrank.ranker import Ranker
from blockrank.serve.admission import Admission, Ticket
from blockrank.serve.batcher import Batcher, Job
from blockrank.serve.calls import Call, Reading
from blockrank.serve.dialects import Dialect, dialect_of, dialect_of_path
from blockrank.serve.metrics import Metrics, Stage
from blockrank.serve.parsing import read_json
from blockrank.serve.refusals import Refusal, invalid
from blockrank.serve.settings import ServeSettings
from blockrank.serve.worker import Worker, devices_of, lost
from blockrank.types import BlockrankError, InputError, ModelError

State = Literal["loading", "ready", "draining", "failed"]
Load = Callable[[], Sequence[Ranker]]
_log = logging.getLogger(__name__)
_BATCH_TOKENS = {"cpu": 4096}  # larger forwards are slower on a processor
_BATCH_TOKENS_ELSEWHERE = 32_768
_PIECE_TOKENS = {"cpu": 2048}
_QUEUE_BATCHES = 16
_CHARS_PER_TOKEN = 4  # for estimates before anything is tokenised
_MOST_THREADS = 8
_DRAIN_STEP = 0.02  # seconds between two looks at what is under way
_JOIN_S = 1.0


@dataclass(eq=False, slots=True)
class Trace:
    """What the log says of one call. `dialect`: of its refusals too."""

    request_id: str
    dialect: Dialect
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def timing(self) -> str:
        """Milliseconds in each stage, as the header Server-Timing has them."""
        stages = ((name, self.fields.get(f"{name}_ms")) for name in get_args(Stage))
        return ", ".join(f"{name};dur={found}" for name, found in stages if found is not None)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call that is ready for a device."""

    call: Call
    read: Reading
    job: Job
    ticket: Ticket


class Service:
    """The rankers of a server, its queue and its state. Used from one event loop.

    load: gives the rankers; it runs in a thread, while the server says that it is loading. on_failure: called with a
    sentence where loading fails or a device is lost, after which nothing is served any more.
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
        self._jobs: set[Job] = set()
        self._loading: Thread | None = None
        self._ranker: Ranker | None = None
        threads = min(_MOST_THREADS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, "blockrank-request")
        self._watch()

    # State

    @property
    def state(self) -> State:
        """Whether the server is loading, ready, draining or failed."""
        return self._state

    @property
    def ranker(self) -> Ranker | None:
        """The ranker that tokenises; None while loading."""
        return self._ranker

    @property
    def under_way(self) -> int:
        """Requests in the server."""
        return self._admission.requests

    def readiness(self) -> str:
        """What is wrong, or "ready" where every device has ranked lately."""
        if self._state != "ready":
            return self._state
        now = time.monotonic()
        states = [worker.state(now, self.settings.ready_s, self.settings.stall_s) for worker in self._workers]
        return next((state for state in states if state != "ready"), "ready")

    def start(self) -> None:
        """Begin to load, in a thread that the end of the process does not wait for."""
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
        kind = devices[0][1].model.device.type
        settings = self.settings
        budget = settings.batch_tokens or _BATCH_TOKENS.get(kind, _BATCH_TOKENS_ELSEWHERE)
        self._batcher = Batcher(budget, batching=settings.batching)
        self._admission.max_tokens = settings.max_queue_tokens or _QUEUE_BATCHES * budget
        for name, ranker in devices:
            worker = Worker(
                name,
                ranker,
                self._batcher,
                piece_tokens=min(budget, _PIECE_TOKENS.get(kind, budget)),
                idle_s=settings.ready_s / 3,
                cache_bytes=settings.cache_bytes,
                on_forward=self._forward_ran,
                on_failure=self._fail,
            )
            worker.warm()
            self._workers.append(worker)
        self._ranker = devices[0][1]

    def _fail(self, sentence: str) -> None:
        """Serve nothing any more. Called from any thread."""
        self._state = "failed"
        _log.error("%s", sentence)
        if self._batcher is not None:
            self._batcher.close(lost)
        if self._on_failure is not None:
            self._on_failure(sentence)

    async def drain(self) -> None:
        """Take no new requests and wait for those under way, for `drain_s` at most."""
        if self._state != "failed":
            self._state = "draining"
        until = time.monotonic() + self.settings.drain_s
        while self.under_way and time.monotonic() < until:
            await asyncio.sleep(_DRAIN_STEP)
        if self.under_way:
            _log.warning("%d requests were not finished in time", self.under_way)
        self._drop()

    def _drop(self) -> None:
        """Refuse all that is left."""
        if self._batcher is not None:
            self._batcher.close(_draining)
        for job in self._jobs:
            job.fail(_draining())

    async def close(self) -> None:
        """Drop what is left and end the threads."""
        if self._state != "failed":
            self._state = "draining"
        self._drop()
        for worker in self._workers:
            if worker.started:
                await asyncio.to_thread(worker.join, _JOIN_S)
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def is_busy(self) -> bool:
        """Whether a thread still loads or runs a forward, which nothing can interrupt."""
        return (self._loading is not None and self._loading.is_alive()) or any(w.is_alive for w in self._workers)

    # One call

    def body(self) -> AbstractContextManager[Callable[[int], None]]:
        """What counts the bytes of a call in, from the first that arrives to the answer."""
        return self._admission.body()

    def check(self) -> None:
        """Raise `Refusal` where nothing can be served now."""
        if self._state == "ready":
            return
        if self._state == "failed":
            raise lost()
        raise _draining() if self._state == "draining" else _not_loaded()

    async def rank(self, path: str, body: bytes, trace: Trace, timeout_s: float | None) -> bytes:
        """The body of the answer to a call. Raises `Refusal`; cancelled, it leaves the queue."""
        deadline = time.monotonic() + min(timeout_s or self.settings.timeout_s, self.settings.timeout_s)
        self.check()
        with self._admission.request():
            loop = asyncio.get_running_loop()
            prepared = await self._prepared(path, body, trace, deadline)
            scored = await self._scores(prepared, deadline)
            return await loop.run_in_executor(self._pool, self._finish, prepared, scored, trace)

    async def _prepared(self, path: str, body: bytes, trace: Trace, deadline: float) -> Prepared:
        """Prepare a call in a thread. That cannot be interrupted: cancelled, what it took is given back at its end."""
        future = self._pool.submit(self._prepare, path, body, trace, deadline)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(_give_back)
            raise

    async def _scores(self, prepared: Prepared, deadline: float) -> Any:
        """Wait for a device."""
        job = prepared.job
        job.future.add_done_callback(lambda _: prepared.ticket.release())
        try:
            assert self._batcher is not None, "ready"
            self._jobs.add(job)
            self._batcher.put(job)
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                return await asyncio.wrap_future(job.future)
        except TimeoutError:
            raise Refusal(504, "deadline", "the time allowed for this request is over.") from None
        finally:
            self._jobs.discard(job)
            if not job.future.done():
                job.abandon()

    def _prepare(self, path: str, body: bytes, trace: Trace, deadline: float) -> Prepared:
        """Read, admit and tokenise a call, in a thread."""
        started = time.monotonic()
        values = read_json(body)
        trace.dialect = dialect = dialect_of(path, values)
        call = dialect.read(values, self.settings, trace.request_id)
        trace.fields |= {"dialect": dialect.name, "documents": len(call.ids)}
        ranker = self._ranker
        assert ranker is not None, "ready"
        ticket = self._admission.take(_estimate(call, ranker))
        try:
            tokenised = ranker.tokenise(call.request, call.max_document_tokens)
        except InputError as error:
            ticket.release()
            raise invalid(_as_named(str(error), dialect)) from None
        except BaseException:
            ticket.release()
            raise
        cuts = [segment.cut for segment in tokenised.documents]
        if not call.may_cut and any(cuts):
            ticket.release()
            index = next(index for index, cut in enumerate(cuts) if cut)
            raise invalid(
                _as_named(f"documents[{index}] is {cuts[index]} tokens over the limit and may not be cut.", dialect),
                cause="limit",
            )
        read = Reading(tokenised.length, sum(cut > 0 for cut in cuts), max(cuts), tokenised.query_cut)
        ticket.settle(read.tokens)
        self._stage(trace, "tokenise", time.monotonic() - started)
        trace.fields |= {"tokens": read.tokens, "cut_documents": read.cut_documents}
        return Prepared(call, read, Job(call.request, tokenised, read.tokens, deadline), ticket)

    def _finish(self, prepared: Prepared, scored: Any, trace: Trace) -> bytes:
        """From scores to the body of the answer, in a thread."""
        started = time.monotonic()
        call, read, job = prepared.call, prepared.read, prepared.job
        assert self._ranker is not None, "ready"
        try:
            ranking = self._ranker.ranking(call.request, job.tokenised, scored)
        except ModelError as error:
            raise Refusal(500, "not_finite", str(error)) from None
        answer = trace.dialect.answer(call, ranking, read)
        body = json.dumps(answer, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        self._stage(trace, "queue", job.started - job.arrived)
        self._stage(trace, "forward", job.forward_s)
        self._stage(trace, "readout", time.monotonic() - started)
        self.metrics.ranked(len(call.ids), read.tokens, read.cut_documents, read.query_cut > 0)
        return body

    def _stage(self, trace: Trace, name: Stage, seconds: float) -> None:
        self.metrics.stage(name, seconds)
        trace.fields[f"{name}_ms"] = round(1000 * seconds, 2)

    def _forward_ran(self, jobs: Sequence[Job], tokens: int, seconds: float) -> None:
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


def new_trace(path: str, request_id: str) -> Trace:
    """The trace of a call that nothing is known of but its path."""
    return Trace(request_id, dialect_of_path(path))


def _estimate(call: Call, ranker: Ranker) -> int:
    """About how many tokens a call has, from its characters."""
    limit = ranker.spec.max_segment_tokens
    texts = (len(document.text) + len(document.title) for document in call.request.candidates)
    return sum(min(size // _CHARS_PER_TOKEN + 2, limit) for size in texts) + len(call.request.query) // _CHARS_PER_TOKEN


def _give_back(future: Future[Prepared]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().ticket.release()


def _as_named(sentence: str, dialect: Dialect) -> str:
    """A sentence of the ranker in the words of the dialect."""
    return sentence.replace("documents[", "texts[") if dialect.name == "tei" else sentence


def _draining() -> Refusal:
    return Refusal(503, "draining", "the server is shutting down.", retry_after=5)


def _not_loaded() -> Refusal:
    return Refusal(503, "loading", "the model is being loaded.", retry_after=5)
