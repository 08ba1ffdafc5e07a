"""Files that contain their own documents: pairs, and DPR's training files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from blockrank.data import json_array, json_objects, named, text_lines
from blockrank.mine.judged import Judged, JudgedQuery
from blockrank.mine.pool import Pool, text_key
from blockrank.types import Document, InputError
from blockrank.types.documents import read_document

Titles = Literal["keep", "drop", "share"]
_CONTEXTS = ("hard_negative_ctxs", "negative_ctxs")  # best first
_CONTEXT_IDS = ("passage_id", "psg_id")
Row = tuple[str, str, str, list[Document], list[Document]]  # query_id, query, group, positives, negatives


def open_rows(path: Path, folder: Path, titles: Titles) -> Judged:
    """The rows of a file over a pool of all their documents; the pool is written into `folder`.

    Equal documents (title and text) count once. Raises `InputError` naming the file and the line, or the object of an
    array, where a row is broken or has no positive.
    """
    reading = _Reading(_rows(path, titles))
    pool = Pool.write(folder, reading.documents())
    return Judged(str(path), pool, reading.queries)


@dataclass(slots=True)
class _Reading:
    """Rows on their way into a pool."""

    rows: Iterator[Row]
    queries: list[JudgedQuery] = field(default_factory=list)
    places: dict[bytes, int] = field(default_factory=dict)

    def documents(self) -> Iterator[Document]:
        """Each document at its first occurrence; also records the documents of each row."""
        for query_id, query, group, positives, negatives in self.rows:
            for document in (*positives, *negatives):
                key = _identity(document)
                if key not in self.places:
                    place = self.places[key] = len(self.places)
                    yield Document(document.text, document.doc_id or f"d{place}", document.title)
            of_positives, of_negatives = (
                tuple(dict.fromkeys(self.places[_identity(document)] for document in documents))
                for documents in (positives, negatives)
            )
            self.queries.append(JudgedQuery(query_id, query, of_positives, of_negatives, (), group))


def _identity(document: Document) -> bytes:
    """The identity of a document: its id if it has one, else title and text."""
    whole = f"i{document.doc_id}" if document.doc_id else f"t{document.title}\0{document.text}"
    return hashlib.blake2b(whole.encode(), digest_size=16).digest()


def _rows(path: Path, titles: Titles) -> Iterator[Row]:
    """The rows of a file in either form, detected by its first character and its first object."""
    first = next((text.lstrip()[:1] for _, text in text_lines(path) if text.strip()), "")
    records = json_array(path) if first == "[" else json_objects(path)
    place = "object " if first == "[" else ""
    read: Callable[[Mapping[str, Any], int], Row] | None = None
    seen: set[str] = set()
    for number, value in records:
        if read is None:
            is_dpr = "question" in value
            if is_dpr and titles != "keep":
                raise InputError(f"{path} is in DPR's form: titles can be changed in files of pairs alone.")
            read = _dpr_row if is_dpr else lambda value, number: _pair_row(value, number, titles)
        with named(f"{path}:{place}{number}"):
            row = read(value, number)
            if row[0] in seen:
                raise InputError(f"the query_id {row[0]!r} was there before.")
        seen.add(row[0])
        yield row
    if not seen:
        raise InputError(f"{path}: there are no rows in it.")


def _pair_row(value: Mapping[str, Any], number: int, titles: Titles) -> Row:
    """A row of `query`, `positives`, `titles`, `negatives`, `group`. Raises `InputError`, without a place."""
    query = _text(value, "query")
    texts, negatives = _texts(value, "positives"), _texts(value, "negatives")
    if not texts:
        raise InputError("positives is empty: a row needs at least one.")
    heads = _texts(value, "titles", may_be_empty=True) or [""] * len(texts)
    if len(heads) != len(texts):
        raise InputError(f"titles has {len(heads)} entries for {len(texts)} positives.")
    if titles == "drop":
        heads = [""] * len(texts)
    page = heads[0] if titles == "share" else ""
    positives = [Document(text, None, head) for text, head in zip(texts, heads, strict=True)]
    group = value.get("group")
    return (
        str(value.get("query_id", number)),
        query,
        "" if group is None else str(group),
        positives,
        [Document(text, None, page) for text in negatives],
    )


def _dpr_row(value: Mapping[str, Any], number: int) -> Row:
    """An object of DPR's training files. Raises `InputError`, without a place."""
    query = _text(value, "question")
    positives = _contexts(value, "positive_ctxs")
    if not positives:
        raise InputError("positive_ctxs is empty: a row needs at least one.")
    negatives = [document for key in _CONTEXTS for document in _contexts(value, key)]
    return str(value.get("query_id", number)), query, "", positives, negatives


def _contexts(value: Mapping[str, Any], key: str) -> list[Document]:
    contexts = value.get(key) or []
    if not isinstance(contexts, list) or not all(isinstance(item, Mapping) for item in contexts):
        raise InputError(f"{key} must be a list of objects.")
    documents = []
    for index, item in enumerate(contexts):
        with named(f"{key}[{index}]"):
            document = read_document(item, id_keys=_CONTEXT_IDS)
            _checked(document.text, "text")
        documents.append(document)
    return documents


def _text(value: Mapping[str, Any], key: str) -> str:
    """A text that is not empty. Raises `InputError`, without a place."""
    if key not in value:
        raise InputError(f"there is no {key!r}; the keys are {sorted(map(str, value))}.")
    return _checked(value[key], key)


def _texts(value: Mapping[str, Any], key: str, *, may_be_empty: bool = False) -> list[str]:
    """A list of texts, empty where the row has no such key. Raises `InputError`, without a place."""
    texts = value.get(key)
    if texts is None and key != "positives":
        return []
    if not isinstance(texts, list):
        raise InputError(f"{key} must be a list of texts.")
    return [_checked(text, f"{key}[{at}]", may_be_empty=may_be_empty) for at, text in enumerate(texts)]


def _checked(text: object, name: str, *, may_be_empty: bool = False) -> str:
    if text is None and may_be_empty:
        return ""
    if not isinstance(text, str):
        raise InputError(f"{name} must be a string, not {type(text).__name__}.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name} holds a lone surrogate: it is not valid Unicode text.") from None
    if not may_be_empty and not text_key(text):
        raise InputError(f"{name} is empty.")
    return text
