"""JSON values of a kept folder, a line each, read from disk one at a time by their places."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np


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
