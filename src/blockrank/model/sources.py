"""Names of checkpoints: what is not a folder or a hub name."""

from __future__ import annotations

from pathlib import Path

from blockrank.spec import EMBEDDED

EMBEDDED_MODEL = Path(__file__).parents[1] / "models" / "mini"


def located(name_or_path: str | Path | None) -> str | Path:
    """The folder of the embedded model for None and "embedded"; anything else as it is (`./embedded` is a folder)."""
    return EMBEDDED_MODEL if name_or_path is None or name_or_path == EMBEDDED else name_or_path
