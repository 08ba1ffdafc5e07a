"""Stores of encoded documents."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

from blockrank.types import InputError


class MemoryStore:
    """Keeps entries in memory, on the device they were computed on, up to `max_bytes`; drops the least recently read.

    Raises `InputError` where `max_bytes` is not positive.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 1:
            raise InputError(f"max_bytes must be positive, not {max_bytes}.")
        self._max_bytes, self._bytes = max_bytes, 0
        self._entries: OrderedDict[bytes, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def used_bytes(self) -> int:
        """Bytes of all entries."""
        return self._bytes

    def lookup(self, keys: Sequence[bytes]) -> list[bool]:
        """Which keys are held."""
        return [key in self._entries for key in keys]

    def read(self, key: bytes) -> Tensor:
        """The entry of a key that is held."""
        self._entries.move_to_end(key)
        return self._entries[key]

    def write(self, key: bytes, k_LKH: Tensor) -> None:
        """Keep a copy of an entry (a view would keep the whole forward it was cut from); an entry over the limit is
        not kept at all."""
        size = k_LKH.numel() * k_LKH.element_size()
        if key in self._entries or size > self._max_bytes:
            return
        while self._bytes + size > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= oldest.numel() * oldest.element_size()
        self._entries[key] = k_LKH.clone()
        self._bytes += size
