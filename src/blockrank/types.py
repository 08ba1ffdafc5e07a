"""What goes in and what comes out: documents, requests, rankings and the errors.

Nothing here knows about tensors; importing it is cheap.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, overload

__all__ = [
    "BlockrankError",
    "CapacityError",
    "Document",
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


class BlockrankError(Exception):
    """Root of every error this package raises on purpose."""


class InputError(BlockrankError, ValueError):
    """The caller's input cannot be ranked; the message names the argument and the document's index."""


class ModelError(BlockrankError):
    """A checkpoint cannot be loaded, fails its probe, or yields scores that are not finite."""


class CapacityError(ModelError):
    """A request does not fit into the device's memory; fewer or shorter documents may."""


class MissingExtraError(BlockrankError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text to be ranked. `doc_id` of None becomes the document's index in its request."""

    text: str
    doc_id: str | None = None
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

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


def _check_text(text: object, argument: str) -> str:
    """Return `text` if it is a string a tokenizer can encode, else raise naming `argument`."""
    if not isinstance(text, str):
        raise InputError(f"{argument} must be a string, not {type(text).__name__}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{argument} holds a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}: "
            "it is not valid Unicode text."
        ) from None
    return text


def as_document(value: DocumentLike, index: int) -> Document:
    """Turn a string, a mapping or a `Document` at position `index` of a list into a checked `Document` with an id.

    Raises `InputError`, naming `documents[index]`, where there is no text or it is no text.
    """
    where = f"documents[{index}]"
    if isinstance(value, str):
        value = Document(value)
    elif isinstance(value, Mapping):
        value = _from_mapping(value, where)
    elif not isinstance(value, Document):
        raise InputError(f"{where} must be a string, a mapping with 'text', or a Document, not {type(value).__name__}.")
    _check_text(value.text, f"{where}.text")
    _check_text(value.title, f"{where}.title")
    if not value.content:
        raise InputError(f"{where} is empty: there is no text to rank.")
    doc_id = str(index) if value.doc_id is None else _check_text(value.doc_id, f"{where}.doc_id")
    return Document(value.text, doc_id, value.title, value.metadata)


def _from_mapping(value: Mapping[str, Any], where: str) -> Document:
    """Read a document from the spellings common in retrieval data (`doc_id`, `_id` or `id`; `text`; `title`)."""
    if "text" not in value:
        raise InputError(f"{where} has no 'text'; its keys are {sorted(map(str, value))}.")
    doc_id = next((value[key] for key in ("doc_id", "_id", "id") if value.get(key) is not None), None)
    if isinstance(doc_id, int):
        doc_id = str(doc_id)
    metadata = {key: item for key, item in value.items() if key not in ("doc_id", "_id", "id", "text", "title")}
    return Document(value["text"], doc_id, value.get("title") or "", metadata)


@dataclass(frozen=True, slots=True)
class RankRequest:
    """A query and the candidates handed over by a first stage.

    `documents` may be strings, `Document`s or mappings with `text` (and `doc_id`/`_id`/`id`, `title`); they are
    normalised to `Document`s whose ids are unique. `top_k` keeps the best so many in the ranking; None keeps all.
    `evidence` asks for the characters of each document that received the attention.

    Raises `InputError` on an empty query, no documents, an empty document, a duplicate id, or text that is not text.
    """

    query: str
    documents: Sequence[DocumentLike]
    query_id: str = "0"
    top_k: int | None = None
    evidence: bool = False

    def __post_init__(self) -> None:
        if not _check_text(self.query, "query").strip():
            raise InputError("query is empty: there is nothing to rank for.")
        _check_text(self.query_id, "query_id")
        if isinstance(self.documents, str | bytes | Mapping) or not isinstance(self.documents, Sequence):
            raise InputError(f"documents must be a sequence of documents, not {type(self.documents).__name__}.")
        if not self.documents:
            raise InputError("documents is empty: there is nothing to rank.")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise InputError(f"top_k must be a positive integer or None, not {self.top_k!r}.")
        documents = tuple(as_document(value, index) for index, value in enumerate(self.documents))
        seen: dict[str | None, int] = {}
        for index, document in enumerate(documents):
            if (first := seen.setdefault(document.doc_id, index)) != index:
                raise InputError(f"documents[{index}] has the doc_id {document.doc_id!r} of documents[{first}].")
        object.__setattr__(self, "documents", documents)

    @property
    def candidates(self) -> tuple[Document, ...]:
        """The normalised documents, in the order given."""
        return self.documents  # type: ignore[return-value]  # __post_init__ normalised them


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
    the model read and `cut_tokens` how many were dropped to respect the length limit. `evidence`: where in it the
    attention fell, token by token in reading order, if the request asked for it.
    """

    rank: int
    score: float
    index: int
    document: Document
    tokens: int = 0
    cut_tokens: int = 0
    evidence: tuple[Evidence, ...] = ()

    @property
    def doc_id(self) -> str:
        """The document's id; always set on a ranked document."""
        return str(self.document.doc_id)

    @property
    def text(self) -> str:
        """The document's text as the caller gave it."""
        return self.document.text

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        entry: dict[str, Any] = {
            "rank": self.rank, "score": self.score, "index": self.index, "doc_id": self.doc_id, "text": self.text,
        }  # fmt: skip
        if self.document.title:
            entry["title"] = self.document.title
        if self.cut_tokens:
            entry["cut_tokens"] = self.cut_tokens
        if self.evidence:
            entry["evidence"] = [asdict(item) for item in self.evidence]
        return entry


@dataclass(frozen=True, slots=True)
class Ranking(Sequence[RankedDocument]):
    """Documents of one request, best first. Iterates and indexes like a list.

    Scores of a complete ranking sum to one; they compare documents of the same request and nothing else. Where document
    ids were decoded, a score is minus the rank.
    `query_cut_tokens` is how many tokens the query lost, where that was allowed.
    """

    query: str
    query_id: str
    ranked: tuple[RankedDocument, ...]
    query_cut_tokens: int = 0

    @classmethod
    def from_scores(
        cls,
        request: RankRequest,
        scores: Sequence[float],
        tokens: Sequence[int] | None = None,
        cut_tokens: Sequence[int] | None = None,
        query_cut_tokens: int = 0,
        evidence: Sequence[tuple[Evidence, ...]] | None = None,
    ) -> Ranking:
        """Sort by score, descending; equal scores keep the order of the request."""
        assert len(scores) == len(request.candidates), "a scorer returns one score a document"
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: request.top_k]
        ranked = tuple(
            RankedDocument(
                rank,
                float(scores[index]),
                index,
                request.candidates[index],
                tokens[index] if tokens else 0,
                cut_tokens[index] if cut_tokens else 0,
                evidence[index] if evidence else (),
            )
            for rank, index in enumerate(order, start=1)
        )
        return cls(request.query, request.query_id, ranked, query_cut_tokens)

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
        return {**entry, "results": [ranked.to_dict() for ranked in self.ranked]}


class RequestRanker(ABC):
    """What every ranker offers: `rank` and `rank_many` over its own `rank_iter`."""

    @abstractmethod
    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        """Rank a stream of requests lazily, in order."""

    def rank(
        self,
        query: str,
        documents: Sequence[DocumentLike],
        top_k: int | None = None,
        query_id: str = "0",
        *,
        evidence: bool = False,
    ) -> Ranking:
        """Rank the documents of one query; arguments as in `RankRequest`.

        Raises `InputError` on input that cannot be ranked.
        """
        return self.rank_many([RankRequest(query, documents, query_id, top_k, evidence)])[0]

    def rank_many(self, requests: Iterable[RankRequest]) -> list[Ranking]:
        """Rank many requests, in order; each result equals that of its request alone."""
        return list(self.rank_iter(requests))

    def rank_groups(self, groups: Iterable[Sequence[RankRequest]]) -> Iterator[list[Ranking]]:
        """Rank groups of requests lazily, in order; what a group gets depends on that group alone."""
        return map(self.rank_many, groups)
