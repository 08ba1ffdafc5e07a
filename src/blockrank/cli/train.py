"""`blockrank train`: train a model as a config file says."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from blockrank.cli.console import VerboseOption, logs


def train_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", exists=True, dir_okay=False, help="A TOML file.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a model as a config file says."""
    from blockrank.train.run import train_from_config

    with logs(verbose, logging.INFO):
        train_from_config(config, resume)
