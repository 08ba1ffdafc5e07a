"""What was made of a text, for callers that see the same texts again."""

from __future__ import annotations

from collections.abc import Hashable
from threading import Lock
from typing import Generic, TypeVar

Made = TypeVar("Made")
_ENTRY_BYTES = 600  # that an entry takes beside what its size counts


class Memo(Generic[Made]):
    """Keeps entries up to `max_bytes`, then drops the oldest. For use from several threads."""

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
        """Keep an entry of so many bytes; one that is kept already, or over the limit, changes nothing."""
        size += _ENTRY_BYTES
        with self._lock:
            if key in self._entries or size > self._max_bytes:
                return
            self._entries[key] = made, size
            self._bytes += size
            while self._bytes > self._max_bytes:
                self._bytes -= self._entries.pop(next(iter(self._entries)))[1]
