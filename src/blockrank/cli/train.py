"""`blockrank train`: train a model as a config file says, or say what that would take."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from blockrank.cli.console import JsonOption, VerboseOption, aligned, logs, terminal, write_data

if TYPE_CHECKING:
    from blockrank.train.plan import TrainingPlan


def train_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", exists=True, dir_okay=False, help="A TOML file.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what the run would take: data, tokens, memory, time.")
    ] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a model as a config file says."""
    if dry_run and resume:
        raise typer.BadParameter("it does not go with --resume.", param_hint="--dry-run")
    if as_json and not dry_run:
        raise typer.BadParameter("it goes with --dry-run alone.", param_hint="--json")
    with logs(verbose, logging.INFO):
        if dry_run:
            _show_plan(config, as_json)
            return
        from blockrank.train.run import train_from_config

        train_from_config(config, resume)


def _show_plan(config: Path, as_json: bool) -> None:
    from blockrank.train.config import TrainConfig
    from blockrank.train.plan import plan_training

    plan = plan_training(TrainConfig.load(config))
    if as_json:
        write_data(json.dumps(plan.to_dict(), indent=2))
    elif (console := terminal()) is not None:
        table = Table("what", "how much", title=str(config))
        for row in _rows(plan):
            table.add_row(*row)
        console.print(table)
    else:
        write_data("\n".join(aligned(_rows(plan))))


def _rows(plan: TrainingPlan) -> Sequence[tuple[str, str]]:
    """What a reader of the plan wants to know, line by line."""
    memory = plan.memory_bytes
    rows = [
        (f"source {source['name']}", f"{source['queries']} queries, {source['share']:.1%} of the requests")
        for source in plan.sources
    ]
    rows += [
        ("steps", f"{plan.steps}, of {plan.forwards_in_step} forwards each"),
        (
            "a step",
            f"{plan.requests_in_step:.1f} requests, {plan.tokens_in_step:,.0f} tokens "
            f"(mean of {plan.sampled_steps}); largest forward {plan.largest_forward:,} tokens",
        ),
        ("all steps", f"{plan.total_tokens:,} tokens"),
        ("parameters", f"{plan.parameters:,}, of which {plan.trainable:,} are trained"),
        ("memory", ", ".join(f"{name} {_size(size)}" for name, size in memory.items())),
        (
            "time",
            f"at least {_duration(plan.seconds_in_step)} a step, {_duration(plan.seconds)} in all: "
            f"{plan.flops_in_step:.2e} operations, {plan.device} does {plan.flops_per_second:.2e} a second",
        ),
    ]
    if plan.dev is not None:
        rows.append(
            ("dev set", f"{plan.dev['queries']} queries, {plan.dev['measure']} every {plan.dev['every']} steps")
        )
    return [*rows, ("output", plan.output)]


def _size(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB" if size >= 1 << 27 else f"{size / (1 << 20):.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
