"""Threads that read bodies and write answers, in two lanes: small work never waits for large work.

A thread cannot be interrupted. Its work checks the deadline of its request from time to time, and late or abandoned
work is not begun.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar

from blockrank.serve.admission import Rate, overload
from blockrank.serve.deadline import Deadline

Result = TypeVar("Result")
_MOST_THREADS = 8
_LARGE_BYTES = 1 << 18  # bodies from this size on are large: one takes a tenth of a second or more
_MOST_SMALL_BYTES = 8 << 20  # waiting and running: about two seconds of work
_MOST_LARGE_BODIES = 4  # the same, in bodies of the largest allowed size
_FIRST_RATE = 4e6  # bytes a second
_GRACE_S = 1.0  # time in which late work must notice its deadline


class Lanes:
    """The two lanes of a server. max_body_bytes: how large a body may be."""

    def __init__(self, max_body_bytes: int) -> None:
        threads = max(2, min(_MOST_THREADS, os.cpu_count() or 1))
        self.small = Lane("small", threads, _MOST_SMALL_BYTES)
        self.large = Lane("large", threads // 2, _MOST_LARGE_BODIES * max_body_bytes)
        self._both = (self.small, self.large)

    def of(self, size: int) -> Lane:
        """The lane of a body of so many bytes."""
        return self.large if size >= _LARGE_BYTES else self.small

    @property
    def waiting_bytes(self) -> int:
        """Bytes of bodies that wait for a thread or are being read."""
        return sum(lane.waiting_bytes for lane in self._both)

    @property
    def is_busy(self) -> bool:
        """Whether a thread works."""
        return any(lane.is_busy for lane in self._both)

    def is_stalled(self, now: float, stall_s: float) -> bool:
        """Whether all threads of a lane are busy with work past its deadline."""
        return any(lane.is_stalled(now, stall_s) for lane in self._both)

    def close(self) -> None:
        """Begin nothing any more."""
        for lane in self._both:
            lane.close()


@dataclass(eq=False, slots=True)
class _Work(Generic[Result]):
    """call: None once ended, so that cancelled work does not keep its body in memory until a thread takes it."""

    call: Callable[[], Result] | None
    deadline: Deadline
    size: int
    started: float = 0.0


class Lane:
    """Threads that take work in order of arrival. most_bytes: of all bodies in the lane; a single one may be larger."""

    def __init__(self, name: str, threads: int, most_bytes: int) -> None:
        self._threads, self._most_bytes = threads, most_bytes
        self._pool = ThreadPoolExecutor(threads, f"blockrank-{name}")
        self._running = set[_Work[Any]]()
        self._rate = Rate(_FIRST_RATE)
        self._lock = Lock()
        self.waiting_bytes = 0

    def submit(self, call: Callable[[], Result], deadline: Deadline, size: int = 0) -> Future[Result]:
        """Queue a call for a thread; if cancelled in time it is not begun. size: bytes of the body that it reads.

        Raises `Refusal` where the bodies of others leave no room.
        """
        work = _Work(call, deadline, size)
        with self._lock:
            if size and self.waiting_bytes and self.waiting_bytes + size > self._most_bytes:
                raise overload(
                    f"bodies of {self.waiting_bytes} bytes wait to be read and the limit is {self._most_bytes}",
                    self._rate.seconds(self.waiting_bytes),
                )
            self.waiting_bytes += size
        future = self._pool.submit(self._run, work)
        future.add_done_callback(lambda _: self._ended(work))
        return future

    @property
    def is_busy(self) -> bool:
        """Whether a thread works."""
        return bool(self._running)

    def is_stalled(self, now: float, stall_s: float) -> bool:
        """Whether all threads are at work that should have ended."""
        with self._lock:
            ends = [min(work.deadline.at + _GRACE_S, work.started + stall_s) for work in self._running]
        return len(ends) == self._threads and now > max(ends)

    def close(self) -> None:
        """Begin nothing any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, work: _Work[Result]) -> Result:
        work.deadline.check()
        call = work.call
        assert call is not None, "not ended"
        work.started = time.monotonic()
        with self._lock:
            self._running.add(work)
        try:
            return call()
        finally:
            with self._lock:
                self._running.discard(work)
            if work.size:
                self._rate.note(work.size, time.monotonic() - work.started)

    def _ended(self, work: _Work[Result]) -> None:
        work.call = None
        with self._lock:
            self.waiting_bytes -= work.size
