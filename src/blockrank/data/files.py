"""Sources of lines, and files that appear whole.

A source is a path (gzip where it ends in `.gz`, xz where it ends in `.xz`) or an open binary stream such as
`sys.stdin.buffer`. Every problem of a source is an `InputError` of the form `FILE:LINE: what is wrong`.
"""

from __future__ import annotations

import gzip
import json
import lzma
import os
import secrets
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from blockrank.types import InputError

Source = str | Path | BinaryIO


def source_name(source: Source) -> str:
    """How messages call a source: its path, or the name of the stream."""
    if isinstance(source, str | Path):
        return str(source)
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


def json_object(text: str) -> Mapping[str, Any]:
    """The JSON object of one line. Raises `InputError`, without a place, where it is none."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON: {error.msg} at column {error.colno}.") from None
    except RecursionError:
        raise InputError("not valid JSON: nested too deeply.") from None
    except ValueError:  # an integer of thousands of digits
        raise InputError("not valid JSON: a number has too many digits.") from None
    if not isinstance(value, dict):
        raise InputError(f"a JSON object is needed, not {_JSON_NAMES.get(type(value), 'a number')}.")
    return value


_JSON_NAMES = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}


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


@contextmanager
def _readable(source: Source) -> Iterator[BinaryIO]:
    """A source opened, whose failure while it is read is an `InputError`."""
    try:
        with _opened(source) as stream:
            yield stream
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{source_name(source)}: cannot be read: {reason}.") from None


def decoded(number: int, line: bytes) -> str:
    """The text of line `number`. Raises `InputError`, without a place, where it is not UTF-8."""
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"not valid UTF-8 (byte {error.start + 1} of the line).") from None


@contextmanager
def _opened(source: Source) -> Iterator[BinaryIO]:
    """A path opened, and unpacked where it ends in `.gz` or `.xz`; a stream as it is, left open."""
    if not isinstance(source, str | Path):
        yield source
    elif str(source).endswith(".gz"):
        with gzip.open(source, "rb") as packed:
            yield packed  # type: ignore[misc]  # read like any binary file
    elif str(source).endswith(".xz"):
        with lzma.open(source, "rb") as unpacked:
            yield unpacked  # type: ignore[misc]
    else:
        with open(source, "rb") as plain:
            yield plain


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that appears under its name when the block ends well; on an error nothing is left behind.

    It is written beside its place and moved there. What is no regular file (a pipe, a device) is written directly.
    Raises `InputError` where the place cannot be written.
    """
    place = Path(os.path.realpath(path))
    direct = place.exists() and not place.is_file()
    part = place if direct else place.with_name(f".{place.name}.{secrets.token_hex(4)}.part")
    try:
        stream = part.open("wb" if direct else "xb")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}.") from None
    try:
        with stream:
            yield stream
        if not direct:
            os.replace(part, place)
    except BaseException:
        if not direct:
            part.unlink(missing_ok=True)
        raise


@contextmanager
def packed_file(path: str | Path) -> Iterator[BinaryIO]:
    """An `atomic_file`, packed by gzip where its name ends in `.gz`; the same content gives the same bytes."""
    with atomic_file(path) as stream:
        if not str(path).endswith(".gz"):
            yield stream
            return
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=stream, mtime=0) as packed:
            yield packed  # type: ignore[misc]  # written to like any binary file
