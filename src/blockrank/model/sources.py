"""Names of checkpoints, what is not a folder or a hub name; and what a library says of one that it cannot read."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from blockrank.configfile import read_json
from blockrank.spec import EMBEDDED
from blockrank.types import InputError

EMBEDDED_MODEL = Path(__file__).parents[1] / "models" / "mini"
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def located(name_or_path: str | Path | None) -> str | Path:
    """The folder of the embedded model for None and "embedded"; anything else as it is (`./embedded` is a folder)."""
    return EMBEDDED_MODEL if name_or_path is None or name_or_path == EMBEDDED else name_or_path


def one_line(error: BaseException) -> str:
    """What a library's error says, on one line and not too long; the error's type where that says nothing."""
    text = textwrap.shorten(str(error), 240, placeholder=" ...")
    return f"{type(error).__name__} {text}".rstrip() if not text or isinstance(error, KeyError) else text


def broken_file(folder: Path) -> str | None:
    """What is wrong with a file of settings in the folder of a checkpoint, in one sentence; None where none is."""
    for path in sorted(folder.glob("*.json")):
        try:
            read_json(path)
        except InputError as error:
            return str(error)
    return None
