"""What goes in and what comes out: documents, requests, rankings and the errors.

Nothing here knows about tensors; importing it is cheap.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, overload

from blockrank.characters import is_readable
from blockrank.documents import (
    Document,
    DocumentLike,
    as_document,
    as_json,
    check_id,
    check_text,
    checked_document,
    named_documents,
    number_documents,
    readable_indices,
    repeated_ids,
)
from blockrank.errors import BlockrankError, CapacityError, InputError, MissingExtraError, ModelError

__all__ = [
    "BlockrankError",
    "CapacityError",
    "Document",
    "DocumentLike",
    "Evidence",
    "InputError",
    "MissingExtraError",
    "ModelError",
    "RankRequest",
    "RankedDocument",
    "Ranking",
    "RequestRanker",
    "as_document",
]


@dataclass(frozen=True, slots=True)
class RankRequest:
    """A query and the candidates handed over by a first stage.

    `documents`: strings, `Document`s or mappings with `text` (and `doc_id`/`_id`/`id`, `title`; what else they hold
    becomes metadata), in a list or anything else that has an order: a tuple, a generator, a column of a table. They are
    normalised to `Document`s with an id: one that has none gets its index (see `number_documents`). Two may have the
    same id: `index` tells them apart, and a warning says so; where an id must be a key (a run file, judgements) that is
    refused. A document without a readable character is ranked last with score 0, and a warning says so.

    `query_id`: a string or an integer. `top_k` keeps the best so many in the ranking; None keeps all. `evidence` asks
    for the characters of each document that received the attention.

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
        """What its ranking will say beside the documents: those without a readable character, and repeated ids."""
        documents, found = self.candidates, []
        if empty := sorted(set(range(len(documents))) - set(self.readable)):
            found.append(_ranked_last(documents, empty, "no readable character"))
        if repeated := repeated_ids(documents):
            (index, first), more = repeated[0], f"; {len(repeated) - 1} more repeat one" if repeated[1:] else ""
            found.append(f"documents[{index}] has the doc_id {documents[index].doc_id!r} of documents[{first}]{more}.")
        return tuple(found)


def _documents(values: object) -> tuple[Document, ...]:
    """The documents of a request, checked and with ids. Raises `InputError` on what has no order or is no list."""
    if isinstance(values, set | frozenset):
        raise InputError("documents must have an order, and a set has none: give a list.")
    if isinstance(values, str | bytes | bytearray | Mapping | Document) or not isinstance(values, Iterable):
        raise InputError(f"documents must be a sequence of documents, not {type(values).__name__}.")
    if (dimensions := getattr(values, "ndim", 1)) != 1:  # a table, of which iteration may give the names of columns
        raise InputError(f"documents must have one dimension, not {dimensions}: give one column of a table.")
    return number_documents(checked_document(value, index) for index, value in enumerate(values))


def _count(top_k: object) -> int | None:
    """`top_k` as an integer of Python. Raises `InputError` where it is none, or not positive."""
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
    """`evidence` as a truth value of Python. Raises `InputError` where it is none."""
    if type(evidence).__name__ not in ("bool", "bool_"):  # the second is numpy's
        raise InputError(f"evidence must be True or False, not {evidence!r}.")
    return bool(evidence)


def _ranked_last(documents: Sequence[Document], indices: Sequence[int], lack: str) -> str:
    """The warning about documents of which nothing can be read."""
    return f"{named_documents(documents, indices)}: {lack}; ranked last."


@dataclass(frozen=True, slots=True)
class Evidence:
    """The attention that one token of a document received.

    [start, end): the token's characters in the document's `field`, as the caller gave it. `share`: its part of the
    document's attention, in [0, 1]; the shares of a document sum to one less what fell on the prompt's frame.
    """

    field: Literal["title", "text"]
    start: int
    end: int
    share: float


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """One place of a ranking.

    `rank` counts from 1; `index` is the document's position in the request; `tokens` is how many of its own tokens
    the model read and `cut_tokens` how many were dropped to respect the length limit: the rest of a document of over
    eight characters for each token of the limit is not tokenised, and their number is an estimate (`cut_is_estimate`).
    `evidence`: where in it the attention fell, token by token in reading order, if the request asked for it.
    """

    rank: int
    score: float
    index: int
    document: Document
    tokens: int = 0
    cut_tokens: int = 0
    evidence: tuple[Evidence, ...] = ()
    cut_is_estimate: bool = False

    @property
    def doc_id(self) -> str:
        """The document's id; always set on a ranked document."""
        return str(self.document.doc_id)

    @property
    def text(self) -> str:
        """The document's text as the caller gave it."""
        return self.document.text

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; metadata as `as_json` writes it."""
        entry: dict[str, Any] = {
            "rank": self.rank, "score": self.score, "index": self.index, "doc_id": self.doc_id, "text": self.text,
        }  # fmt: skip
        if self.document.title:
            entry["title"] = self.document.title
        if self.document.metadata:
            entry["metadata"] = as_json(self.document.metadata)
        if self.cut_tokens:
            entry["cut_tokens"] = self.cut_tokens
        if self.cut_is_estimate:
            entry["cut_is_estimate"] = True
        if self.evidence:
            entry["evidence"] = [asdict(item) for item in self.evidence]
        return entry


@dataclass(frozen=True, slots=True)
class Ranking(Sequence[RankedDocument]):
    """Documents of one request, best first. Iterates and indexes like a list.

    Scores of a complete ranking sum to one; they compare documents of the same request and nothing else. Where document
    ids were decoded, a score is minus the rank. Documents of which nothing could be read are last, in the order of the
    request, with score 0 (minus the rank where ids were decoded) and no tokens.
    `query_cut_tokens` is how many tokens the query lost, where that was allowed (an estimate for one of over eight
    characters for each token of the limit). `warnings`: sentences about the request that the caller should see.
    """

    query: str
    query_id: str
    ranked: tuple[RankedDocument, ...]
    query_cut_tokens: int = 0
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_scores(
        cls,
        request: RankRequest,
        scores: Sequence[float],
        tokens: Sequence[int] | None = None,
        cut_tokens: Sequence[int] | None = None,
        query_cut_tokens: int = 0,
        evidence: Sequence[tuple[Evidence, ...]] | None = None,
        *,
        read: Sequence[int] | None = None,
        estimated: Sequence[bool] | None = None,
    ) -> Ranking:
        """Sort by score, descending; equal scores keep the order of the request.

        read: indices of the candidates that the scores, and the other lists, belong to; the readable ones if left out.
        All others come last. estimated: whether a number of `cut_tokens` is an estimate.
        """
        read = request.readable if read is None else read
        assert len(scores) == len(read), "a scorer returns one score a document"
        unread = sorted(set(range(len(request.candidates))) - set(read))
        lowest = min(0.0, *map(float, scores))
        entries = [
            RankedDocument(
                0,
                float(scores[place]),
                read[place],
                request.candidates[read[place]],
                tokens[place] if tokens else 0,
                cut_tokens[place] if cut_tokens else 0,
                evidence[place] if evidence else (),
                estimated[place] if estimated else False,
            )
            for place in sorted(range(len(scores)), key=lambda place: -scores[place])
        ]
        for place, index in enumerate(unread, start=1):
            entries.append(RankedDocument(0, lowest and lowest - place, index, request.candidates[index]))
        ranked = tuple(replace(entry, rank=rank) for rank, entry in enumerate(entries[: request.top_k], start=1))
        silent = sorted(set(unread) & set(request.readable))
        warnings = [_ranked_last(request.candidates, silent, "no token of this tokenizer")] if silent else []
        return cls(request.query, request.query_id, ranked, query_cut_tokens, (*request.warnings, *warnings))

    def __len__(self) -> int:
        return len(self.ranked)

    def __iter__(self) -> Iterator[RankedDocument]:
        return iter(self.ranked)

    @overload
    def __getitem__(self, index: int) -> RankedDocument: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[RankedDocument, ...]: ...
    def __getitem__(self, index: int | slice) -> RankedDocument | tuple[RankedDocument, ...]:
        return self.ranked[index]

    def top(self, k: int) -> Ranking:
        """The best `k` as a ranking of their own (scores unchanged)."""
        if k < 1:
            raise InputError(f"k must be positive, not {k}.")
        return replace(self, ranked=self.ranked[:k])

    @property
    def doc_ids(self) -> list[str]:
        """Ids, best first."""
        return [entry.doc_id for entry in self.ranked]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        entry: dict[str, Any] = {"query_id": self.query_id, "query": self.query}
        if self.query_cut_tokens:
            entry["query_cut_tokens"] = self.query_cut_tokens
        if self.warnings:
            entry["warnings"] = list(self.warnings)
        return {**entry, "results": [ranked.to_dict() for ranked in self.ranked]}


class RequestRanker(ABC):
    """What every ranker offers: `rank` and `rank_many` over its own `rank_iter`."""

    @abstractmethod
    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        """Rank a stream of requests lazily, in order."""

    def rank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        top_k: int | None = None,
        query_id: str | int = "0",
        *,
        evidence: bool = False,
    ) -> Ranking:
        """Rank the documents of one query; arguments as in `RankRequest`.

        Raises `InputError` on input that cannot be ranked.
        """
        return self.rank_many([RankRequest(query, documents, check_id(query_id, "query_id"), top_k, evidence)])[0]

    def rank_many(self, requests: Iterable[RankRequest]) -> list[Ranking]:
        """Rank many requests, in order; each result equals that of its request alone."""
        return list(self.rank_iter(requests))

    def rank_groups(self, groups: Iterable[Sequence[RankRequest]]) -> Iterator[list[Ranking]]:
        """Rank groups of requests lazily, in order; what a group gets depends on that group alone."""
        return map(self.rank_many, groups)
