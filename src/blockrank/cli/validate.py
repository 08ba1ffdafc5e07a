"""`blockrank validate`: every problem of a run, of judgements, of requests or of documents."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from blockrank.cli.console import data_stream, note
from blockrank.data import Kind, Report, Source, source_name, validate

_NAMES = {"run": "a run", "qrels": "judgements", "requests": "requests", "documents": "documents"}

FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="A file, may be .gz; - is standard input.")]
KindOption = Annotated[Kind | None, typer.Option("--kind", help="Kind of file; recognised by its lines if left out.")]
LimitOption = Annotated[int, typer.Option("--limit", min=0, help="Show at most this many problems and count the rest.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Leave with exit code 1 for warnings too.")]


def validate_command(
    file: FileArgument, kind: KindOption = None, limit: LimitOption = 100, strict: StrictOption = False
) -> None:
    """Check a file and list every problem by line; exit code 1 where there is an error."""
    source: Source = typer.get_binary_stream("stdin") if file == "-" else file
    report = validate(source, kind)
    name = source_name(source)
    if kind is None:
        note(f"{name} was taken for {_NAMES[report.kind]}; --kind says otherwise.")
    with data_stream(None) as stream:
        stream.writelines(f"{line}\n".encode() for line in problem_lines(name, report, limit))
    note(f"{name}: {summary(report)}.")
    if (strict and report.problems) or any(problem.severity == "error" for problem in report.problems):
        raise typer.Exit(1)


def problem_lines(name: str, report: Report, limit: int) -> list[str]:
    """`FILE:LINE: severity: sentence` of the first problems, and how many more there are."""
    lines = [
        f"{name}{f':{problem.line}' if problem.line else ''}: {problem.severity}: {problem.sentence}"
        for problem in report.problems[:limit]
    ]
    more = len(report.problems) - limit
    return [*lines, f"{_counted(more, 'more problem')} not shown."] if more > 0 else lines


def summary(report: Report) -> str:
    """What was read, and how much is wrong with it."""
    found = _counted(report.documents, "document")
    if report.depths:
        low, high = min(report.depths.values()), max(report.depths.values())
        depth = f"{low}" if low == high else f"{low} to {high}"
        found = f"{_counted(len(report.depths), 'query', 'queries')}, {found}, {depth} a query"
    severities = Counter(problem.severity for problem in report.problems)
    wrong = [_counted(severities[name], name) for name in ("error", "warning") if severities[name]]
    return f"{found}; {' and '.join(wrong) or 'no problems'}"


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
