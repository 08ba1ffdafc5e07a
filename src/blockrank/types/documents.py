"""Documents: what is taken as one, what it is called, and what comes back with it."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from numbers import Integral
from typing import Any, Literal

from blockrank.errors import InputError
from blockrank.text.characters import is_readable

ID_KEYS = ("doc_id", "_id", "id")  # what an id is called in retrieval data, the first that is there
_OWN_KEYS = frozenset({*ID_KEYS, "title", "text", "metadata"})
_DEEPEST = 32  # levels of metadata that are written as they are
_MOST_KEYS, _MOST_SHOWN = 8, 80  # keys that a sentence lists, and characters of each
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


def checked_document(value: object, index: int, id_keys: Sequence[str] = ID_KEYS) -> Document:
    """The same of a document that may have no readable character, and no id. id_keys: see `read_document`."""
    where = f"documents[{index}]"
    if isinstance(value, Mapping):
        return read_document(value, where, id_keys)
    if isinstance(value, str):
        return Document(check_text(value, f"{where}.text"))
    if is_missing(value):
        raise InputError(f"{where} is {value}: there is no document; leave it out, or give an empty string.")
    if not isinstance(value, Document):
        raise InputError(f"{where} must be a string, a mapping with 'text', or a Document, not {type(value).__name__}.")
    if not isinstance(value.metadata, Mapping):
        raise InputError(f"{where}.metadata must be a mapping, not {type(value.metadata).__name__}.")
    doc_id = None if value.doc_id is None else check_id(value.doc_id, f"{where}.doc_id")
    text, title = check_text(value.text, f"{where}.text"), check_text(value.title, f"{where}.title")
    return Document(text, doc_id, title, value.metadata)


def read_document(value: Mapping[str, Any], where: str = "", id_keys: Sequence[str] = ID_KEYS) -> Document:
    """The document that a JSON object, or another mapping, is: whoever reads one reads it here.

    `text` is a string, `title` one too or missing. The id is under the first of `id_keys` that is not missing, if any
    is. What else there is becomes metadata, an id under another key too; metadata in an object `metadata`, as other
    libraries have it, is opened. `written_document` is the way back.

    where: what the mapping is called in a sentence, such as `documents[3]`; empty where its place is told otherwise.
    Raises `InputError`.
    """
    at = f"{where}." if where else ""
    if "text" not in value:
        lack, keys = (f"{where} has", "its") if where else ("there is", "the")
        raise InputError(f"{lack} no 'text'; {keys} keys are {_listed(value)}.")
    if is_missing(value["text"]):
        it = "the document" if where else "it"
        raise InputError(f"{at}text is {value['text']}: leave {it} out, or give an empty string.")
    text, title, id_key = value["text"], value.get("title"), named_by(value, id_keys)
    return Document(
        check_text(text, f"{at}text"),
        None if id_key is None else check_id(value[id_key], f"{at}{id_key}"),
        "" if is_missing(title) else check_text(title, f"{at}title"),
        _metadata(value, {"text", "title", id_key}),
    )


def named_by(value: Mapping[str, Any], id_keys: Sequence[str]) -> str | None:
    """The first of the keys under which a mapping has an id; None where it has none."""
    return next((key for key in id_keys if not is_missing(value.get(key))), None)


def _metadata(value: Mapping[str, Any], taken: Collection[str | None]) -> Mapping[str, Any]:
    """What a mapping holds beside what was taken of it, and ids that are missing."""
    rest = {key: item for key, item in value.items() if key not in taken and not (key in ID_KEYS and is_missing(item))}
    inner = rest.get("metadata")
    if not isinstance(inner, Mapping) or inner.keys() & (rest.keys() - {"metadata"}):
        return rest
    return {**inner, **{key: item for key, item in rest.items() if key != "metadata"}}


def _listed(value: Mapping[str, Any]) -> str:
    """The first keys of a mapping, which may be many and long."""
    names = sorted(repr(str(key)[:_MOST_SHOWN]) for key in islice(value, _MOST_KEYS))
    return f"[{', '.join([*names, '...'] if len(value) > _MOST_KEYS else names)}]"


def written_document(document: Document, id_key: str = "doc_id") -> dict[str, Any]:
    """A document as a JSON object of which `read_document` makes an equal one.

    Metadata goes beside the text; into an object of its own where a name in it is one of a document's own.
    """
    entry: dict[str, Any] = {id_key: document.doc_id}
    if document.title:
        entry["title"] = document.title
    is_apart = not _OWN_KEYS.isdisjoint(map(str, document.metadata))
    return {**entry, "text": document.text, **({"metadata": document.metadata} if is_apart else document.metadata)}


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
