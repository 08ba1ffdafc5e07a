"""From the fields of a body to a `Call`: a request for the ranker, and how its answer is to look."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blockrank.serve.fields import Fields, check_text, in_json, shown
from blockrank.serve.refusals import Refusal, invalid
from blockrank.serve.settings import ServeSettings
from blockrank.serve.spans import SpanOptions
from blockrank.text.characters import is_readable
from blockrank.types import Document, InputError, RankRequest, Tokenised
from blockrank.types.documents import checked_document, named_by

# An id comes back with each document: as long as an address may be, or a number that every language can hold.
_LONGEST_ID, _LEAST_ID, _MOST_ID = 2048, -(1 << 63), (1 << 64) - 1
_NAME_KEYS = ("id", "doc_id", "_id")  # in this order
_TEXT_KEYS = ("text", "title")
_IN_JSON = {
    "str": "a string", "int": "a number", "float": "a number", "bool": "a boolean", "list": "an array",
    "dict": "an object",
}  # fmt: skip
_REQUEST_NUMBER = re.compile(r" \(query_id '[^']*'\)$")


@dataclass(frozen=True, slots=True)
class Names:
    """What a dialect calls the fields that every one has."""

    query: str = "query"
    documents: str = "documents"
    top: str = "top_n"

    def in_words(self, sentence: str) -> str:
        """A sentence of the ranker for a caller: the query and documents called as here, without the number of the
        request, which every answer has in its header, and with JSON's and the server's words in place of Python's."""
        told = _REQUEST_NUMBER.sub("", sentence.replace("(long_queries='cut')", "(--cut-queries of the server)"))
        told = re.sub(r"^query\b", self.query, told)
        told = re.sub(r"^(\S+ is) None:", r"\1 null:", told)
        told = re.sub(rf"\bnot ({'|'.join(_IN_JSON)})\.$", lambda found: f"not {_IN_JSON[found[1]]}.", told)
        return re.sub(r"\bdocuments(?=\[|:)", self.documents, told)


NAMES = Names()


@dataclass(frozen=True, slots=True)
class Given:
    """A document of a call. name: what the caller calls it, None where it has no name. beside: the fields that it came
    with beside text, title and name, as they came."""

    document: Document
    name: str | int | float | None
    beside: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a rerank route.

    request: its `query_id` is the request's id, and its documents are numbered by their place. given: the
    documents as they came. model: the name that answers give. echo: documents come back.
    evidence, counts: where the attention fell, and tokens read and cut, come back. spans: whether and which of Cohere's
    `relevant_spans` do. may_cut: whether documents over the limit are cut; else they are refused. max_document_tokens:
    a limit of this call's own. notes: what the caller is told beside the ranking. names: of the fields, for sentences.
    """

    request: RankRequest
    given: tuple[Given, ...]
    model: str
    echo: bool
    evidence: bool = False
    counts: bool = False
    spans: SpanOptions | None = None
    may_cut: bool = True
    max_document_tokens: int | None = None
    notes: tuple[str, ...] = ()
    names: Names = NAMES


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What the model reads of a call: tokens of the whole request, documents that were cut, most tokens that one of
    them lost, tokens that the query lost."""

    tokens: int
    cut_documents: int = 0
    most_cut: int = 0
    query_cut: int = 0

    @classmethod
    def of(cls, tokenised: Tokenised) -> TokenCounts:
        """What is read of a request that is ready to be scored."""
        lost = [cut.tokens for cut in tokenised.cuts]
        return cls(tokenised.length, len(lost), max(lost, default=0), tokenised.query_cut)


def read_call(
    fields: Fields,
    settings: ServeSettings,
    *,
    request_id: str,
    echo: bool,
    may_cut: bool = True,
    spans: SpanOptions | None = None,
    names: Names = NAMES,
) -> Call:
    """The call that the fields of a dialect make.

    Raises `Refusal` for a model that is not served, and for a query or documents that cannot be ranked or are over a
    limit; its sentence names the document.
    """
    _check_model(fields, settings)
    query = _query(fields, settings, names.query)
    given = _documents(fields, settings, names)
    top = fields.integer(names.top, 1)
    evidence, counts = fields.flag("evidence", False), fields.flag("token_counts", False)
    limit = fields.integer("max_tokens_per_doc", 1)
    try:
        documents = [item.document for item in given]
        request = RankRequest(query, documents, request_id, top, evidence or spans is not None)
    except InputError as error:
        raise invalid(names.in_words(str(error))) from None
    return Call(
        request,
        given,
        settings.served_name,
        echo,
        evidence,
        counts,
        spans,
        may_cut,
        limit,
        (*fields.notes, *_shared_names([item.name for item in given], names.documents)),
        names,
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


def _query(fields: Fields, settings: ServeSettings, name: str) -> str:
    query = fields.text(name)
    if query is None:
        raise invalid(f"{name} is missing.", name, "empty")
    if not query.strip():
        raise invalid(f"{name} must not be empty or only white space.", name, "empty")
    if not is_readable(query):
        raise invalid(f"{name} has no readable character: there is nothing to rank for.", name, "empty")
    if len(query) > settings.max_query_chars:
        raise _over(name, len(query), settings.max_query_chars)
    return query


def _over(name: str, found: int, limit: int) -> Refusal:
    return invalid(f"{name} has {found} characters and the limit is {limit}.", name, "limit")


def _documents(fields: Fields, settings: ServeSettings, names: Names) -> tuple[Given, ...]:
    name = names.documents
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
    return tuple(_given(value, index, names, settings) for index, value in enumerate(values))


def _given(value: Any, index: int, names: Names, settings: ServeSettings) -> Given:
    """A document given as a string, or as an object with `text` and maybe `title`, an id, and fields of the caller's
    own, which come back as they are."""
    where = f"{names.documents}[{index}]"
    if not isinstance(value, str | dict):
        raise invalid(f"{where} must be a string or an object with 'text'.", where)
    name, beside = None, dict[str, Any]()
    if isinstance(value, dict):
        if (key := named_by(value, _NAME_KEYS)) is not None:
            name = _name(value[key], f"{where}.{key}")
            value = {other: item for other, item in value.items() if other != key}
        beside = _checked({key: item for key, item in value.items() if key not in _TEXT_KEYS}, where)
    try:
        document = checked_document(value, index, id_keys=())
    except InputError as error:
        raise invalid(names.in_words(str(error)), where) from None
    size = len(document.text) + len(document.title)
    if size > settings.max_document_chars:
        raise _over(where, size, settings.max_document_chars)
    return Given(document, name, beside)


def _name(value: Any, where: str) -> str | int | float:
    """An id of the caller's: a string or a whole number, which a table may have turned into 7.0."""
    if type(value) is int or (type(value) is float and value.is_integer()):
        if not _LEAST_ID <= value <= _MOST_ID:
            raise invalid(f"{where} is a number of more than 64 bits; send it as a string.", where)
        return value
    if isinstance(value, str):
        if len(name := check_text(value, where)) > _LONGEST_ID:
            raise _over(where, len(name), _LONGEST_ID)
        return name
    raise invalid(f"{where} must be a string or a whole number, not {in_json(value)}.", where)


def _checked(rest: dict[str, Any], where: str) -> dict[str, Any]:
    """Fields of the caller's own, if they can be given back as JSON."""
    if rest:
        try:
            json.dumps(rest, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise invalid(f"{where} holds a lone surrogate: it is not valid Unicode text.", where) from None
        except ValueError:
            raise invalid(f"{where} holds a number that is too large to be given back.", where) from None
    return rest


def _shared_names(ids: Sequence[str | int | float | None], documents: str) -> list[str]:
    """A warning where documents share an id: only `index` tells them apart."""
    first = dict[str, int]()
    repeated = [
        (place, first[str(name)])
        for place, name in enumerate(ids)
        if name is not None and first.setdefault(str(name), place) != place
    ]
    if not repeated:
        return []
    (place, other), more = repeated[0], f"; {len(repeated) - 1} more repeat one" if repeated[1:] else ""
    name = shown(ids[place])
    return [f"{documents}[{place}] has the id {name} of {documents}[{other}]{more}: index tells them apart."]
