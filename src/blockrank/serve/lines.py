"""Log output in a thread of its own, so that nothing blocks when the reader of the log does not read."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import time
from collections import deque
from collections.abc import Callable
from threading import Condition, Thread
from typing import TextIO

MOST_WAITING = 4 << 20  # characters
_PIECE_BYTES = 4096  # a pipe reported as writable takes this many bytes without blocking (PIPE_BUF)
_LOOK_S = 0.1  # interval of checks for shutdown, while the reader does not read
_LAST_S = 1.0  # to write the remaining lines at shutdown
_MOST_MESSAGES = 1000  # different messages that are tracked
_REPEATS, _REPEATS_S = 5, 10.0  # one message is written at most so often in so many seconds


class LineHandler(logging.Handler):
    """Hands lines to a thread that writes them. When the queue is full, lines are dropped until half of it is read;
    their number is logged in their place."""

    def __init__(self, stream: TextIO, most_waiting: int = MOST_WAITING) -> None:
        super().__init__()
        self._lines: deque[str] = deque()
        self._most_waiting, self._waiting, self._dropped = most_waiting, 0, 0
        self._changed, self._end_at = Condition(), math.inf
        self._write = _writer(stream, lambda: time.monotonic() > self._end_at)
        self._thread = Thread(target=self._run, name="blockrank-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Let a line wait."""
        try:
            line = self.format(record)
        except Exception:
            line = f"a record of {record.name} could not be written."
        with self._changed:
            if self._waiting + len(line) > (self._most_waiting // 2 if self._dropped else self._most_waiting):
                self._dropped += 1
                return
            if self._dropped:
                self._put(self._told())
            self._put(line)

    def close(self) -> None:
        """Write what is left, if it is read within a second."""
        with self._changed:
            self._end_at = time.monotonic() + _LAST_S
            self._changed.notify()
        self._thread.join(2 * _LAST_S)
        super().close()

    def _put(self, line: str) -> None:
        self._lines.append(line)
        self._waiting += len(line)
        self._changed.notify()

    def _told(self) -> str:
        """The line about those that were dropped."""
        fields = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
        dropped, self._dropped = self._dropped, 0
        told = {"msg": "%d lines were dropped: nobody read the log", "args": (dropped,)}
        return self.format(logging.makeLogRecord({**fields, **told}))

    def _run(self) -> None:
        while (line := self._next()) is not None:
            self._write(line + "\n")

    def _next(self) -> str | None:
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._dropped or self._end_at < math.inf)
            if not self._lines:
                return self._told() if self._dropped else None
            line = self._lines.popleft()
            self._waiting -= len(line)
            return line


class RepeatFilter(logging.Filter):
    """Rate limit for repeated messages: a few pass, and a later line says how many did not. Request lines all pass."""

    def __init__(self, most: int = _REPEATS, seconds: float = _REPEATS_S) -> None:
        super().__init__()
        self._most, self._seconds = most, seconds
        self._seen: dict[tuple[str, str, str], list[float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        if record.levelno < logging.WARNING or hasattr(record, "fields"):
            return True
        error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        key = (record.name, str(record.msg), error)
        began, count, held = self._seen.get(key, [record.created - self._seconds, 0, 0])
        if record.created - began >= self._seconds:
            began, count, held, before = record.created, 0, 0, held
            if before:
                record.fields = {"repeated": int(before)}
        passes = count < self._most
        if len(self._seen) >= _MOST_MESSAGES:
            self._seen.clear()
        self._seen[key] = [began, count + passes, held + (not passes)]
        return passes


def _writer(stream: TextIO, is_over: Callable[[], bool]) -> Callable[[str], None]:
    """A function that writes text to a stream; if the stream has a descriptor, it stops waiting once `is_over`."""
    try:
        descriptor = stream.fileno()
        looks = hasattr(select, "poll")
    except (OSError, ValueError, AttributeError):
        looks = False
    if not looks:

        def write_stream(text: str) -> None:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.write(text)
                stream.flush()

        return write_stream

    def write_descriptor(text: str) -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        left = text.encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):
            while left and not is_over():
                if poll.poll(1000 * _LOOK_S):
                    left = left[os.write(descriptor, left[:_PIECE_BYTES]) :]

    return write_descriptor
