"""Commands whose standard streams are closed, full or not read: no traceback, and the right exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a shell")


def run(redirection: str, *arguments: str) -> tuple[int, str, str]:
    """A command behind a redirection of bash; exit code, standard output and error."""
    command = [sys.executable, "-m", "blockrank", *arguments]
    script = f'"$@" {redirection}'
    found = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script, "bash", *command], capture_output=True, text=True, timeout=120,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert "Traceback" not in found.stderr
    assert "Exception ignored" not in found.stderr
    return found.returncode, found.stdout, found.stderr


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training requests, which a command shows without a model."""
    path = tmp_path_factory.mktemp("streams") / "requests.jsonl"
    row = '{"query": "rivers", "documents": ["the Rhine", "a lamp"], "positives": [0]}\n'
    path.write_text(1000 * row, encoding="utf-8")
    return path


def test_a_closed_output_is_an_error(rows: Path) -> None:
    """What was asked for is lost: that is said, and the exit code is 1."""
    closed = "blockrank: error: standard output: it is closed.\n"
    assert run(">&-", "--version") == (1, "", closed)
    assert run(">&-", "data", "show", str(rows)) == (1, "", closed)
    assert run(">&- 2>&- <&-", "data", "show", str(rows)) == (1, "", "")


def test_closed_errors_and_inputs_are_none(rows: Path) -> None:
    """What can be done is done."""
    plain = run("", "data", "show", str(rows))
    assert plain[0] == 0
    assert run("2>&- <&-", "data", "show", str(rows))[:2] == plain[:2]
    assert run("2>&-", "data", "show", str(rows / "none")) == (1, "", "")
    code, output, errors = run("<&-", "rank", "rivers", "-")
    assert (code, output) == (1, "")
    assert "nothing to rank" in errors
    assert "(doc_id 'stdin')" in run("<&-", "rank", "rivers", __file__, "-")[2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full")
def test_a_full_device_is_an_error(rows: Path) -> None:
    full = "blockrank: error: input or output failed: No space left on device.\n"
    assert run(">/dev/full", "--version") == (1, "", full)
    assert run(">/dev/full", "data", "show", str(rows)) == (1, "", full)
    assert run("2>/dev/full", "--version")[0] == 0


def test_a_reader_that_leaves_is_quiet(rows: Path) -> None:
    code, output, errors = run("| head -c 5", "data", "show", str(rows), "--examples", "1000")
    assert code in (0, 1)
    assert (len(output), errors) == (5, "")


def test_serve_with_everything_closed_says_why_it_ends(tmp_path: Path) -> None:
    """Its standard streams are no connections of its: the next file takes none of their numbers."""
    code, output, errors = run(">&- <&-", "serve", "--key-file", str(tmp_path))
    assert (code, output) == (1, "")
    assert "Is a directory" in errors
    assert run(">&- <&- 2>&-", "serve", "--key-file", str(tmp_path)) == (1, "", "")
