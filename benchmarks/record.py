"""Dated benchmark records: hardware, versions, command and commit beside every number."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from blockrank.bench import record


def environment() -> dict[str, Any]:
    """What a reader needs to repeat a measurement, of the script that runs."""
    command = " ".join([Path(sys.argv[0]).name, *(_portable(argument) for argument in sys.argv[1:])])
    return record.environment(["cuda:0" if torch.cuda.is_available() else "cpu"], command)


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write a record as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _portable(argument: str) -> str:
    """An argument without the folders of one machine."""
    return Path(argument).name if Path(argument).is_absolute() else argument
