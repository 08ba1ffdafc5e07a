"""Files in and out: JSON lines and plain text to requests, rankings to TREC runs and JSON lines.

A source is a path (gzip where it ends in `.gz`) or an open binary stream such as `sys.stdin.buffer`. Every problem of
a source is an `InputError` of the form `FILE:LINE: what is wrong`.
"""

from __future__ import annotations

import gzip
import json
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from blockrank.types import Document, InputError, Ranking, RankRequest, as_document

Source = str | Path | BinaryIO

RUN_TAG = "blockrank"


def source_name(source: Source) -> str:
    """How messages call a source: its path, or the name of the stream."""
    if isinstance(source, str | Path):
        return str(source)
    return str(getattr(source, "name", "stream")).strip("<>")


def read_documents(source: Source) -> list[Document]:
    """Documents of a JSON lines file: `{"text", "doc_id" | "_id" | "id", "title"}` on each line.

    A document without an id gets its index. Raises `InputError` on a broken line, an id that was there before, or a
    source without documents.
    """
    documents: list[Document] = []
    lines: dict[str | None, int] = {}
    for number, value in _objects(source):
        where = f"{source_name(source)}:{number}"
        with _named(where):
            document = as_document(value, len(documents))
        if (first := lines.setdefault(document.doc_id, number)) != number:
            raise InputError(f"{where}: the doc_id {document.doc_id!r} is that of line {first}.")
        documents.append(document)
    if not documents:
        raise InputError(f"{source_name(source)}: there are no documents in it.")
    return documents


def read_texts(source: Source, *, lines: bool = False) -> list[Document]:
    """A plain text file as one document named after it, or with `lines` one document for each line that is not empty.

    Raises `InputError` where there is no text or it is not UTF-8.
    """
    name = source_name(source)
    texts = [(number, text.strip()) for number, text in _text_lines(source)]
    if lines:
        documents = [Document(text, f"{name}:{number}") for number, text in texts if text]
    else:
        whole = "\n".join(text for _, text in texts).strip()
        documents = [Document(whole, name)] if whole else []
    if not documents:
        raise InputError(f"{name}: there is no text in it.")
    return documents


def read_requests(source: Source) -> Iterator[RankRequest]:
    """Requests of a JSON lines file, one at a time.

    Each line is `{"query", "query_id", "documents"}`; documents are a list of strings or of
    `{"text", "doc_id", "title"}`, or an object from id to either. Other keys are ignored. A request without a
    `query_id` gets its index. Raises `InputError` on a broken line, a `query_id` that was there before, or a source
    without requests.
    """
    lines: dict[str, int] = {}
    for number, value in _objects(source):
        where = f"{source_name(source)}:{number}"
        with _named(where):
            request = _request(value, str(len(lines)))
        if (first := lines.setdefault(request.query_id, number)) != number:
            raise InputError(f"{where}: the query_id {request.query_id!r} is that of line {first}.")
        yield request
    if not lines:
        raise InputError(f"{source_name(source)}: there are no requests in it.")


def _request(value: Mapping[str, Any], default_id: str) -> RankRequest:
    """One request of a JSON lines file."""
    for key in ("query", "documents"):
        if key not in value:
            raise InputError(f"there is no {key!r}; the keys are {sorted(map(str, value))}.")
    query_id = value.get("query_id")
    if not isinstance(query_id, str | int | None) or isinstance(query_id, bool):
        raise InputError(f"query_id must be a string or an integer, not {type(query_id).__name__}.")
    documents = value["documents"]
    if isinstance(documents, Mapping):
        documents = [_keyed(doc_id, document) for doc_id, document in documents.items()]
    return RankRequest(value["query"], documents, default_id if query_id is None else str(query_id))


def _keyed(doc_id: str, document: object) -> object:
    """A document listed under its id; a value that is no document is left for the request to refuse."""
    if isinstance(document, str):
        return {"doc_id": doc_id, "text": document}
    return {"doc_id": doc_id, **document} if isinstance(document, Mapping) else document


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Put the place in a file before the sentence of an `InputError`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _objects(source: Source) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line number and JSON object of each line that is not empty."""
    for number, text in _text_lines(source):
        if not text.strip():
            continue
        where = f"{source_name(source)}:{number}"
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not valid JSON: {error.msg} at column {error.colno}.") from None
        except RecursionError:
            raise InputError(f"{where}: not valid JSON: nested too deeply.") from None
        if not isinstance(value, dict):
            raise InputError(f"{where}: a JSON object is needed, not {_JSON_NAMES.get(type(value), 'a number')}.")
        yield number, value


_JSON_NAMES = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}


def _text_lines(source: Source) -> Iterator[tuple[int, str]]:
    """Line number (from 1) and text of each line, decoded one by one so that a bad one can be named."""
    name = source_name(source)
    try:
        with _opened(source) as stream:
            for number, line in enumerate(stream, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}:{number}: not valid UTF-8 (byte {error.start + 1} of the line).") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{name}: cannot be read: {reason}.") from None


@contextmanager
def _opened(source: Source) -> Iterator[Iterable[bytes]]:
    """A path opened, and unpacked where it ends in `.gz`; a stream as it is, left open."""
    if not isinstance(source, str | Path):
        yield source
    elif str(source).endswith(".gz"):
        with gzip.open(source, "rb") as packed:
            yield packed
    else:
        with open(source, "rb") as plain:
            yield plain


def strictly_decreasing(scores: Sequence[float]) -> list[float]:
    """Scores as float32, each below the one before it: ties in a run would let an evaluator reorder it.

    Evaluators compare float32. A score that is not below the previous one becomes the next float32 under that.
    """
    lowered: list[np.float32] = []
    for score in np.asarray(scores, dtype=np.float32):
        if lowered and score >= lowered[-1]:
            score = np.nextafter(lowered[-1], np.float32(-np.inf))
        lowered.append(score)
    return [float(score) for score in lowered]


def trec_lines(ranking: Ranking, tag: str = RUN_TAG) -> list[str]:
    """Lines `query_id Q0 doc_id rank score tag` of one ranking, without line ends.

    Raises `InputError` where an id holds white space, which the format cannot carry.
    """
    ids = [("query_id", ranking.query_id), *(("doc_id", doc_id) for doc_id in ranking.doc_ids)]
    for kind, value in ids:
        if not value or value.split() != [value]:
            raise InputError(f"the {kind} {value!r} is empty or holds white space: a TREC run cannot carry it.")
    scores = strictly_decreasing([entry.score for entry in ranking])
    return [
        f"{ranking.query_id} Q0 {entry.doc_id} {entry.rank} {score:.9g} {tag}"
        for entry, score in zip(ranking, scores, strict=True)
    ]


def json_line(ranking: Ranking) -> str:
    """One ranking as one line of JSON, without a line end."""
    return json.dumps(ranking.to_dict(), ensure_ascii=False)


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
