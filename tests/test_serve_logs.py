"""Logs of the server: one line a record, as JSON or as text."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest

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
