"""From the fields of a body to a `Call`: a request for the ranker, and how its answer is to look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blockrank.serve.fields import Fields, check_text, shown
from blockrank.serve.refusals import Refusal, invalid
from blockrank.serve.settings import ServeSettings
from blockrank.types import Document, InputError, RankRequest

# An id comes back with each document: as long as an address may be, or a number that every language can hold.
_LONGEST_ID, _LEAST_ID, _MOST_ID = 2048, -(1 << 63), (1 << 64) - 1
_DOCUMENT_KEYS = ("id", "doc_id", "_id", "text", "title")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a rerank route.

    request: its `query_id` is the request's id, and its documents are numbered by their place. ids: what the caller
    named each document, None where it has no name. model: the name that answers give. echo: documents come back.
    counts: tokens read and cut come back. may_cut: whether documents over the limit are cut; else they are refused.
    max_document_tokens: a limit of this call's own. notes: what the caller is told beside the ranking.
    """

    request: RankRequest
    ids: tuple[str | int | None, ...]
    model: str
    echo: bool
    counts: bool = False
    may_cut: bool = True
    max_document_tokens: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What the model reads of a call: tokens of the whole request, documents that were cut, most tokens that one of
    them lost, tokens that the query lost."""

    tokens: int
    cut_documents: int = 0
    most_cut: int = 0
    query_cut: int = 0


def read_call(
    fields: Fields,
    settings: ServeSettings,
    *,
    documents: str,
    request_id: str,
    echo: bool,
    may_cut: bool = True,
    notes: Sequence[str] = (),
) -> Call:
    """The call that the fields of a dialect make; `documents` names the field that holds them.

    Raises `Refusal` for a model that is not served, and for a query or documents that cannot be ranked or are over a
    limit; its sentence names the document.
    """
    _check_model(fields, settings)
    query = _query(fields, settings)
    given = _documents(fields, settings, documents)
    top_n = fields.integer("top_n", 1)
    evidence = fields.flag("evidence", False)
    limit = fields.integer("max_tokens_per_doc", 1)
    try:
        request = RankRequest(query, [document for document, _ in given], request_id, top_n, evidence)
    except InputError as error:
        raise invalid(str(error).replace("documents[", f"{documents}[")) from None
    ids = tuple(name for _, name in given)
    return Call(
        request, ids, settings.served_name, echo, fields.flag("token_counts", False), may_cut, limit, tuple(notes)
    )


def _check_model(fields: Fields, settings: ServeSettings) -> None:
    model = fields.text("model")
    if model is not None and model not in settings.model_names:
        raise Refusal(
            404,
            "model",
            f"model {shown(model)} is not served here; this server has {settings.served_name!r}.",
            param="model",
        )


def _query(fields: Fields, settings: ServeSettings) -> str:
    query = fields.text("query")
    if query is None:
        raise invalid("query is missing.", "query", "empty")
    if not query.strip():
        raise invalid("query must not be empty or only white space.", "query", "empty")
    if len(query) > settings.max_query_chars:
        raise _over("query", len(query), settings.max_query_chars)
    return query


def _over(name: str, found: int, limit: int) -> Refusal:
    return invalid(f"{name} has {found} characters and the limit is {limit}.", name, "limit")


def _documents(fields: Fields, settings: ServeSettings, name: str) -> list[tuple[Document, str | int | None]]:
    """The documents and what the caller calls them."""
    values = fields.value(name)
    if values is None:
        raise invalid(f"{name} is missing.", name, "empty")
    if not isinstance(values, list):
        raise invalid(f"{name} must be an array.", name)
    if not values:
        raise invalid(f"list of {name} must not be empty.", name, "empty")
    if len(values) > settings.max_documents:
        raise invalid(
            f"{name} holds {len(values)} documents and the limit is {settings.max_documents}: "
            f"{name}[{settings.max_documents}] is the first over it.",
            name,
            "limit",
        )
    return [_document(value, f"{name}[{index}]", index, settings) for index, value in enumerate(values)]


def _document(value: Any, where: str, index: int, settings: ServeSettings) -> tuple[Document, str | int | None]:
    """A document given as a string, or as an object with `text` and maybe `id` and `title`."""
    if isinstance(value, str):
        text, title, name = value, "", None
    elif isinstance(value, dict):
        if unknown := next((key for key in value if key not in _DOCUMENT_KEYS), None):
            raise invalid(f"{where} has an unknown field {shown(unknown)}; known are id, text, title.", where, "field")
        if value.get("text") is None:
            raise invalid(f"{where} has no 'text'.", where)
        text = check_text(value["text"], f"{where}.text")
        title = "" if value.get("title") is None else check_text(value["title"], f"{where}.title")
        name = next((value[key] for key in ("id", "doc_id", "_id") if value.get(key) is not None), None)
        name = None if name is None else _check_id(name, f"{where}.id")
    else:
        raise invalid(f"{where} must be a string or an object with 'text'.", where)
    if len(text) + len(title) > settings.max_document_chars:
        raise _over(where, len(text) + len(title), settings.max_document_chars)
    return Document(text, str(index), title), name


def _check_id(value: Any, where: str) -> str | int:
    if type(value) is int:
        if not _LEAST_ID <= value <= _MOST_ID:
            raise invalid(f"{where} is a number of more than 64 bits; send it as a string.", where)
        return value
    if len(name := check_text(value, where)) > _LONGEST_ID:
        raise _over(where, len(name), _LONGEST_ID)
    return name
