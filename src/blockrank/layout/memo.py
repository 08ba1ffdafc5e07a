"""A cache of results by text, for callers that see the same texts again."""

from __future__ import annotations

from collections.abc import Hashable
from threading import Lock
from typing import Generic, TypeVar

Made = TypeVar("Made")
_ENTRY_BYTES = 600  # overhead of an entry, beyond its counted size


class Memo(Generic[Made]):
    """A cache of at most `max_bytes` that evicts the oldest entries. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._entries: dict[Hashable, tuple[Made, int]] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Made | None:
        """The entry of a key, None where there is none."""
        found = self._entries.get(key)
        return found[0] if found else None

    def put(self, key: Hashable, made: Made, size: int) -> None:
        """Store an entry of `size` bytes; no effect if it is already stored or over the limit."""
        size += _ENTRY_BYTES
        with self._lock:
            if key in self._entries or size > self._max_bytes:
                return
            self._entries[key] = made, size
            self._bytes += size
            while self._bytes > self._max_bytes:
                self._bytes -= self._entries.pop(next(iter(self._entries)))[1]
