"""Standard streams: a process may be started with any of them closed, and nobody may read what it says."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING, BinaryIO, cast

import typer

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_PATIENCE_S = 1.0  # with a full pipe


def open_standard_streams() -> None:
    """Open a stand-in where a standard stream is closed: nothing to read, nowhere for errors, and an output that fails
    when it is written to. Left closed, its descriptor would be that of the next file or connection."""
    if sys.stdin is None:
        _occupy(0)
        sys.stdin = io.TextIOWrapper(_Nothing())
    if sys.stdout is None:
        _occupy(1)
        sys.stdout = io.TextIOWrapper(cast("BinaryIO", _Closed()), write_through=True)
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.FileIO(_occupy(2), "w", closefd=False), write_through=True)


def tell(line: str) -> None:
    """A line on standard error, where somebody takes it."""
    with contextlib.suppress(OSError, ValueError):
        if _takes_bytes():
            typer.echo(line, err=True)


class _Nothing(io.BytesIO):
    """An input with nothing in it, which messages call as they call an open one."""

    name = "<stdin>"


class _Closed(io.RawIOBase):
    """An output that is closed for whoever writes to it, and for nobody else."""

    def writable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def write(self, data: Buffer, /) -> int:
        """Raise `OSError` where there is something to write."""
        if memoryview(data).nbytes:
            raise OSError(errno.EBADF, "it is closed", "standard output")
        return 0


def _occupy(descriptor: int) -> int:
    """Open the null device under a descriptor, or another one where that is taken; which one it is."""
    opened = os.open(os.devnull, os.O_RDWR)
    if opened == descriptor or _is_open(descriptor):
        return opened
    os.dup2(opened, descriptor)
    os.close(opened)
    return descriptor


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _takes_bytes() -> bool:
    """Whether standard error can be written to without waiting for long."""
    try:
        descriptor = sys.stderr.fileno()
        poll = select.poll()
    except (OSError, ValueError, AttributeError):  # a stream without a descriptor, a system without poll
        return True
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(1000 * _PATIENCE_S))
