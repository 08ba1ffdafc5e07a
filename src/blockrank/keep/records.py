"""A file of JSON records that survives a kill at any moment: each is on disk before the next begins."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blockrank.errors import InputError

_CHECK = re.compile(rb', "check": "([0-9a-f]{16})"}\n')


class RecordFile:
    """Records appended in order, one JSON line each, of which the last field, `check`, is a checksum of those before
    it.

    A last line that a kill has torn is dropped when the file is opened; a broken line before it raises `InputError`,
    whose sentence ends with `advice`. Files that were begun before there were checksums are read. `at`: where in the
    file the record begins that is taken or was appended last.
    """

    def __init__(self, path: Path, advice: str = "start over with --restart.") -> None:
        self.path, self._advice = path, advice
        self._checked = False
        self.at = 0
        if path.exists():
            self._open()

    def append(self, record: dict[str, Any]) -> None:
        """Add a record; it is on disk when this returns."""
        line = json.dumps(record, ensure_ascii=False).encode()
        with self.path.open("ab") as stream:
            self.at = stream.tell()
            stream.write(b'%b, "check": "%b"}\n' % (line[:-1], _checksum(line)))
            stream.flush()
            os.fsync(stream.fileno())

    def records(self) -> Iterator[dict[str, Any]]:
        """Every record in order, read from disk one at a time."""
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            for line in stream:
                yield json.loads(line)

    def record_at(self, at: int) -> dict[str, Any]:
        """The record that begins there, read from disk."""
        with self.path.open("rb") as stream:
            stream.seek(at)
            record: dict[str, Any] = json.loads(stream.readline())
            return record

    def take(self, record: dict[str, Any]) -> bool:
        """Take note of a record while the file is opened; False, or an error of its fields, where it has no place."""
        del record
        return True

    def _open(self) -> None:
        """Read what is there and cut a torn end off."""
        whole, broken = 0, 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if broken:
                    raise InputError(f"{self.path}:{broken}: the journal is broken here; {self._advice}")
                self.at = whole
                if self._belongs(line):
                    whole += len(line)
                else:
                    broken = number
        if broken:
            os.truncate(self.path, whole)

    def _belongs(self, line: bytes) -> bool:
        check = _CHECK.search(line, max(len(line) - _CHECK_BYTES, 0))
        if check is None and self._checked:
            return False
        if check is not None and _checksum(line[: check.start()] + b"}") != check[1]:
            return False
        self._checked = self._checked or check is not None
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
            return isinstance(record, dict) and self.take(record)
        except (ValueError, RecursionError, KeyError, TypeError):
            return False


_CHECK_BYTES = len(b', "check": "0123456789abcdef"}\n')


def _checksum(line: bytes) -> bytes:
    return hashlib.blake2b(line, digest_size=8).hexdigest().encode()
