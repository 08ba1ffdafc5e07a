"""Documents: what is taken as one, what it is called, and what comes back with it."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, Literal

from blockrank.errors import InputError
from blockrank.text.characters import is_readable

_ID_KEYS = ("doc_id", "_id", "id")
_DEEPEST = 32  # levels of metadata that are written as they are
_NAMED = 3  # documents that a sentence names one by one


@dataclass(frozen=True, slots=True)
class Document:
    """A text to be ranked.

    `doc_id`: a string; an integer becomes its decimal string, and None a number in its request (`number_documents`).
    A `title` of None is no title. `metadata`: whatever belongs to the document; it is not read, and comes back with it.
    """

    text: str
    doc_id: str | None = None
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if is_missing(self.title):
            object.__setattr__(self, "title", "")
        if is_missing(self.metadata):
            object.__setattr__(self, "metadata", {})
        if type(self.doc_id) is not str and is_integer(self.doc_id):
            object.__setattr__(self, "doc_id", str(operator.index(self.doc_id)))  # type: ignore[arg-type]

    @property
    def content(self) -> str:
        """Title, space and text, stripped: what a model reads."""
        return self._joined.strip()

    @property
    def _joined(self) -> str:
        return f"{self.title} {self.text}" if self.title else self.text

    def locate(self, start: int, end: int) -> tuple[Literal["title", "text"], int, int]:
        """Where the characters [start, end) of `content` stand: the field, and start and end in it as given.

        A span over the seam of title and text is cut to the part in the title.
        """
        lead = len(self._joined) - len(self._joined.lstrip())
        start, end = start + lead, end + lead
        if not self.title:
            return "text", start, end
        if start < len(self.title):
            return "title", start, min(end, len(self.title))
        offset = len(self.title) + 1
        return "text", max(start - offset, 0), max(end - offset, 0)


DocumentLike = str | Document | Mapping[str, Any]


def is_missing(value: object) -> bool:
    """Whether a value says that there is none: None, or the NaN that tables hold in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_integer(value: object) -> bool:
    """Whether a value is an integer of Python or numpy; truth values are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_text(text: object, argument: str) -> str:
    """`text` if it is a string that a tokenizer can encode; raises `InputError` naming `argument` if not."""
    if not isinstance(text, str):
        raise InputError(f"{argument} must be a string, not {type(text).__name__}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{argument} holds a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}: "
            "it is not valid Unicode text."
        ) from None
    return text if type(text) is str else str.__str__(text)


def check_id(value: object, argument: str) -> str:
    """An id as a string: one that is an integer becomes its decimal form. Raises `InputError` naming `argument`."""
    if is_integer(value):
        return str(operator.index(value))  # type: ignore[arg-type]
    if not isinstance(value, str):
        raise InputError(f"{argument} must be a string or an integer, not {type(value).__name__}.")
    return check_text(value, argument)


def as_document(value: object, index: int) -> Document:
    """Turn a string, a mapping or a `Document` at position `index` of a list into a checked `Document` with an id.

    Raises `InputError`, naming `documents[index]`, where there is no text or it is no text.
    """
    document = checked_document(value, index)
    if not is_readable(document.content):
        raise _empty(index)
    return document if document.doc_id is not None else replace(document, doc_id=str(index))


def checked_document(value: object, index: int) -> Document:
    """The same of a document that may have no readable character, and no id."""
    where = f"documents[{index}]"
    if isinstance(value, str):
        value = Document(value)
    elif isinstance(value, Mapping):
        value = _from_mapping(value, where)
    elif is_missing(value):
        raise InputError(f"{where} is {value}: there is no document; leave it out, or give an empty string.")
    elif not isinstance(value, Document):
        raise InputError(f"{where} must be a string, a mapping with 'text', or a Document, not {type(value).__name__}.")
    if not isinstance(value.metadata, Mapping):
        raise InputError(f"{where}.metadata must be a mapping, not {type(value.metadata).__name__}.")
    doc_id = None if value.doc_id is None else check_id(value.doc_id, f"{where}.doc_id")
    text, title = check_text(value.text, f"{where}.text"), check_text(value.title, f"{where}.title")
    return Document(text, doc_id, title, value.metadata)


def _from_mapping(value: Mapping[str, Any], where: str) -> Document:
    """Read a document from the spellings common in retrieval data (`doc_id`, `_id` or `id`; `text`; `title`).

    Metadata is what stands beside them, and what stands in an object `metadata` as other libraries have it.
    """
    if "text" not in value:
        raise InputError(f"{where} has no 'text'; its keys are {sorted(map(str, value))}.")
    doc_id = next((value[key] for key in _ID_KEYS if value.get(key) is not None), None)
    metadata = {key: item for key, item in value.items() if key not in (*_ID_KEYS, "text", "title")}
    inner = metadata.get("metadata")
    if isinstance(inner, Mapping) and not inner.keys() & (metadata.keys() - {"metadata"}):
        metadata = {**inner, **{key: item for key, item in metadata.items() if key != "metadata"}}
    return Document(value["text"], doc_id, value.get("title") or "", metadata)


def number_documents(documents: Iterable[Document]) -> tuple[Document, ...]:
    """Documents that all have an id: one that came without has its index, or where another came with that id its index
    behind as many `#` as make it its own."""
    documents = tuple(documents)
    given = {document.doc_id for document in documents}
    numbered = []
    for index, document in enumerate(documents):
        if document.doc_id is None:
            name = str(index)
            while name in given:
                name = f"#{name}"
            document = replace(document, doc_id=name)
        numbered.append(document)
    return tuple(numbered)


def readable_indices(documents: Sequence[Document]) -> tuple[int, ...]:
    """The documents that have a readable character. Raises `InputError` where none has."""
    found = tuple(index for index, document in enumerate(documents) if is_readable(document.content))
    if not found:
        raise InputError(
            f"{named_documents(documents, range(len(documents)))}: no readable character; there is nothing to rank."
        )
    return found


def check_readable(documents: Sequence[Document]) -> None:
    """Raise `InputError` naming the first document without a readable character."""
    for index, document in enumerate(documents):
        if not is_readable(document.content):
            raise _empty(index)


def _empty(index: int) -> InputError:
    return InputError(f"documents[{index}] is empty: there is no text to rank.")


def check_unique_ids(documents: Sequence[Document]) -> None:
    """Raise `InputError` naming the first document with the id of an earlier one, where an id must be a key."""
    if repeated := repeated_ids(documents):
        index, first = repeated[0]
        raise InputError(f"documents[{index}] has the doc_id {documents[index].doc_id!r} of documents[{first}].")


def repeated_ids(documents: Sequence[Document]) -> list[tuple[int, int]]:
    """Documents whose id an earlier one has, each with the first of that id."""
    seen: dict[str | None, int] = {}
    first = [seen.setdefault(document.doc_id, index) for index, document in enumerate(documents)]
    return [(index, other) for index, other in enumerate(first) if other != index]


def named_documents(documents: Sequence[Document], indices: Sequence[int]) -> str:
    """Some documents of a request as a sentence names them: by index, and by id where that says more."""
    names = [
        f"documents[{index}]" + (f" (doc_id {doc_id!r})" if (doc_id := documents[index].doc_id) != str(index) else "")
        for index in indices[:_NAMED]
    ]
    more = [f"{len(indices) - _NAMED} more"] if len(indices) > _NAMED else []
    *others, last = [*names, *more]
    return f"{', '.join(others)} and {last}" if others else last


def as_json(value: Any, depth: int = 0) -> Any:
    """A value of metadata as JSON can hold it.

    Dates and times in ISO form, numbers of numpy as numbers, arrays and other sequences as lists, NaN and infinities
    as null; what JSON has no form for, and what is nested too deep, as its string.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if is_integer(value):
        return operator.index(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {as_json(str(key)): as_json(item, depth + 1) for key, item in value.items()}
    if depth < _DEEPEST and isinstance(value, list | tuple | set | frozenset):
        return [as_json(item, depth + 1) for item in value]
    for name in ("isoformat", "tolist"):  # dates, times and timestamps; arrays and scalars of numpy
        if callable(method := getattr(value, name, None)) and not isinstance(value, type):
            return as_json(method(), depth + 1) if depth < _DEEPEST else str(value)
    return as_json(str(value))
