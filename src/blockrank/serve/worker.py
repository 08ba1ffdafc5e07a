"""A thread that owns one device: takes jobs, runs forwards, and knows whether the device still answers."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import TypeVar

from blockrank.errors import is_device_lost, is_out_of_memory
from blockrank.serve.batcher import Batcher, QueuedRequest, late, tokens_of
from blockrank.serve.memory import FreedMemory
from blockrank.serve.refusals import Refusal, invalid
from blockrank.types import BlockrankError, CapacityError, InputError, KeyCache, RankRequest, ServedRanker

_log = logging.getLogger(__name__)
_MOST_FAULTS, _FAULT_PAUSE_S = 20, 0.05  # consecutive faults that a worker survives; seconds between them
_WARM = (("warm", 1), ("warm start", 8))  # warm-up forwards before the first request: query and number of documents
Result = TypeVar("Result")
OnForward = Callable[[Sequence[QueuedRequest], int, float], None]


class Dropped(Exception):  # noqa: N818  # nothing went wrong
    """Ends the forward of a job that was refused because it is late or abandoned."""


@dataclass(slots=True)
class Turns:
    """Turns of small jobs between the parts of a large job's forward.

    seconds: duration of all of them. last_s: duration of the last one. since: when the large job last resumed.
    """

    job: QueuedRequest
    since: float
    seconds: float = 0.0
    last_s: float = 0.0

    def are_due(self, now: float) -> bool:
        """Whether the large job has run for as long as the last turn of the small ones: under load each side gets half
        of the time."""
        return now - self.since >= self.last_s

    def note(self, started: float, ended: float) -> None:
        """One turn is over."""
        self.since, self.last_s = ended, ended - started
        self.seconds += self.last_s


class Worker:
    """One device's ranker and thread.

    on_forward: called with the jobs, tokens and seconds of each successful forward. on_failure: called once, with a
    message, when the device is lost.
    """

    def __init__(
        self,
        name: str,
        ranker: ServedRanker,
        batcher: Batcher,
        *,
        idle_s: float,
        cache_bytes: int,
        on_forward: OnForward,
        on_failure: Callable[[str], None],
    ) -> None:
        self.name, self._ranker, self._batcher = name, ranker, batcher
        self._idle_s = idle_s
        self._on_forward, self._on_failure = on_forward, on_failure
        self.store: KeyCache | None = ranker.reuse(cache_bytes) if cache_bytes else None
        self.last_success = 0.0
        self.busy_since: float | None = None
        self.failed = False
        self._thread = Thread(target=self._run, name=f"blockrank-{name}", daemon=True)

    def warm(self) -> None:
        """Run forwards of a few sizes, in the calling thread."""
        for query, count in _WARM:
            self._try_alone(query, count)

    def start(self) -> None:
        """Take jobs from now on, until the batcher is closed."""
        self._thread.start()

    @property
    def started(self) -> bool:
        """Whether `start` was called."""
        return self._thread.ident is not None

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def join(self, timeout: float) -> None:
        """Wait for the thread to end, once the batcher is closed."""
        self._thread.join(timeout)

    def state(self, now: float, ready_s: float, stall_s: float) -> str:
        """What is wrong ("failed", "stalled" in one part of a forward, "stale": none has succeeded lately), or
        "ready"."""
        busy = self.busy_since
        if self.failed or (self.started and not self.is_alive):
            return "failed"
        if busy is not None:
            return "stalled" if now - busy > stall_s else "ready"
        return "ready" if now - self.last_success <= ready_s else "stale"

    def _run(self) -> None:
        """Run turns until the batcher is closed. An internal error fails the current jobs, and the thread goes on;
        after too many consecutive errors, or if the thread ends in another way, the worker reports that it is lost."""
        freed, faults, jobs = FreedMemory(), 0, list[QueuedRequest]()
        try:
            while not self.failed and not self._batcher.closed:
                jobs = []  # no reference to the last jobs is kept while it waits for the next
                try:
                    jobs = self._batcher.take(self._idle_s)
                    self._turn(jobs, freed)
                    faults = 0
                except Exception as error:
                    faults += 1
                    _log.exception("%s: a fault outside a forward", self.name)
                    for job in jobs:
                        job.fail(refusal_of(error))
                    if faults == _MOST_FAULTS:
                        break
                    time.sleep(_FAULT_PAUSE_S)
        finally:
            if not self.failed and not self._batcher.closed:
                self._lose("its thread has ended.")
            for job in jobs:
                job.fail(lost())

    def _turn(self, jobs: list[QueuedRequest], freed: FreedMemory) -> None:
        """Run jobs or, if there are none, a check of the device; then return freed memory."""
        if jobs:
            self._run_batch(jobs)
        elif not self._batcher.closed and time.monotonic() - self.last_success >= self._idle_s:
            self._check()
            freed.give_back()
        freed.check()

    def _check(self) -> None:
        """A forward of an idle device, to know that it still answers."""
        try:
            self._try_alone(*_WARM[0])
        except Exception as error:
            self.last_success = 0.0
            self._note(error)

    def _try_alone(self, query: str, count: int) -> None:
        """One forward of our own."""
        request = RankRequest(query, [f"document {index}" for index in range(count)], "check")
        tokenised = self._ranker.tokenise(request)
        scored = self._timed([], tokenised.length, lambda: self._ranker.score([request], [tokenised]))
        self._ranker.ranking(request, tokenised, scored[0])

    def _timed(
        self, jobs: Sequence[QueuedRequest], tokens: int, forward: Callable[[], Result], turns: Turns | None = None
    ) -> Result:
        """Run a forward and time it. turns: those of small jobs, whose time is subtracted."""
        started = self.busy_since = time.monotonic()
        try:
            result = forward()
            self.last_success = time.monotonic()
        finally:
            seconds = time.monotonic() - started - (turns.seconds if turns is not None else 0.0)
            self.busy_since = None
            for job in jobs:
                job.forward_s += seconds
        self._on_forward(jobs, tokens, seconds)
        return result

    def _run_batch(self, jobs: Sequence[QueuedRequest]) -> None:
        """Score jobs in one forward; small jobs get turns between the parts of a large one. If it fails, but not for a
        lost device, each job runs again alone."""
        tokens = tokens_of(jobs)
        turns = Turns(jobs[0], time.monotonic()) if tokens > self._batcher.batch_tokens else None
        between = partial(self._give_turn, turns) if turns is not None else None
        try:
            requests, tokenised = [job.request for job in jobs], [job.tokenised for job in jobs]
            found = self._timed(jobs, tokens, lambda: self._ranker.score(requests, tokenised, between), turns)
        except Dropped:
            return
        except Exception as error:
            self._note(error)
            if self.failed or len(jobs) == 1:
                for job in jobs:
                    job.fail(refusal_of(error))
                return
            for job in jobs:
                self._run_batch([job])
            return
        for job, scored in zip(jobs, found, strict=True):
            job.finish(scored)

    def _give_turn(self, turns: Turns) -> None:
        """Between two parts of a large job's forward: end it if it is late or abandoned, and let small jobs run. Each
        part shows that the device is alive."""
        self._check_wanted(turns.job)
        started = time.monotonic()
        if turns.are_due(started) and (others := self._batcher.take_small()):
            try:
                self._run_batch(others)
            finally:
                for job in others:  # no effect on jobs that have ended; all have, unless the thread ends
                    job.fail(lost())
            turns.note(started, time.monotonic())
            self._check_wanted(turns.job)
        self.last_success = self.busy_since = time.monotonic()

    def _check_wanted(self, job: QueuedRequest) -> None:
        """Raise `Dropped` where the job was failed: it is late or abandoned, or the worker has ended."""
        if (end := lost() if self.failed else self._batcher.end) is not None:
            job.fail(end)
        if late(job, time.monotonic()):
            raise Dropped

    def _note(self, error: Exception) -> None:
        """Log an error of a forward; if the device is lost, the worker ends."""
        if isinstance(error, BlockrankError):
            _log.warning("%s: %s", self.name, error)
        else:
            _log.error("%s: a forward failed", self.name, exc_info=error)
        if is_device_lost(error) and not self.failed:
            self._lose(str(error).splitlines()[0] or type(error).__name__)

    def _lose(self, why: str) -> None:
        self.failed = True
        self._on_failure(f"{self.name} is lost: {why}")


def lost() -> Refusal:
    """The refusal when a device is lost."""
    return Refusal(503, "failed", "the device that ranks is lost; this server must be restarted.", retry_after=30)


def refusal_of(error: Exception) -> Refusal:
    """The refusal for an error of a forward. The text of an internal error is only logged: it may name files."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, CapacityError):
        return Refusal(503, "memory", str(error))
    if is_out_of_memory(error):
        return Refusal(503, "memory", "there is not enough memory for this request now.")
    if is_device_lost(error):
        return lost()
    if isinstance(error, InputError):
        return invalid(str(error))
    return Refusal(500, "internal", f"ranking failed: {type(error).__name__}; the server's log has more.")


def devices_of(rankers: Sequence[ServedRanker]) -> list[tuple[str, ServedRanker]]:
    """Each device with its ranker; a ranker may be loaded on several devices."""
    found = list(itertools.chain.from_iterable(ranker.on_each_device() for ranker in rankers))
    return [(ranker.facts.device, ranker) for ranker in found]
