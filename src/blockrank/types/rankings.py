"""A ranking: the documents of one request in order, each with its score and where the score came from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, overload

from blockrank.errors import InputError
from blockrank.types.documents import Document, as_json
from blockrank.types.requests import RankRequest, ranked_last
from blockrank.types.scores import LEAST_SHARE, ScoreKind, Spread, as_logits, in_unit_range, spread_of


@dataclass(frozen=True, slots=True)
class Evidence:
    """The attention that one token of a document received.

    [start, end): the token's characters in the document's `field`, as the caller gave it. `share`: its part of the
    document's attention, in [0, 1]; the shares of a document sum to one minus the part that fell on the prompt's frame.
    """

    field: Literal["title", "text"]
    start: int
    end: int
    share: float


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """One place of a ranking.

    `rank` counts from 1; `index` is the document's position in the request; `tokens` is how many of its own tokens
    the model read and `cut_tokens` how many were dropped for the length limit. A document of over eight characters per
    token of the limit is not tokenised to its end; then that number is an estimate (`cut_is_estimate`). `evidence`:
    where in the document the attention fell, token by token in reading order, if the request asked for it.
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

    `kind` says what the scores are, see `ScoreKind`. Shares (of attention) sum to one in a complete ranking; they are
    comparable within one request only. With decoded ids the scores are an order: minus the rank. Documents in which
    nothing could be read come last, in the order of the request, with no tokens; their score is 0 or, where there are
    negative scores, below the lowest.
    `query_cut_tokens` is how many tokens the query lost, where cutting was allowed (an estimate for a query of over
    eight characters per token of the limit). `warnings`: sentences about the request that the caller should see.
    `calls`: how many requests were ranked for it, more than one where a strategy made it. `read_tokens`: tokens of
    documents that were read in all of these together; a document that is in several counts each time.
    `spread`: mean and standard deviation of relative scores over all documents that were read, however many of them
    the ranking holds.
    `unscored`: indices of the candidates that were read but got no score from the model; they come after those with
    one, in the order of the request, with scores as for unreadable documents. `repaired`: how many answers that the
    model wrote could not be used as they were; `warnings` say what was done about them.
    """

    query: str
    query_id: str
    ranked: tuple[RankedDocument, ...]
    query_cut_tokens: int = 0
    warnings: tuple[str, ...] = ()
    kind: ScoreKind = "share"
    calls: int = 1
    read_tokens: int = 0
    spread: Spread | None = None
    unscored: tuple[int, ...] = ()
    repaired: int = 0

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
        kind: ScoreKind = "share",
        unscored: Collection[int] = (),
    ) -> Ranking:
        """Sort by score, descending; equal scores keep the order of the request.

        read: indices of the candidates to which the scores and the other lists belong; the readable ones if left out.
        All others come last. estimated: whether each number in `cut_tokens` is an estimate. unscored: indices
        of those in `read` without a score; their entry in `scores` is ignored, and they come after those with one.
        """
        read = request.readable if read is None else read
        assert len(scores) == len(read), "a scorer returns one score a document"
        unread = sorted(set(range(len(request.candidates))) - set(read))
        others = sorted((place for place in range(len(scores)) if read[place] in unscored), key=read.__getitem__)
        scored = sorted(set(range(len(scores))) - set(others), key=lambda place: (-scores[place], read[place]))
        lowest = min([0.0, *(float(scores[place]) for place in scored)])
        below = [lowest and lowest - step for step in range(1, len(others) + len(unread) + 1)]
        entries = [
            RankedDocument(
                0,
                score,
                read[place],
                request.candidates[read[place]],
                tokens[place] if tokens else 0,
                cut_tokens[place] if cut_tokens else 0,
                evidence[place] if evidence else (),
                estimated[place] if estimated else False,
            )
            for place, score in zip([*scored, *others], [*(float(scores[i]) for i in scored), *below], strict=False)
        ]
        for index, score in zip(unread, below[len(others) :], strict=True):
            entries.append(RankedDocument(0, score, index, request.candidates[index]))
        ranked = tuple(replace(entry, rank=rank) for rank, entry in enumerate(entries[: request.top_k], start=1))
        silent = sorted(set(unread) & set(request.readable))
        warnings = [ranked_last(request.candidates, silent, "no token of this tokenizer")] if silent else []
        warnings = [*request.warnings, *warnings]
        values = [float(scores[place]) for place in scored]
        return cls(
            request.query,
            request.query_id,
            ranked,
            query_cut_tokens,
            tuple(warnings),
            kind,
            read_tokens=sum(tokens or ()),
            spread=spread_of(values) if kind == "relative" else None,
            unscored=tuple(read[place] for place in others),
        )

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

    def logits(self, least: float = LEAST_SHARE) -> list[float]:
        """Logits whose softmax is the distribution that the scores express, in the order of the ranking; see
        `as_logits`.

        Raises `InputError` where scores are not of their kind.
        """
        try:
            return as_logits([entry.score for entry in self.ranked], self.kind, least)
        except InputError as error:
            raise InputError(f"query_id {self.query_id!r}: {error}") from None

    def in_unit_range(self) -> Ranking:
        """The same ranking with scores in [0, 1], see `in_unit_range`; itself where they already are."""
        if self.kind in ("share", "probability"):
            return self
        scores = in_unit_range([entry.score for entry in self.ranked], self.kind, self.spread)
        ranked = (replace(entry, score=score) for entry, score in zip(self.ranked, scores, strict=True))
        return replace(self, ranked=tuple(ranked))

    @property
    def doc_ids(self) -> list[str]:
        """Ids, best first."""
        return [entry.doc_id for entry in self.ranked]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        entry: dict[str, Any] = {"query_id": self.query_id, "query": self.query}
        if self.query_cut_tokens:
            entry["query_cut_tokens"] = self.query_cut_tokens
        if self.kind != "share":
            entry["kind"] = self.kind
        if self.calls != 1:
            entry |= {"calls": self.calls, "read_tokens": self.read_tokens}
        if self.warnings:
            entry["warnings"] = list(self.warnings)
        if self.unscored:
            entry["unscored"] = list(self.unscored)
        if self.repaired:
            entry["repaired"] = self.repaired
        return {**entry, "results": [ranked.to_dict() for ranked in self.ranked]}
