"""The queue of a device, and which jobs run next.

Batches are not delayed by a timer: a device that becomes free takes the waiting jobs, up to a budget of tokens, so that
a single request never waits for others. Requests over the budget have a lane of their own; when both lanes have jobs,
they take turns, so that neither starves.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from threading import Condition
from typing import Any

from blockrank.serve.deadline import Deadline
from blockrank.types import RankRequest, Tokenised

Clock = Callable[[], float]


@dataclass(eq=False, slots=True)
class QueuedRequest:
    """A tokenised request in the queue or running. future: its scores, or the error.

    arrived, started, forward_s: when it was queued, when it left the queue, and how long its forwards took.
    """

    request: RankRequest
    tokenised: Tokenised
    tokens: int
    deadline: Deadline
    future: Future[Any] = field(default_factory=Future)
    arrived: float = 0.0
    started: float = 0.0
    forward_s: float = 0.0

    def finish(self, scored: Any) -> None:
        """End it with scores, if it has not ended."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(scored)

    def fail(self, error: Exception) -> None:
        """End it without scores, if it has not ended."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


class Batcher:
    """Jobs in order of arrival, in two lanes; thread-safe."""

    def __init__(self, batch_tokens: int, *, batching: bool = True, clock: Clock = time.monotonic) -> None:
        self.batch_tokens, self._batching, self._clock = batch_tokens, batching, clock
        self._small: deque[QueuedRequest] = deque()
        self._large: deque[QueuedRequest] = deque()
        self._large_next = False
        self._closed: Callable[[], Exception] | None = None
        self._changed = Condition()

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        with self._changed:
            return sum(not job.future.cancelled() for lane in (self._small, self._large) for job in lane)

    @property
    def waiting_tokens(self) -> int:
        """Their tokens."""
        with self._changed:
            lanes = (self._small, self._large)
            return sum(job.tokens for lane in lanes for job in lane if not job.future.cancelled())

    def put(self, job: QueuedRequest) -> None:
        """Add a job to the queue. Once closed, raises the error given to `close`."""
        with self._changed:
            if (end := self.end) is not None:
                raise end
            for lane in (self._small, self._large):  # a body whose client has left is not kept until its turn
                if any(waiting.future.cancelled() for waiting in lane):
                    wanted = [waiting for waiting in lane if not waiting.future.cancelled()]
                    lane.clear()
                    lane.extend(wanted)
            job.arrived = self._clock()
            (self._large if job.tokens > self.batch_tokens else self._small).append(job)
            self._changed.notify()

    def take(self, timeout: float | None = None) -> list[QueuedRequest]:
        """The next jobs to share a forward; blocks until there is one. Empty after `timeout` seconds, and once closed.

        Abandoned jobs are dropped, and those past their deadline refused, before any work is spent on them.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._small or self._large or self._closed is not None, timeout)
            large_first = self._large_next or not self._small
            batch = self._next_large() if large_first else self._next_small()
            return batch or (self._next_small() if large_first else self._next_large())

    def take_small(self) -> list[QueuedRequest]:
        """The next small jobs in the queue; does not block. For turns between the parts of a large job."""
        with self._changed:
            return self._next_small()

    def close(self, error: Callable[[], Exception]) -> None:
        """Fail all that waits, and all that comes."""
        with self._changed:
            self._closed = error
            left = [*self._small, *self._large]
            self._small.clear()
            self._large.clear()
            self._changed.notify_all()
        for job in left:
            if job.future.set_running_or_notify_cancel():
                job.fail(error())

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed is not None

    @property
    def end(self) -> Exception | None:
        """Once closed, a new instance of the error given to `close`."""
        return self._closed() if self._closed is not None else None

    def _next_large(self) -> list[QueuedRequest]:
        self._large_next = False
        while self._large:
            if self._starts(job := self._large.popleft()):
                return [job]
        return []

    def _next_small(self) -> list[QueuedRequest]:
        self._large_next = True
        batch: list[QueuedRequest] = []
        room = self.batch_tokens
        while self._small and self._small[0].tokens <= room:
            if self._starts(job := self._small.popleft()):
                batch.append(job)
                room -= job.tokens
                if not self._batching:
                    break
        return batch

    def _starts(self, job: QueuedRequest) -> bool:
        """Whether a job is still wanted; from now on it runs."""
        if not job.future.set_running_or_notify_cancel():
            return False
        job.started = self._clock()
        return not late(job, job.started)


def late(job: QueuedRequest, now: float) -> bool:
    """Refuse a running job that was abandoned or is past its deadline; returns whether it was."""
    if (refusal := job.deadline.refusal(now)) is not None:
        job.fail(refusal)
    return job.future.done()


def tokens_of(jobs: Sequence[QueuedRequest]) -> int:
    """Tokens of jobs that share a forward."""
    return sum(job.tokens for job in jobs)
