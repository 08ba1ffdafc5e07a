"""Sources of lines, and files that are packed.

A source is a path or an open binary stream such as `sys.stdin.buffer`; what is packed by gzip or xz is known by its
first bytes, whatever its name. Every problem of a source is an `InputError` of the form `FILE:LINE: what is wrong`.
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from blockrank.configfile import json_object
from blockrank.keep.files import atomic_file
from blockrank.types import InputError

_GZIP, _XZ = b"\x1f\x8b", b"\xfd7zXZ\x00"
_OTHER_PACKERS = {
    rb"BZh[1-9]1A": "bzip2",
    rb"\x28\xb5\x2f\xfd": "zstandard",
    rb"PK\x03\x04": "zip",
    rb"7z\xbc\xaf": "7-zip",
}


@dataclass(frozen=True, slots=True)
class Spool:
    """What came through a pipe, kept in a file so that it can be read again. name: how messages call it."""

    name: str
    path: Path


Source = str | Path | BinaryIO | Spool


def source_name(source: Source) -> str:
    """How messages call a source: its path, or the name of the stream."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, Spool):
        return source.name
    return str(getattr(source, "name", "stream")).strip("<>")


@contextmanager
def named(where: str) -> Iterator[None]:
    """Put the place in a file before the sentence of an `InputError`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def json_objects(source: Source) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line number and JSON object of each line that is not empty. Raises `InputError` at a broken line."""
    for number, text in text_lines(source):
        if text.strip():
            with named(f"{source_name(source)}:{number}"):
                value = json_object(text)
            yield number, value


def text_lines(source: Source) -> Iterator[tuple[int, str]]:
    """Line number (from 1) and text of each line, without its end and without a byte order mark.

    Raises `InputError` where the source cannot be read, and at a line that is not UTF-8.
    """
    for number, line in byte_lines(source):
        try:
            text = decoded(number, line)
        except InputError as error:
            raise InputError(f"{source_name(source)}:{number}: {error}") from None
        yield number, text


def byte_lines(source: Source) -> Iterator[tuple[int, bytes]]:
    """Line number (from 1) and bytes of each line, its end included. Raises `InputError` if it cannot be read."""
    with _readable(source) as stream:
        yield from enumerate(stream, start=1)


def byte_pieces(source: Source, size: int = 1 << 18) -> Iterator[bytes]:
    """The bytes of a source in pieces of at most `size`. Raises `InputError` if it cannot be read."""
    with _readable(source) as stream:
        while piece := stream.read(size):
            yield piece


def is_rereadable(source: Source) -> bool:
    """Whether a source gives the same when it is read again: it is no pipe, device or stream."""
    if isinstance(source, Spool):
        return True
    return isinstance(source, str | Path) and (Path(source).is_file() or not Path(source).exists())


@contextmanager
def rereadable(source: Source) -> Iterator[Source]:
    """The source, or where it can be read only once (a pipe, a stream) a `Spool` of it while the block runs.

    Raises `InputError` where it cannot be read.
    """
    if is_rereadable(source):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="blockrank-") as folder:
        spool = Spool(source_name(source), Path(folder) / "spool")
        with _failing_as(source), _raw(source) as stream, spool.path.open("xb") as copy:
            shutil.copyfileobj(stream, copy)
        yield spool


@contextmanager
def _readable(source: Source) -> Iterator[BinaryIO]:
    """A source opened and unpacked, whose failure while it is read is an `InputError`."""
    with _failing_as(source), _raw(source) as stream:
        yield _unpacked(source, stream)


@contextmanager
def _failing_as(source: Source) -> Iterator[None]:
    """What the system or an unpacker fails with as an `InputError` that names the source."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{source_name(source)}: cannot be read: {reason}.") from None


@contextmanager
def _raw(source: Source) -> Iterator[BinaryIO]:
    """A path opened; a stream as it is, left open."""
    if isinstance(source, str | Path | Spool):
        with open(source.path if isinstance(source, Spool) else source, "rb") as plain:
            yield plain
    else:
        yield source


def _unpacked(source: Source, stream: BinaryIO) -> BinaryIO:
    """A stream, read through gzip or xz where it begins like one. Raises `InputError` where it is packed otherwise."""
    head = _head(stream)
    if head.startswith(_GZIP):
        return gzip.open(stream, "rb")  # type: ignore[return-value]  # read like any binary file
    if head.startswith(_XZ):
        return lzma.open(stream, "rb")  # type: ignore[return-value]
    for magic, packer in _OTHER_PACKERS.items():
        if re.match(magic, head):
            raise InputError(f"{source_name(source)}: it is packed by {packer}; gzip and xz are read, others are not.")
    return stream


def _head(stream: BinaryIO) -> bytes:
    """The first bytes of a stream, which stay in it; none where it cannot show them."""
    if hasattr(stream, "peek"):
        return bytes(stream.peek(len(_XZ)))[: len(_XZ)]
    if not stream.seekable():
        return b""
    place, head = stream.tell(), stream.read(len(_XZ))
    stream.seek(place)
    return head


def decoded(number: int, line: bytes) -> str:
    """The text of line `number`. Raises `InputError`, without a place, where it is not UTF-8."""
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"not valid UTF-8 (byte {error.start + 1} of the line).") from None


@contextmanager
def packed_file(path: str | Path) -> Iterator[BinaryIO]:
    """An `atomic_file`, packed by gzip where its name ends in `.gz`; the same content gives the same bytes."""
    with atomic_file(path) as stream:
        if not str(path).endswith(".gz"):
            yield stream
            return
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=stream, mtime=0) as packed:
            yield packed  # type: ignore[misc]  # written to like any binary file
