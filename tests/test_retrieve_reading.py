"""Files read in a process of its own: what one file may take, and that the others are read."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from blockrank import BlockrankError, InputError, MissingExtraError
from blockrank.cli import app
from blockrank.retrieve import PassageIndex, ReadLimits, search
from blockrank.retrieve.files import SourceFile, UnreadableError, list_files, read_passages
from blockrank.retrieve.reading import FileReader, LimitError

# A stand-in for the parser of HTML, which does what the page says.
PARSER = """
import os, time

class BeautifulSoup:
    def __init__(self, source, parser):
        exec(source)
"""
SOON = ReadLimits(seconds=2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two texts, and a parser of HTML that does what pages say in the processes that read."""
    monkeypatch.setenv("BLOCKRANK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "bs4.py").write_text(PARSER, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.txt").write_text("A zebra.", encoding="utf-8")
    (notes / "z.md").write_text("# Zebras\n\nThey graze.", encoding="utf-8")
    return notes


def page(folder: Path, orders: str, name: str = "page.html") -> SourceFile:
    (folder / name).write_text(orders, encoding="utf-8")
    return next(file for file in list_files(folder)[0] if file.path == name)


def test_a_file_that_takes_too_long_is_skipped_and_the_others_are_read(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page(folder, "time.sleep(600)")
    start = time.monotonic()
    index = PassageIndex.open(folder, limits=SOON)
    assert time.monotonic() - start < 60
    assert index.skipped == {"files that take too long": 1}
    assert sorted(hit.passage.path for hit in index.search("zebra", ranker=None)) == ["a.txt", "z.md"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}/page.html: skipped: reading it takes longer than 2 s."
    ]


def test_what_took_too_long_is_tried_again_with_other_limits_alone(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page(folder, "time.sleep(600)")
    PassageIndex.open(folder, limits=SOON)
    (folder / "new.txt").write_text("A horse.", encoding="utf-8")
    assert PassageIndex.open(folder, limits=SOON).skipped == {"files that take too long": 1}
    assert len(caplog.records) == 1
    PassageIndex.open(folder, limits=ReadLimits(seconds=2.1))
    assert len(caplog.records) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="no limit of memory here")
def test_a_file_that_takes_too_much_memory_is_skipped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    page(folder, "bytearray(64 << 30)")
    assert PassageIndex.open(folder).skipped == {"files that take too much memory": 1}
    assert "page.html: skipped: reading it takes too much memory." in caplog.text


def test_a_file_whose_parser_fails_or_ends_is_skipped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    page(folder, "raise RecursionError('deep')", "b.html")
    page(folder, "os._exit(1)", "c.html")
    page(folder, "os.write(1, b'no answer\\n')", "d.html")
    assert PassageIndex.open(folder).skipped == {"files that break their parser": 3}
    assert "b.html: skipped: its parser fails with RecursionError." in caplog.text
    assert "c.html: skipped: its parser came to a sudden end." in caplog.text
    assert "d.html: skipped: its parser came to a sudden end." in caplog.text


def test_a_file_with_too_much_text_is_skipped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    limits = ReadLimits(text_chars=30)
    (folder / "long.txt").write_text("word " * 20, encoding="utf-8")
    assert PassageIndex.open(folder, limits=limits).skipped == {"files with too much text": 1}
    assert "long.txt: skipped: it holds more than 30 characters of text." in caplog.text


def test_one_process_reads_all_files_and_ends_with_the_reader(folder: Path) -> None:
    files, _ = list_files(folder)
    with FileReader() as reader:
        assert reader._process is None
        assert reader.read(files[0]) == read_passages(files[0])
        first = reader._process
        assert reader.read(files[1]) == read_passages(files[1])
        assert reader._process is first
        assert first is not None
        assert first.poll() is None
        with pytest.raises(LimitError):
            reader.read(page(folder, "os._exit(1)"))
        assert reader.read(files[0]) == read_passages(files[0])
        second = reader._process
        assert second is not first
    assert second is not None
    assert second.poll() is not None
    gc.collect()  # whatever was left open would be told of


def test_errors_are_those_of_reading_here(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"\0")
    (folder.parent / "modules" / "bs4.py").write_text("raise ImportError", encoding="utf-8")
    with FileReader() as reader:
        with pytest.raises(UnreadableError, match="binary files"):
            reader.read(list_files(folder / "a.bin")[0][0])
        with pytest.raises(MissingExtraError, match=r"blockrank\[search\]"):
            reader.read(page(folder, "<p>text</p>"))


def test_the_only_file_that_is_over_a_limit_is_an_error(folder: Path) -> None:
    page(folder, "raise RecursionError")
    with pytest.raises(InputError, match=r"no text to search in; skipped: files that break their parser \(1\)"):
        PassageIndex.open(folder / "page.html")


def test_modules_of_the_working_directory_are_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "json.py").write_text("open('ran', 'w').close()", encoding="utf-8")
    monkeypatch.chdir(folder)
    assert len(search(Path("z.md"), "zebras", ranker=None)) == 1
    assert not (folder / "ran").exists()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no alarm here")
def test_a_process_whose_parent_is_gone_ends_by_itself(folder: Path) -> None:
    page(folder, "open('pid', 'w').write(str(os.getpid())); time.sleep(600)")
    code = "from blockrank.retrieve import *; PassageIndex.open('.', limits=ReadLimits(seconds=1))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    pid = int((folder / "pid").read_text())
    parent.kill()
    parent.wait()
    while _is_running(pid):
        assert time.monotonic() < until
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return not Path("/proc/self").exists()


@pytest.mark.parametrize(
    "changes", [{"seconds": 0}, {"seconds": float("nan")}, {"memory_bytes": -1}, {"text_chars": 0}]
)
def test_limits_are_positive(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(changes))} must be a positive number"):
        ReadLimits(**changes)


@pytest.mark.parametrize("program", ["/nowhere/python", shutil.which("true")])
def test_a_process_that_does_not_start_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(BlockrankError, match="the process that reads files does not start"):
        PassageIndex.open(folder)


def test_larger_files_have_time_in_proportion() -> None:
    assert [ReadLimits(seconds=20).seconds_for(size) for size in (0, 5_000_000, 20_000_000)] == [20, 20, 80]


def test_the_command_says_what_it_skipped_and_answers(folder: Path) -> None:
    page(folder, "time.sleep(600)")
    arguments = ["search", str(folder), "zebra", "--no-rerank", "--json", "--file-timeout", "2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert {json.loads(line)["doc_id"] for line in result.stdout.splitlines()} == {"a.txt", "z.md"}
    assert result.stderr.splitlines() == [
        f"blockrank.retrieve.reading: {folder}/page.html: skipped: reading it takes longer than 2 s.",
        "blockrank: skipped files that take too long (1).",
    ]
