"""A file of JSON records that survives a kill at any moment: each is on disk before the next begins."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blockrank.types import InputError


class RecordFile:
    """Records appended in order, a JSON line each.

    A last line that a kill has torn is dropped when the file is opened; a broken line before it raises `InputError`,
    whose sentence ends with `advice`.
    """

    def __init__(self, path: Path, advice: str = "start over with --restart.") -> None:
        self.path, self._advice = path, advice
        if path.exists():
            self._open()

    def append(self, record: dict[str, Any]) -> None:
        """Add a record; it is on disk when this returns."""
        with self.path.open("ab") as stream:
            stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def records(self) -> Iterator[dict[str, Any]]:
        """Every record in order, read from disk one at a time."""
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            for line in stream:
                yield json.loads(line)

    def take(self, record: dict[str, Any]) -> bool:
        """Take note of a record while the file is opened; False where it does not belong here."""
        del record
        return True

    def _open(self) -> None:
        """Read what is there and cut a torn end off."""
        whole, broken = 0, 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if broken:
                    raise InputError(f"{self.path}:{broken}: the journal is broken here; {self._advice}")
                if self._belongs(line):
                    whole += len(line)
                else:
                    broken = number
        if broken:
            os.truncate(self.path, whole)

    def _belongs(self, line: bytes) -> bool:
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            return False
        return isinstance(record, dict) and self.take(record)
