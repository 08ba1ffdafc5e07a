"""Returns freed memory to the operating system.

Forwards of many different sizes fragment glibc's heap: empty pages stay resident, more of them the longer a server
runs, although memory in use does not grow. `malloc_trim` returns them.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

# A forward of 4096 tokens allocates and frees up to 120 MB: that much may stay resident for the next one. A smaller
# reserve or more frequent trimming makes a forward of 1,100 tokens 6 ms slower, and memory no flatter.
_RESERVE_BYTES = 128 << 20  # freed memory that may stay
_LEAST_S = 1.0  # between two times
_M_ARENA_MAX, _ARENAS = -8, 2  # as malloc.h has it
_STATM = Path("/proc/self/statm")


class FreedMemory:
    """Bounds the freed memory that stays resident: `check` after each forward returns everything beyond a reserve.

    Triggered by size, not by time, so that resident memory is bounded under every load and forwards can mostly reuse
    the pages of the last one. Does nothing without glibc and /proc.
    """

    def __init__(self, reserve_bytes: int = _RESERVE_BYTES, least_s: float = _LEAST_S) -> None:
        self._reserve_bytes, self._least_s = reserve_bytes, least_s
        self._floor_bytes = 0  # resident when nothing freed was left
        self._trimmed = -least_s

    def check(self) -> None:
        """Give freed memory back where it is over the reserve."""
        if not (resident := resident_bytes()):
            return
        self._floor_bytes = min(self._floor_bytes, resident)
        if resident - self._floor_bytes > self._reserve_bytes and time.monotonic() - self._trimmed >= self._least_s:
            self.give_back()

    def give_back(self) -> None:
        """Return all of it: takes 7 to 30 ms, and the next forward must fault its pages in again."""
        trim()
        self._floor_bytes, self._trimmed = resident_bytes(), time.monotonic()


def share_arenas() -> None:
    """Let the threads that start from now on share one heap beside the first, unless MALLOC_ARENA_MAX says otherwise.

    By default each gets its own, and glibc never returns the top of such heaps, up to 64 MB each, after a large body.
    Does nothing without glibc.
    """
    if sys.platform.startswith("linux") and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, _ARENAS)


def trim() -> None:
    """Give back the free pages of the heap. Does nothing without glibc."""
    if (malloc_trim := _malloc_trim()) is not None:
        malloc_trim(0)


def resident_bytes() -> int:
    """Resident memory of the process, 0 where it cannot be read (no descriptor left, for example). Takes
    microseconds."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """The function of the C library, None where it has none of that name."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
