"""Logs on standard error: one JSON object a line, or plain text. No text of a query or document is ever logged."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from blockrank.serve.lines import MOST_WAITING, LineHandler, RepeatFilter

Format = Literal["json", "text"]
_LOGGERS = {
    "blockrank": logging.INFO, "uvicorn.error": logging.WARNING, "asyncio": logging.WARNING,
    "py.warnings": logging.WARNING,
}  # fmt: skip


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time, level, logger, message, and the values of `extra={"fields": ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class TextFormatter(logging.Formatter):
    """The same for reading: time, level, message, name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback where there is one."""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = "".join(f" {name}={_plain(value)}" for name, value in getattr(record, "fields", {}).items())
        line = f"{time} {record.levelname.lower()}: {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _plain(value: object) -> str:
    """A value as one word, quoted if it holds more: a caller's text must not look like a log line of its own."""
    text = str(value)
    return text if text.isprintable() and " " not in text else json.dumps(text)


@contextmanager
def server_logs(
    form: Format, *, verbose: bool = False, stream: TextIO | None = None, most_waiting: int = MOST_WAITING
) -> Iterator[None]:
    """Send the server's logs to standard error, also Python warnings and errors that end a thread.

    Single cut documents are listed only if verbose. Logging never blocks: if the reader does not read, `most_waiting`
    characters are kept, and further lines are dropped and counted.
    """
    handler = LineHandler(stream or sys.stderr, most_waiting)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(lambda record: verbose or record.name != "blockrank.ranker")
    handler.addFilter(RepeatFilter())
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if verbose and logger.name == "blockrank" else _LOGGERS[logger.name])
        logger.propagate = False
    hook, threading.excepthook = threading.excepthook, _log_thread
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        threading.excepthook = hook
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        handler.close()


def _log_thread(error: threading.ExceptHookArgs) -> None:
    """Log the error that ended a thread."""
    name = error.thread.name if error.thread is not None else "a thread"
    trace = (error.exc_type, error.exc_value or error.exc_type(), error.exc_traceback)
    logging.getLogger("blockrank").error("%s has ended", name, exc_info=trace)
