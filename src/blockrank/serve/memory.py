"""Memory that was freed goes back to the system.

Forwards of ever other sizes leave the heap of glibc in pieces: pages stay resident though nothing is held in them, and
the more so the longer a server runs. `malloc_trim` gives them back; what is in use does not grow.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

# A forward of 4096 tokens takes and frees up to 120 MB: that much may stay, so that the next one finds its pages in
# place. Less, and more often, makes a forward of 1,100 tokens 6 ms slower, and memory no flatter.
_RESERVE_BYTES = 128 << 20  # freed memory that may stay
_LEAST_S = 1.0  # between two times
_M_ARENA_MAX, _ARENAS = -8, 2  # as malloc.h has it
_STATM = Path("/proc/self/statm")


class FreedMemory:
    """Bounds the freed memory that stays resident: `check` after each forward gives it back beyond a reserve.

    By size and not by time, so that resident memory has a bound under every load and that forwards find the pages of
    the last one in place as often as that allows. Does nothing without glibc and /proc.
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
        """Give all of it back: 7 to 30 ms, and the next forward pays for the pages that it takes anew."""
        trim()
        self._floor_bytes, self._trimmed = resident_bytes(), time.monotonic()


def share_arenas() -> None:
    """Let the threads that start from now on share one heap beside the first, unless MALLOC_ARENA_MAX says otherwise.

    Each would get its own, and glibc never gives back the upper end of these, up to 64 MB each, after a large body.
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
    """Resident memory of the process, 0 where it cannot be read, as where no descriptor is left: some microseconds."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """The function of the C library, None where it has none of that name."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
