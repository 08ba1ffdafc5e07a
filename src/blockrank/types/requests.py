"""A request: a query and its candidates, checked and normalised before any work is spent."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from blockrank.errors import InputError
from blockrank.text.characters import is_readable
from blockrank.types.documents import (
    Document,
    DocumentLike,
    check_id,
    check_text,
    checked_document,
    named_documents,
    number_documents,
    readable_indices,
    repeated_ids,
)


@dataclass(frozen=True, slots=True)
class RankRequest:
    """A query and the candidates handed over by a first stage.

    `documents`: strings, `Document`s or mappings with `text` (and `doc_id`/`_id`/`id`, `title`; what else they hold
    becomes metadata), in a list or anything else that has an order: a tuple, a generator, a column of a table. They are
    normalised to `Document`s with an id: one that has none gets its index (see `number_documents`). Two may have the
    same id: `index` tells them apart, and a warning says so; where an id must be a key (a run file, judgements) that is
    refused. A document without a readable character is ranked last with score 0, and a warning says so.

    `query_id`: a string or an integer. `top_k`: how many of the best documents the ranking keeps; None keeps all.
    `evidence` asks for the characters of each document that received the attention.

    Raises `InputError` on a query or documents without a readable character, no documents, documents without an order
    (a set) or of several columns, or text that is not text.
    """

    query: str
    documents: Iterable[DocumentLike]
    query_id: str = "0"
    top_k: int | None = None
    evidence: bool = False
    _readable: tuple[int, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        query = check_text(self.query, "query")
        if not query.strip():
            raise InputError("query is empty: there is nothing to rank for.")
        if not is_readable(query):
            raise InputError("query has no readable character: there is nothing to rank for.")
        documents = _documents(self.documents)
        if not documents:
            raise InputError("documents is empty: there is nothing to rank.")
        values = {
            "query": query,
            "query_id": "0" if self.query_id is None else check_id(self.query_id, "query_id"),
            "top_k": _count(self.top_k),
            "evidence": _flag(self.evidence),
            "documents": documents,
            "_readable": readable_indices(documents),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def candidates(self) -> tuple[Document, ...]:
        """The normalised documents, in the order given."""
        return self.documents  # type: ignore[return-value]  # __post_init__ normalised them

    @property
    def readable(self) -> tuple[int, ...]:
        """Indices of the candidates that have a readable character; at least one."""
        return self._readable

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings that its ranking will carry: documents without a readable character, and repeated ids."""
        documents, found = self.candidates, []
        if empty := sorted(set(range(len(documents))) - set(self.readable)):
            found.append(ranked_last(documents, empty, "no readable character"))
        if repeated := repeated_ids(documents):
            (index, first), more = repeated[0], f"; {len(repeated) - 1} more repeat one" if repeated[1:] else ""
            found.append(f"documents[{index}] has the doc_id {documents[index].doc_id!r} of documents[{first}]{more}.")
        return tuple(found)


Check = Callable[[RankRequest], None]  # raises `InputError` where a ranker would refuse the request


def one_by_one(request: RankRequest) -> Iterator[tuple[int, RankRequest]]:
    """The index of each readable candidate, and a request in which it is the second of two documents.

    The first is a placeholder: a document of which a tokenizer makes no token would be refused alone.
    """
    for index in request.readable:
        yield index, replace(request, documents=["a", request.candidates[index]], top_k=None)


def _documents(values: object) -> tuple[Document, ...]:
    """The documents of a request, checked and with ids. Raises `InputError` on a collection without order, or anything
    that is not a sequence."""
    if isinstance(values, set | frozenset):
        raise InputError("documents must have an order, and a set has none: give a list.")
    if isinstance(values, str | bytes | bytearray | Mapping | Document) or not isinstance(values, Iterable):
        raise InputError(f"documents must be a sequence of documents, not {type(values).__name__}.")
    if (dimensions := getattr(values, "ndim", 1)) != 1:  # a table: iterating over it may give column names
        raise InputError(f"documents must have one dimension, not {dimensions}: give one column of a table.")
    return number_documents(checked_document(value, index) for index, value in enumerate(values))


def _count(top_k: object) -> int | None:
    """`top_k` as a Python int. Raises `InputError` where it is not an integer, or not positive."""
    if top_k is None:
        return None
    try:
        count = 0 if isinstance(top_k, bool) else operator.index(top_k)  # type: ignore[arg-type]
    except TypeError:
        count = 0
    if count < 1:
        raise InputError(f"top_k must be a positive integer or None, not {top_k!r}.")
    return count


def _flag(evidence: object) -> bool:
    """`evidence` as a Python bool. Raises `InputError` where it is not one."""
    if type(evidence).__name__ not in ("bool", "bool_"):  # the second is numpy's
        raise InputError(f"evidence must be True or False, not {evidence!r}.")
    return bool(evidence)


def ranked_last(documents: Sequence[Document], indices: Sequence[int], lack: str) -> str:
    """The warning about documents in which nothing can be read."""
    return f"{named_documents(documents, indices)}: {lack}; ranked last."
