"""Stores of encoded documents."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from threading import Lock

from torch import Tensor

from blockrank.configfile import checked
from blockrank.types import InputError

_SLAB_BYTES = 64 << 20
_LEAST_SLABS = 8  # a store is dropped in so many parts at least


class MemoryStore:
    """Keeps entries in memory, on the device they were computed on, up to `max_bytes`; then drops the oldest.

    Entries are copied into slabs, and a slab is dropped whole: thousands of small tensors that outlive the forwards
    between which they were allocated would leave the heap in pieces (measured: 6.6 GB for 1.8 GB of keys). For use from
    several threads. Raises `InputError` where `max_bytes` is no positive integer.
    """

    def __init__(self, max_bytes: int) -> None:
        max_bytes = checked(int, max_bytes, "max_bytes")
        if max_bytes < 1:
            raise InputError(f"max_bytes must be positive, not {max_bytes}.")
        self._max_bytes, self._slab_bytes = max_bytes, min(_SLAB_BYTES, max(max_bytes // _LEAST_SLABS, 1))
        self._entries: dict[bytes, Tensor] = {}
        self._slabs: deque[_Slab] = deque()
        self._used_bytes, self._lock = 0, Lock()
        self.hits = self.misses = 0  # entries that `find` found and did not find

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def used_bytes(self) -> int:
        """Bytes of all slabs."""
        return self._used_bytes

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Tensor]:
        """The entries of those keys that are held. What is dropped afterwards stays whole as long as it is used."""
        with self._lock:
            found = {key: self._entries[key] for key in keys if key in self._entries}
            self.hits += len(found)
            self.misses += len(keys) - len(found)
        return found

    def write(self, key: bytes, k_LKH: Tensor) -> None:
        """Keep a copy of an entry; one that is held already, or over the limit, changes nothing."""
        size = _bytes(k_LKH)
        with self._lock:
            if key in self._entries or size > self._max_bytes:
                return
            if not self._slabs or not self._slabs[-1].has_room(k_LKH):
                self._add_slab(k_LKH, max(self._slab_bytes // _bytes(k_LKH[:1]), len(k_LKH)))
            self._entries[key] = self._slabs[-1].add(key, k_LKH)

    def _add_slab(self, k_LKH: Tensor, rows: int) -> None:
        """Room for so many rows like those; the oldest slabs go where there is none."""
        size = rows * _bytes(k_LKH[:1])
        while self._slabs and self._used_bytes + size > self._max_bytes:
            oldest = self._slabs.popleft()
            self._used_bytes -= oldest.bytes
            for key in oldest.keys:
                del self._entries[key]
        self._slabs.append(_Slab(k_LKH.new_empty(rows, *k_LKH.shape[1:])))
        self._used_bytes += size


class _Slab:
    """Entries one after the other in one tensor (rows, K, H)."""

    def __init__(self, rows: Tensor) -> None:
        self._rows, self._filled = rows, 0
        self.keys: list[bytes] = []
        self.bytes = _bytes(rows)

    def has_room(self, k_LKH: Tensor) -> bool:
        """Whether an entry of this kind still fits."""
        alike = k_LKH.dtype == self._rows.dtype and k_LKH.shape[1:] == self._rows.shape[1:]
        return alike and self._filled + len(k_LKH) <= len(self._rows)

    def add(self, key: bytes, k_LKH: Tensor) -> Tensor:
        """Copy an entry in, and return it as a part of the slab."""
        kept = self._rows[self._filled : self._filled + len(k_LKH)]
        kept.copy_(k_LKH)
        self._filled += len(k_LKH)
        self.keys.append(key)
        return kept


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
