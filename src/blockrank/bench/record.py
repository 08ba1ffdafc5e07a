"""What a reader needs to repeat a measurement."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blockrank.report.environment import machine, versions

_PACKAGE = Path(__file__).parents[1]
_CORE = ("torch", "transformers", "numpy", "safetensors")


def environment(devices: Sequence[str], command: str) -> dict[str, Any]:
    """Date, command, state of the source, hardware and versions; JSON-ready. devices: as torch names them."""
    import torch

    names = Counter(torch.cuda.get_device_name(device) for device in devices if device.startswith("cuda"))
    gpu = ", ".join(name if number == 1 else f"{number} x {name}" for name, number in names.items()) or None
    hardware = {**machine(), "threads": torch.get_num_threads(), "device": ",".join(devices), "gpu": gpu}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        **checkout(_PACKAGE),
        "hardware": hardware,
        "versions": {**versions(_CORE), "cuda": torch.version.cuda},
    }


def checkout(folder: Path) -> dict[str, Any]:
    """Commit of the checkout that a package is part of, and how many of the package's files differ from it.

    Both None where it is part of none: also where it was installed below another project's checkout.
    """
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "changed_files": None}
    changed = _git(folder, "status", "--porcelain", "--", ".") or ""
    return {"commit": _git(folder, "rev-parse", "--short", "HEAD"), "changed_files": len(changed.splitlines())}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says of a folder; None where it fails, or is not there."""
    program = shutil.which("git")
    if program is None:
        return None
    words = [program, "-C", str(folder), *arguments]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603  # fixed words
    return done.stdout.strip() if done.returncode == 0 else None
