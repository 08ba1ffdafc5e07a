"""Bars on standard error for long work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from blockrank.cli.console import preview
from blockrank.types.progress import NamedProgress

_LONGEST_NAME = 60


@contextmanager
def progress_bars(*, stay: bool = True, draw_between: bool = False) -> Iterator[NamedProgress]:
    """A bar for everything that is reported, on standard error, where that is a terminal.

    stay: the bars are left there at the end. draw_between: they are drawn only when something is reported, where a bar
    that draws itself would take time from what is measured.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=not stay,
        auto_refresh=not draw_between,
    ) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(preview(what, _LONGEST_NAME), total=total)
            bars.update(tasks[what], completed=done, total=total, refresh=draw_between)

        yield report
