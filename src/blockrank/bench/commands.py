"""Any command as a peer: its own time in milliseconds where it tells one, else how long it ran."""

from __future__ import annotations

import json
import math
import subprocess
import time

from blockrank.bench.result import Timing
from blockrank.bench.settings import Shape, command_words
from blockrank.types import InputError


def time_command(command: str, shape: Shape, repeats: int) -> Timing:
    """Run a command `repeats` times after one run that warms up, without a shell.

    {documents} and {length} in its words are replaced. Where the last line of its standard output is a JSON object with
    "ms", that is its time, else the wall time of the process, its start included. Raises `InputError` where it cannot
    be run, fails, or gives an "ms" that is no positive number.
    """
    fields = {"{documents}": str(shape.documents), "{length}": str(shape.length)}
    words = command_words(command)
    for name, value in fields.items():
        words = [word.replace(name, value) for word in words]
    return Timing([_run(words, f"against {command!r}, {shape}") for _ in range(repeats + 1)][1:])


def _run(words: list[str], where: str) -> float:
    """Milliseconds of one run; `where` begins the sentence of an error."""
    start = time.perf_counter()
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603  # asked for
    except OSError as error:
        raise InputError(f"{where}: it cannot be run: {error.strerror}.") from None
    wall = 1000 * (time.perf_counter() - start)
    if done.returncode:
        said = _last_line(done.stderr)
        raise InputError(f"{where}: it failed with exit code {done.returncode}{': ' if said else '.'}{said}")
    told = _told_ms(_last_line(done.stdout))
    if told is None:
        return wall
    if isinstance(told, bool) or not isinstance(told, int | float) or not 0 < told < math.inf:
        raise InputError(f'{where}: its "ms" must be a positive number, not {told!r}.')
    return float(told)


def _last_line(output: bytes) -> str:
    lines = output.decode("utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _told_ms(line: str) -> object:
    """What a line of JSON says of "ms"; None where it says nothing."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found.get("ms") if isinstance(found, dict) else None
