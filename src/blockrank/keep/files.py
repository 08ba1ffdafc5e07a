"""Files and folders that appear whole under their names, or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from blockrank.errors import InputError


def part_of(place: Path) -> Path:
    """Where a file or folder is made before it is moved to `place`: beside it, hidden, under a name of its own."""
    return place.with_name(f".{place.name}.{secrets.token_hex(8)}.part")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that appears under its name when the block ends well; on an error nothing is left behind.

    It is written beside its place and moved there. What is no regular file (a pipe, a device) is written directly.
    Raises `InputError` where the place cannot be written.
    """
    place = Path(os.path.realpath(path))
    direct = place.exists() and not place.is_file()
    part = place if direct else part_of(place)
    with _writing(path):
        stream = part.open("wb" if direct else "xb")
    try:
        with stream:
            yield stream
        if not direct:
            os.replace(part, place)
    except BaseException:
        if not direct:
            part.unlink(missing_ok=True)
        raise


def check_writable(path: str | Path) -> None:
    """Raise `InputError` where `atomic_file` could not write, before there is anything to be written."""
    place = Path(os.path.realpath(path))
    if place.exists() and not place.is_file():
        with _writing(path):
            if place.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return
    with _writing(path), tempfile.TemporaryFile(dir=place.parent):
        pass


@contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}.") from None


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block ends well; on an error nothing is left behind.

    Raises `InputError` where the place is taken or cannot be written.
    """
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"{place} is there already: name a new folder, or an empty one.")
    part = part_of(place.absolute())
    with _writing(place):
        part.mkdir(parents=True)
    try:
        yield part
        os.replace(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def safe_name(name: str) -> str:
    """A name as that of a file or folder: no separators, and not hidden."""
    return name.replace("/", "_").replace("\\", "_").lstrip(".") or "_"
