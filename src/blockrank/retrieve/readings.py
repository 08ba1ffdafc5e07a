"""Results of reading the files of a source: read now, or known from an earlier index."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, NamedTuple

from blockrank.keep.folders import KeptFolder, is_whole
from blockrank.keep.identity import file_digest
from blockrank.keep.lines import Records
from blockrank.retrieve.files import SourceFile, UnreadableError
from blockrank.retrieve.passages import Passage
from blockrank.retrieve.reading import FileReader, LimitError, ReadLimits
from blockrank.types import InputError
from blockrank.types.progress import CountProgress

FORMAT = 3  # incremented whenever passages are cut differently or their format changes
FILES, PASSAGES = "files", "passages"  # names of records in an index
_log = logging.getLogger(__name__)


class FileReading(NamedTuple):
    """The result of reading a file. reason: why it has no passages; limited: whether reading it exceeded a limit."""

    passages: list[Passage]
    reason: str | None = None
    limited: bool = False


def file_state(file: SourceFile) -> list[Any]:
    """A value that changes with the file: its location and its content."""
    try:
        content = file_digest(file.place)
    except InputError:  # reading it will say so
        content = None
    return [file.path, content, file.holds_documents]


def read_files(
    files: Sequence[SourceFile],
    states: Sequence[Sequence[Any]],
    known: Mapping[tuple[Any, ...], FileReading],
    limits: ReadLimits,
    progress: CountProgress | None,
) -> list[FileReading]:
    """The result of reading each file; files of a known state are not read again.

    Raises `InputError` where the only file is broken.
    """
    readings = []
    with FileReader(limits) as reader:
        for number, (file, state) in enumerate(zip(files, states, strict=True)):
            if progress:
                progress(number, len(files))
            readings.append(known.get(tuple(state)) or _read(reader, file, alone=len(files) == 1))
    if progress:
        progress(len(files), len(files))
    return readings


def _read(reader: FileReader, file: SourceFile, *, alone: bool) -> FileReading:
    """A file's passages, or the reason for none. alone: it is the only file, so a broken one is an error."""
    try:
        return FileReading(reader.read(file))
    except LimitError as reason:
        return FileReading([], str(reason), limited=True)
    except UnreadableError as reason:
        _log.info("%s: skipped: one of the %s", file.place, reason)
        return FileReading([], str(reason))
    except InputError as error:
        if alone:
            raise
        _log.warning("skipped: %s", error)
        return FileReading([], "broken files of JSON lines")


def reading_rows(
    limits: ReadLimits, states: Sequence[Sequence[Any]], readings: Sequence[FileReading]
) -> Iterator[list[Any]]:
    """Readings without their passages, as records of an index."""
    yield [FORMAT, *astuple(limits)]
    for state, reading in zip(states, readings, strict=True):
        yield [state, len(reading.passages), reading.reason, reading.limited]


def kept_reasons(folder: Path) -> Counter[str]:
    """How many files of an index have no passages, and why."""
    return Counter(reason for _, _, reason, _ in list(Records(folder, FILES))[1:] if reason)


def known_readings(kept: KeptFolder, limits: ReadLimits) -> dict[tuple[Any, ...], FileReading]:
    """State of a file -> result of reading it, from an earlier index.

    Files that exceeded a limit are included only if the limits are the same.
    """
    known = {}
    for folder in filter(is_whole, kept.earlier()):
        try:
            rows, passages = list(Records(folder, FILES)), Records(folder, PASSAGES)
            if rows[0][0] != FORMAT:
                continue
            at = 0
            for state, count, reason, limited in rows[1:]:
                if not limited or rows[0][1:] == list(astuple(limits)):
                    found = [Passage(*passages[index]) for index in range(at, at + count)]
                    known[tuple(state)] = FileReading(found, reason, limited)
                at += count
        except (OSError, ValueError, TypeError, IndexError) as error:
            _log.info("%s: %s", folder, error)
    return known
