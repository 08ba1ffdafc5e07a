"""Derived files kept on disk: a folder that is fresh and whole, or not there at all.

A kept folder's name carries a digest of everything it was made from, so its content never changes and a fresh one is
found by name. It is filled under another name and moved to its place; a manifest, written last, holds the size and
checksum of each file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = ".blockrank"
_MANIFEST = "manifest.json"
_ABANDONED_AFTER = 24 * 3600  # seconds until an unfinished folder is taken to be of a process that was killed
_ATTEMPTS = 5  # to move a folder into place while other processes do the same
_log = logging.getLogger(__name__)


def digest(value: object, length: int = 16) -> str:
    """Hex digest of a JSON-ready value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


@dataclass(frozen=True, slots=True)
class KeptFolder:
    """The place of one kept folder.

    place: the folder that holds kept folders, usually `.blockrank` beside the data. kind: `bm25`, `passages` ...
    owner: what it was made from, for a name of its own; fingerprint: the state of that, with every setting and version.
    Both are JSON-ready.
    """

    place: Path
    kind: str
    owner: object
    fingerprint: object

    @property
    def _name(self) -> str:
        return f"{self.kind}-{digest(self.owner, 8)}-"

    @property
    def path(self) -> Path:
        """Where it is, if it is there."""
        return self.place / f"{self._name}{digest(self.fingerprint)}"

    def is_whole(self) -> bool:
        """Whether it is there and as it was written."""
        whole = is_whole(self.path)
        if not whole and self.path.exists():
            _log.warning("%s is damaged: it is made anew.", self.path)
        return whole

    def remove(self) -> None:
        """Remove it, if it is there."""
        shutil.rmtree(self.path, ignore_errors=True)

    def write(self, fill: Callable[[Path], None]) -> None:
        """Make the folder: `fill` writes its files. Replaces a damaged one and removes what is out of date.

        Raises `OSError` where the place cannot be written; nothing is left behind then.
        """
        self.place.mkdir(parents=True, exist_ok=True)
        ignore = self.place / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n", encoding="utf-8")
        part = self.place / f".{self._name}{secrets.token_hex(8)}.part"
        part.mkdir()
        try:
            fill(part)
            files = {path.name: _checked(path) for path in sorted(part.iterdir())}
            (part / _MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")
            self._move(part)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._tidy()

    def _move(self, part: Path) -> None:
        """Put a finished folder in its place. Another process may have been faster, or may be doing the same."""
        for _ in range(_ATTEMPTS):
            try:
                os.rename(part, self.path)
                return
            except OSError:
                if not self.path.exists():
                    raise
            if self.is_whole():
                return
            with suppress(FileNotFoundError):
                aside = part.with_name(f".{self._name}{secrets.token_hex(8)}.part")
                os.rename(self.path, aside)
                shutil.rmtree(aside, ignore_errors=True)
        raise OSError(f"{self.path} cannot be replaced")

    def earlier(self) -> list[Path]:
        """Folders of the same kind and owner in another state."""
        names = re.compile(re.escape(self._name) + "[0-9a-f]{16}")
        with suppress(OSError):
            return [path for path in self.place.iterdir() if names.fullmatch(path.name) and path != self.path]
        return []

    def _tidy(self) -> None:
        """Remove earlier states, and what killed processes left."""
        for path in self.earlier():
            shutil.rmtree(path, ignore_errors=True)
        for path in self.place.glob(f".{self._name}*.part"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
                    shutil.rmtree(path, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """Whether every file of a kept folder is there as it was written."""
    try:
        files = json.loads((folder / _MANIFEST).read_bytes())
        return all([size, checksum] == _checked(folder / name) for name, (size, checksum) in files.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def _checked(path: Path) -> list[int]:
    """Size and checksum of a file."""
    size = checksum = 0
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
    return [size, checksum]


def write_records(folder: Path, name: str, values: Iterable[Any]) -> None:
    """Write JSON-ready values to `name`.jsonl, a line each, with their offsets beside."""
    offsets = [0]
    with (folder / f"{name}.jsonl").open("xb") as stream:
        for value in values:
            offsets.append(offsets[-1] + stream.write(json.dumps(value, ensure_ascii=False).encode() + b"\n"))
    np.save(folder / f"{name}.offsets.npy", np.array(offsets, dtype=np.int64))


class Records:
    """Values that `write_records` wrote, read from disk one at a time."""

    def __init__(self, folder: Path, name: str) -> None:
        self._offsets = np.load(folder / f"{name}.offsets.npy", mmap_mode="r")
        self._bytes = np.memmap(folder / f"{name}.jsonl", dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> Any:
        start, end = self._offsets[index], self._offsets[index + 1]
        return json.loads(self._bytes[start:end].tobytes())

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))
