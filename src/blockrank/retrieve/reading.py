"""Files are read in a separate process, so that no file can block or crash a search.

Text, Markdown, HTML and PDF files are read by third-party parsers that cannot be interrupted within a process. The
process reads one file after the other, with a timeout for each and, where the system supports it, a memory limit; if it
fails, it is killed and restarted for the next file.
"""

from __future__ import annotations

import json
import logging
import math
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from blockrank.retrieve.files import SourceFile, UnreadableError, read_passages
from blockrank.retrieve.passages import Passage
from blockrank.types import BlockrankError, InputError, MissingExtraError

_START_SECONDS = 60  # for a new process to load its modules; not counted against any file
_USUAL_BYTES = 5_000_000  # HTML of this size takes about 4 s on one core
_SPARE_SECONDS = 2  # delay of the process's own alarm after the timeout checked here
# The same modules as in this process, and none from the working directory.
_CODE = (
    "import sys; numbers = sys.argv[1:4]; sys.path[:] = sys.argv[4:]; "
    "from blockrank.retrieve.reading import answer; answer(*map(int, numbers))"
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Limits for reading one file.

    seconds: of a file up to 5 MB, of a larger one in proportion. memory_bytes: of the whole process. text_chars: of all
    passages of the file.

    Raises `InputError` on a value that is not positive.
    """

    seconds: float = 20.0
    memory_bytes: int = 3 << 30
    text_chars: int = 100_000_000

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{item.name} must be a positive number, not {value!r}.")

    def seconds_for(self, size: int) -> float:
        """Time limit in seconds for reading a file of that size."""
        return self.seconds * max(1.0, size / _USUAL_BYTES)


class LimitError(UnreadableError):
    """Reading a file exceeded a limit; the message is the category in which it is counted."""


class FileReader:
    """Reads files one at a time; a context manager, which ends its process at the end.

    Files of JSON lines are read in the calling process: only the standard library's JSON parser reads them, line by
    line, and their size is not limited.
    """

    def __init__(self, limits: ReadLimits | None = None) -> None:
        self.limits = limits or ReadLimits()
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[bytes] = queue.Queue()

    def __enter__(self) -> FileReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def read(self, file: SourceFile) -> list[Passage]:
        """The passages of one file, in order; errors as those of `read_passages`.

        Raises `LimitError` where it exceeded a limit, after a log message, `BlockrankError` where no process can be
        started.
        """
        if file.holds_documents:
            return read_passages(file)
        process = self._process or self._start()
        seconds = self.limits.seconds_for(file.size)
        request = [file.path, str(file.place), file.size, seconds + _SPARE_SECONDS]
        try:
            assert process.stdin is not None, "a pipe"
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            answer = json.loads(self._answers.get(timeout=seconds))
        except queue.Empty:
            self._end()
            self._refuse(file, "files that take too long", f"reading it takes longer than {seconds:.3g} s")
        except (OSError, ValueError):  # the pipe is closed, or an answer is truncated
            self._end()
            self._refuse(file, "files that break their parser", "its parser came to a sudden end")
        return self._passages(file, answer)

    def _passages(self, file: SourceFile, answer: dict[str, Any]) -> list[Passage]:
        for level, message in answer["log"]:
            _log.log(level, "%s", message)
        if "passages" in answer:
            return [Passage(*values) for values in answer["passages"]]
        if "missing" in answer:
            raise MissingExtraError(answer["missing"])
        if "limit" in answer:
            self._end()
            self._refuse(file, *answer["limit"])
        raise UnreadableError(answer["unreadable"])

    def _refuse(self, file: SourceFile, kind: str, sentence: str) -> None:
        _log.warning("%s: skipped: %s.", file.place, sentence)
        raise LimitError(kind)

    def _start(self) -> subprocess.Popen[bytes]:
        """A new process that has loaded its modules."""
        limits = self.limits
        numbers = (limits.memory_bytes, limits.text_chars, _log.getEffectiveLevel())
        words = [sys.executable, "-c", _CODE, *map(str, numbers), *sys.path]
        try:
            process = subprocess.Popen(  # noqa: S603  # fixed words
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise BlockrankError(f"the process that reads files does not start: {error.strerror}.") from None
        self._process, self._answers = process, queue.Queue()
        assert process.stdout is not None, "a pipe"
        threading.Thread(target=_forward, args=(process.stdout, self._answers), daemon=True).start()
        with suppress(queue.Empty):
            if self._answers.get(timeout=_START_SECONDS):
                return process
        self._end()
        raise BlockrankError("the process that reads files does not start.")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        assert process.stdin is not None, "a pipe"
        with suppress(OSError):
            process.stdin.close()
        process.wait()


def _forward(stream: BinaryIO, answers: queue.Queue[bytes]) -> None:
    """Put lines into a queue until the end; then an empty one."""
    with stream:
        while line := stream.readline():
            answers.put(line)
    answers.put(b"")


# In the reading process


def answer(memory_bytes: int, text_chars: int, level: int) -> None:
    """Read the files named on standard input, a line each, and write a line for each to standard output.

    level: of log records that go with an answer.
    """
    _limit_memory(memory_bytes)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # output of a parser must not mix with answers
    records = _Records(level)
    logging.getLogger("blockrank").addHandler(records)
    logging.getLogger("blockrank").setLevel(level)
    answers.write(b"{}\n")
    answers.flush()
    for line in requests:
        path, place, size, seconds = json.loads(line)
        with _alarm(seconds):
            found = _answered(SourceFile(path, Path(place), size, holds_documents=False), text_chars)
            data = json.dumps({**found, "log": records.taken()}).encode()
        answers.write(data + b"\n")
        answers.flush()


def _answered(file: SourceFile, text_chars: int) -> dict[str, Any]:
    try:
        passages = read_passages(file)
    except UnreadableError as reason:
        return {"unreadable": str(reason)}
    except MissingExtraError as error:
        return {"missing": str(error)}
    except MemoryError:
        return {"limit": ("files that take too much memory", "reading it takes too much memory")}
    except Exception as error:  # a parser can raise anything
        return {"limit": ("files that break their parser", f"its parser fails with {type(error).__name__}")}
    if _chars(passages) > text_chars:
        return {"limit": ("files with too much text", f"it holds more than {text_chars:,} characters of text")}
    return {"passages": [astuple(passage) for passage in passages]}


def _chars(passages: Sequence[Passage]) -> int:
    return sum(len(passage.text) for passage in passages)


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """End this process if it takes longer, even if its parent is gone."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)  # without a handler the signal ends a process in any state
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_memory(memory_bytes: int) -> None:
    """Limit the memory of this process, where the system supports it."""
    try:
        import resource
    except ImportError:
        return
    with suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        least = memory_bytes if most == resource.RLIM_INFINITY else min(memory_bytes, most)
        resource.setrlimit(resource.RLIMIT_AS, (least, most))


class _Records(logging.Handler):
    """Collects log records until they are taken."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._held: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self._held.append((record.levelno, record.getMessage()))

    def taken(self) -> list[tuple[int, str]]:
        """The records since the last call."""
        held, self._held = self._held, []
        return held
