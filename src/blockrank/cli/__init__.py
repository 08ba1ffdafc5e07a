"""The command line: the only reader of argv, environment and config files.

Exit codes: 0 done, 1 failed (one sentence on standard error), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

from typing import Annotated

import typer

from blockrank import __version__
from blockrank.cli.analyze import analyze_command
from blockrank.cli.bench import bench_command
from blockrank.cli.console import Command, Commands
from blockrank.cli.data import data_app
from blockrank.cli.distil import distil_command
from blockrank.cli.doctor import doctor_command
from blockrank.cli.eval import eval_command
from blockrank.cli.inspect import inspect_command
from blockrank.cli.mcp import mcp_command
from blockrank.cli.rank import rank_command
from blockrank.cli.search import search_command
from blockrank.cli.serve import serve_command
from blockrank.cli.streams import open_standard_streams
from blockrank.cli.train import train_command
from blockrank.cli.validate import validate_command

__all__ = ["app", "main"]

app = typer.Typer(
    name="blockrank", cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
app.command("rank")(rank_command)
app.command("inspect")(inspect_command)
app.command("doctor")(doctor_command)
app.command("search")(search_command)
app.command("serve")(serve_command)
app.command("mcp")(mcp_command)
app.command("train")(train_command)
app.add_typer(data_app, name="data")
app.command("distil")(distil_command)
app.command("validate")(validate_command)
app.command("eval")(eval_command)
app.command("analyze")(analyze_command)
app.command("bench")(bench_command)
for _command in (*app.registered_commands, *data_app.registered_commands):
    _command.cls = Command


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"blockrank {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Rank documents in context with a language model."""


def main() -> None:
    """Run the command line on `sys.argv` and leave with its exit code."""
    open_standard_streams()
    app()
