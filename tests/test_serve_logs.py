"""Logs of the server: one line a record, as JSON or as text."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import time
import warnings
from typing import Any

import pytest
from serving import wait_until

from blockrank.serve.logs import server_logs


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_record_is_one_line(form: Any) -> None:
    stream, before = io.StringIO(), logging.getLogger("blockrank").handlers[:]
    with server_logs(form, stream=stream):
        fields = {"path": "/a\n12:00:00 info: forged", "status": 404}
        logging.getLogger("blockrank.serve.front").info("request", extra={"fields": fields})
        logging.getLogger("blockrank.ranker").warning("a document was cut")
        logging.getLogger("uvicorn.error").info("noise")
    logging.getLogger("blockrank.serve.front").warning("nobody listens any more")
    [line] = stream.getvalue().splitlines()
    if form == "json":
        entry = json.loads(line)
        assert (entry["message"], entry["level"], entry["path"]) == ("request", "info", fields["path"])
    else:
        assert line.endswith(r'info: request path="/a\n12:00:00 info: forged" status=404')
    assert logging.getLogger("blockrank").handlers == before


def test_a_traceback_is_kept() -> None:
    stream = io.StringIO()
    with server_logs("json", verbose=True, stream=stream):
        try:
            raise ValueError("why")
        except ValueError:
            logging.getLogger("blockrank.serve").exception("failed")
        logging.getLogger("blockrank.ranker").warning("a document was cut")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert "ValueError: why" in first["traceback"]
    assert second["message"] == "a document was cut"


@pytest.mark.parametrize("reader", ["never", "late"])
def test_nobody_waits_for_a_reader(reader: str) -> None:
    """A pipe that nobody reads: lines are kept up to a bound, dropped beyond and counted; the end comes in time."""
    source, sink = os.pipe()
    log = logging.getLogger("blockrank.serve")
    with os.fdopen(source, encoding="utf-8") as lines, os.fdopen(sink, "w", encoding="utf-8") as stream:
        started = time.monotonic()
        with server_logs("json", stream=stream, most_waiting=100_000):
            for number in range(5000):
                log.info("line %d", number, extra={"fields": {"padding": "x" * 100}})
            took = time.monotonic() - started
            found: list[Any] = []
            if reader == "late":
                thread = threading.Thread(target=lambda: found.extend(map(json.loads, lines)))
                thread.start()
                wait_until(lambda: any("dropped" in entry["message"] for entry in found))
                log.info("read again")
        assert took < 10
        assert time.monotonic() - started < 20
        stream.close()
        if reader == "late":
            thread.join(10)
            words = [entry["message"] for entry in found]
            dropped = sum(int(word.split()[0]) for word in words if word.endswith("nobody read the log"))
            kept = [word for word in words if word.startswith("line ")]
            assert dropped + len(kept) == 5000
            assert kept == sorted(kept, key=lambda word: int(word.split()[1]))
            assert words[0] == "line 0"
            assert words[-1] == "read again"


def test_a_reader_that_has_left_is_no_fault() -> None:
    source, sink = os.pipe()
    os.close(source)
    with os.fdopen(sink, "w", encoding="utf-8") as stream, server_logs("json", stream=stream):
        for _ in range(10):
            logging.getLogger("blockrank").warning("to nobody")


def test_what_repeats_is_counted() -> None:
    """Out of descriptors the event loop says so thousands of times a second; lines of requests all are written."""
    stream = io.StringIO()
    with server_logs("json", stream=stream):
        for _ in range(1000):
            logging.getLogger("asyncio").error("socket.accept() out of system resource")
            try:
                raise OSError(24, "Too many open files")
            except OSError:
                logging.getLogger("blockrank.serve").exception("failed")
            logging.getLogger("blockrank.serve.front").warning("request", extra={"fields": {"status": 500}})
        later = logging.getLogger("asyncio").makeRecord(
            "asyncio", 40, "", 0, "socket.accept() out of system resource", (), None
        )
        later.created += 60
        logging.getLogger("asyncio").handle(later)
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    counts = {name: sum(entry["logger"] == name for entry in entries) for name in ("asyncio", "blockrank.serve")}
    assert counts == {"asyncio": 6, "blockrank.serve": 5}
    assert sum(entry["message"] == "request" for entry in entries) == 1000
    assert entries[-1]["repeated"] == 995


def test_threads_and_warnings_are_logged_like_all_else() -> None:
    stream = io.StringIO()
    with server_logs("json", stream=stream):
        thread = threading.Thread(target=lambda: 1 / 0, name="worker")
        thread.start()
        thread.join()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(False)
            logging.captureWarnings(True)
            warnings.warn("old", stacklevel=1)
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert "ZeroDivisionError" in entries[0]["traceback"]
    assert entries[0]["message"] == "worker has ended"
    assert "old" in entries[1]["message"]


def test_a_record_that_cannot_be_written_is_told() -> None:
    stream = io.StringIO()
    with server_logs("json", stream=stream):
        logging.getLogger("blockrank.serve").error("%d", "no number")
        logging.getLogger("blockrank.serve").error("\ud800 %s", "lone")
    first, second = stream.getvalue().splitlines()
    assert "could not be written" in first
    assert json.loads(second)["message"] == "\ud800 lone"
