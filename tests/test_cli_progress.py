"""Bars of the command line: one kind, on standard error, where that is a terminal."""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path

import pytest

import blockrank
from blockrank.cli.progress import progress_bars

SOURCE = Path(blockrank.__file__).parent


class Terminal(io.StringIO):
    """What takes a bar."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("draw_between", [True, False])
def test_a_terminal_shows_how_far_each_piece_of_work_is(monkeypatch: pytest.MonkeyPatch, draw_between: bool) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bars(draw_between=draw_between) as report:
        report("[red]documents", 3, 7)
        report("queries", 2, 2)
    assert "[red]documents" in terminal.getvalue()  # a name is no markup
    assert "3/7" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()


def test_what_is_no_terminal_stays_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars(stay=False) as report:
        report("ranking", 1, 2)
    found = capsys.readouterr()
    assert found.out == ""
    assert not found.err.strip()


def test_bars_are_drawn_in_one_place() -> None:
    users = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "rich.progress"
    }
    assert users == {"cli/progress.py"}
