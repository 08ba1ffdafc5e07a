"""Logs on standard error: one JSON object a line, or plain text. No text of a query or document is ever logged."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

Format = Literal["json", "text"]
_LOGGERS = {"blockrank": logging.INFO, "uvicorn.error": logging.WARNING}


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time, level, logger, message, and what `extra={"fields": ...}` brought."""

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
    """A value as one word, quoted where it holds more: what a caller sent must not look like lines of ours."""
    text = str(value)
    return text if text.isprintable() and " " not in text else json.dumps(text)


@contextmanager
def server_logs(form: Format, *, verbose: bool = False, stream: TextIO | None = None) -> Iterator[None]:
    """Send the logs of the server to standard error. Single cut documents are listed only where verbose."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(lambda record: verbose or record.name != "blockrank.ranker")
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if verbose and logger.name == "blockrank" else _LOGGERS[logger.name])
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
