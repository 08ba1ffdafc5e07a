"""Folders and files to passages: what is read, what is skipped, and why."""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blockrank.data import json_objects, named
from blockrank.keep.folders import FORMER_FOLDER
from blockrank.retrieve import html, markdown, pdf
from blockrank.retrieve.passages import Lines, Passage, TextBlock, paragraphs, spans
from blockrank.text.characters import is_readable
from blockrank.types import Document, InputError, as_document
from blockrank.types.documents import checked_document

MOST_BYTES = 20_000_000  # of a file in a folder; a file named by the user may be larger
DOCUMENTS = ("corpus.jsonl", "corpus.jsonl.gz", "documents.jsonl", "documents.jsonl.gz")
_INSTALLED = frozenset({"node_modules", "__pycache__", "site-packages", "bower_components"})
_BINARY_SUFFIXES = frozenset({".gz", ".zip", ".png", ".jpg", ".jpeg", ".gif", ".so", ".pyc", ".npy", ".safetensors"})
_log = logging.getLogger(__name__)


class UnreadableError(Exception):
    """A file is skipped; the message is the category in which it is counted."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to be read.

    path: relative to the source, with `/`, as text; place: its location on disk. holds_documents: it is JSON lines, one
    document each.
    """

    path: str
    place: Path
    size: int
    holds_documents: bool


def list_files(source: Path) -> tuple[list[SourceFile], Counter[str]]:
    """Files of a folder in a fixed order, or the one file; and how many are skipped unread, by category.

    A file of JSON lines holds documents if the source is that file, or if it is called `corpus.jsonl` or
    `documents.jsonl`.

    Hidden files and folders, virtual environments, installed packages and files over the limit are skipped; links to
    folders are not followed. From a folder with `corpus.jsonl` or `corpus.jsonl.gz` only that file is read.

    Raises `InputError` where there is no such file or folder, or it cannot be listed.
    """
    if not source.exists():
        raise InputError(f"{source}: there is no such file or folder.")
    if not source.is_dir():
        file = _source_file(source, source.name)
        return [replace(file, holds_documents=source.name.endswith((".jsonl", ".jsonl.gz")))], Counter()
    for name in DOCUMENTS[:2]:
        if (source / name).is_file():
            return [_source_file(source / name, name)], Counter()
    skipped: Counter[str] = Counter()
    try:
        os.scandir(source).close()
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror}.") from None
    files = list(_walk(source, skipped))
    return sorted(files, key=lambda file: file.path), skipped


def _walk(source: Path, skipped: Counter[str]) -> Iterator[SourceFile]:
    """The files below a folder that are worth opening."""

    def unlisted(error: OSError) -> None:
        skipped["folders that cannot be listed"] += 1
        _log.info("%s: %s", error.filename, error.strerror)

    for folder, folders, names in os.walk(source, onerror=unlisted):
        kept = []
        for name in folders:
            if name.startswith("."):
                skipped["hidden files and folders"] += name != FORMER_FOLDER
            elif name in _INSTALLED or os.path.exists(os.path.join(folder, name, "pyvenv.cfg")):
                skipped["folders of installed packages"] += 1
            else:
                kept.append(name)
        folders[:] = kept
        for name in names:
            if name.startswith("."):
                skipped["hidden files and folders"] += 1
                continue
            place = Path(folder, name)
            try:
                file = _source_file(place, place.relative_to(source).as_posix())
            except InputError:
                skipped["files that cannot be read"] += 1
                continue
            if file.size > MOST_BYTES:
                skipped[f"files over {MOST_BYTES // 1_000_000} MB"] += 1
                _log.info("%s: skipped: %d bytes", place, file.size)
            else:
                yield file


def _source_file(place: Path, path: str) -> SourceFile:
    """Raises `InputError` for what is no regular file."""
    try:
        state = place.stat()
    except OSError as error:
        raise InputError(f"{place}: cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(state.st_mode):
        raise InputError(f"{place}: is no regular file and no folder.")
    if not os.access(place, os.R_OK):
        raise InputError(f"{place}: cannot be read: Permission denied.")
    shown = os.fsencode(path).decode("utf-8", "replace")  # a name need not be valid text
    return SourceFile(shown, place, state.st_size, place.name in DOCUMENTS)


def read_passages(file: SourceFile) -> list[Passage]:
    """The passages of one file, in order.

    Raises `UnreadableError` where it holds no text, `InputError` where a file of JSON lines is broken,
    `MissingExtraError` where its kind needs the extra.
    """
    suffix = Path(file.path).suffix.lower()
    if file.holds_documents:
        passages = list(_of_json_lines(file))
    elif suffix in pdf.SUFFIXES:
        passages = list(_of_pdf(file))
    else:
        text = _text(file, suffix)
        passages = list(_of_html(file, text) if suffix in html.SUFFIXES else _of_text(file, text, suffix))
    if not passages:
        raise UnreadableError("files without text")
    return passages


def _text(file: SourceFile, suffix: str) -> str:
    """The text of a file: UTF-8, or UTF-16 with a byte order mark; for HTML, the encoding that it declares."""
    if suffix in _BINARY_SUFFIXES:
        raise UnreadableError("binary files")
    try:
        data = file.place.read_bytes()
    except OSError as error:
        _log.info("%s: %s", file.place, error.strerror)
        raise UnreadableError("files that cannot be read") from None
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    if b"\0" in data[:8192] and not wide:
        raise UnreadableError("binary files")
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        if suffix in html.SUFFIXES and (text := html.decoded(data)) is not None:
            return text
        raise UnreadableError("files that are not UTF-8") from None


def _of_text(file: SourceFile, text: str, suffix: str) -> Iterator[Passage]:
    blocks = markdown.markdown_blocks(text) if suffix in markdown.SUFFIXES else paragraphs(text)
    line = Lines(text)
    for span in spans(text, blocks, file.path):
        yield _passage(file, text, span, line(span.start), line(span.end - 1))


def _of_html(file: SourceFile, source: str) -> Iterator[Passage]:
    page = html.read_page(source)
    for span in spans(page.text, page.blocks, file.path):
        yield _passage(file, page.text, span, page.line(span.start), page.line(span.end - 1))


def _of_pdf(file: SourceFile) -> Iterator[Passage]:
    try:
        pages = pdf.read_pages(file.place)
    except InputError:
        raise UnreadableError("PDF files that cannot be read") from None
    for number, text in enumerate(pages, start=1):
        text = text.encode("utf-8", "replace").decode()  # broken fonts yield lone surrogates
        for span in spans(text, paragraphs(text), file.path):
            yield Passage(file.path, file.path, file.path, text[span.start : span.end], page=number)


def _of_json_lines(file: SourceFile) -> Iterator[Passage]:
    """Documents without text are left out."""
    lines: dict[str, int] = {}
    for index, (number, value) in enumerate(json_objects(file.place)):
        where = f"{file.place}:{number}"
        with named(where):
            document = _document(value, index)
        if document is None:
            _log.info("%s: the document has no text", where)
            continue
        if (first := lines.setdefault(str(document.doc_id), number)) != number:
            raise InputError(f"{where}: the doc_id {document.doc_id!r} is that of line {first}.")
        text = document.text if document.text.strip() else document.title
        for span in spans(text, paragraphs(text), document.title):
            part = text[span.start : span.end]
            title = document.title if document.text.strip() else ""
            yield Passage(file.path, str(document.doc_id), title, part, number, number)


def _document(value: Mapping[str, Any], index: int) -> Document | None:
    """A checked document; None if it has neither text nor title, which occurs in real corpora."""
    document = checked_document(value, index)
    return as_document(document, index) if is_readable(document.content) else None


def _passage(file: SourceFile, text: str, span: TextBlock, first: int, last: int) -> Passage:
    """Headings are those above the passage."""
    title = " > ".join((file.path, *span.headings))
    return Passage(file.path, file.path, title, text[span.start : span.end], first, last)
