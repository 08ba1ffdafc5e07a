"""From tokenised requests to one packed token stream.

Rows are key/value positions in the order `[cached | new]`. Every new segment lists the rows it may read before its
own; that one list is the sparsity pattern, the packing of several requests and the place of a document cache.
Everything here is numpy on the host; nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from blockrank.layout.encoding import Ints
from blockrank.layout.prompt import Kind
from blockrank.layout.tokens import Segment, TokenisedRequest
from blockrank.spec import RankSpec


@dataclass(frozen=True)
class PackedLayout:
    """One packed forward: T new tokens of S segments of B requests, after `cached_rows` rows that exist already.

    ids_T, positions_T: token ids and positions.
    starts_S, ends_S: each segment's tokens, as [start, end) in the stream; its own rows are those plus `cached_rows`.
    causal_S: whether tokens read their own segment only up to themselves (else all of it). own_S: whether they read
    their own segment at all; if not, that is done in another device's layout (see `part`).
    reads_R2 with read_offsets_S1: rows read before the own ones, as [start, end) ranges, CSR over segments.
    document_segment_C, document_request_C: segment and request of each document, request by request.
    signal_G, signal_request_G: stream positions of the tokens that are read out, and their requests.
    """

    ids_T: Ints
    positions_T: Ints
    starts_S: Ints
    ends_S: Ints
    causal_S: NDArray[np.bool_]
    own_S: NDArray[np.bool_]
    reads_R2: Ints
    read_offsets_S1: Ints
    document_segment_C: Ints
    document_request_C: Ints
    signal_G: Ints
    signal_request_G: Ints
    requests: int
    cached_rows: int = 0
    kinds_S: tuple[Kind, ...] = field(default=())

    @property
    def tokens(self) -> int:
        """T."""
        return len(self.ids_T)

    @property
    def rows(self) -> int:
        """P: cached rows and new tokens."""
        return self.cached_rows + len(self.ids_T)

    @property
    def last_B(self) -> Ints:
        """(B,) stream position of each request's last token, after which an answer would follow; for requests with one
        query segment."""
        return self.ends_S[self.query_segment_B] - 1

    @property
    def opened_B(self) -> Ints:
        """(B,) stream position of the token behind which each request's answer begins: `last_B`, but for an answer that
        follows in training. Of requests with signal tokens."""
        ends_B = np.searchsorted(self.signal_request_G, np.arange(self.requests), side="right")
        return self.signal_G[ends_B - 1]

    @cached_property
    def is_instruction_S(self) -> NDArray[np.bool_]:
        """(S,) which segments are instructions; empty, like the two below, if kinds are unknown."""
        return self._are("instruction")

    @cached_property
    def is_document_S(self) -> NDArray[np.bool_]:
        """(S,) which segments are documents."""
        return self._are("document")

    @cached_property
    def is_query_S(self) -> NDArray[np.bool_]:
        """(S,) which segments are queries."""
        return self._are("query")

    def _are(self, kind: Kind) -> NDArray[np.bool_]:
        return np.array([own == kind for own in self.kinds_S], dtype=bool)

    @property
    def instruction_segment_B(self) -> Ints:
        """(B,) the instruction segment of each request."""
        return np.flatnonzero(self.is_instruction_S)

    @property
    def query_segment_B(self) -> Ints:
        """The query segments, request by request; (B,) where each request has one."""
        return np.flatnonzero(self.is_query_S)

    @cached_property
    def request_S(self) -> Ints:
        """(S,) the request of each segment."""
        return np.cumsum(self.is_instruction_S) - 1

    @property
    def _further_S(self) -> NDArray[np.bool_]:
        """(S,) which segments are query segments behind another one of their request."""
        further_S: NDArray[np.bool_] = self.is_query_S & np.r_[False, self.is_query_S[:-1]]
        return further_S

    @property
    def rows_read_S(self) -> Ints:
        """(S,) how many rows each segment reads before its own."""
        before_R1 = np.concatenate([[0], np.cumsum(self.reads_R2[:, 1] - self.reads_R2[:, 0])])
        rows_S: Ints = before_R1[self.read_offsets_S1[1:]] - before_R1[self.read_offsets_S1[:-1]]
        return rows_S

    def tokens_of(self, chosen_S: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(T,) which tokens belong to the chosen segments."""
        chosen_T: NDArray[np.bool_] = np.repeat(chosen_S, self.ends_S - self.starts_S)
        return chosen_T

    def without(self, dropped_S: NDArray[np.bool_]) -> PackedLayout:
        """The same layout without some document segments; no other segment reads their rows any more."""
        kept_S = ~dropped_S
        lengths_S = self.ends_S - self.starts_S
        kept_T = self.tokens_of(kept_S)
        # Number of kept rows before each row, cached ones included: the position of an old row in the new layout.
        before_P1 = np.concatenate([np.arange(self.cached_rows), self.cached_rows + np.r_[0, np.cumsum(kept_T)]])
        ends_S = np.cumsum(lengths_S[kept_S])
        counts_S = np.diff(self.read_offsets_S1)
        kept_R = np.repeat(kept_S, counts_S)
        reads_R2 = before_P1[self.reads_R2[kept_R]].reshape(-1, 2)
        owner_R = np.repeat(np.arange(int(kept_S.sum())), counts_S[kept_S])
        reads_R2, read_offsets_S1 = _ranges_that_hold_rows(reads_R2, owner_R, int(kept_S.sum()))
        kept_C = kept_S[self.document_segment_C]
        place_S = np.cumsum(kept_S) - 1
        return replace(
            self,
            ids_T=self.ids_T[kept_T],
            positions_T=self.positions_T[kept_T],
            starts_S=ends_S - lengths_S[kept_S],
            ends_S=ends_S,
            causal_S=self.causal_S[kept_S],
            own_S=self.own_S[kept_S],
            reads_R2=reads_R2,
            read_offsets_S1=read_offsets_S1,
            document_segment_C=place_S[self.document_segment_C[kept_C]],
            document_request_C=self.document_request_C[kept_C],
            signal_G=before_P1[self.signal_G + self.cached_rows] - self.cached_rows,
            kinds_S=tuple(kind for kind, kept in zip(self.kinds_S, kept_S, strict=True) if kept),
        )

    def padded(self, tokens: int) -> PackedLayout:
        """The same layout padded to a larger number of tokens by a last segment of zeros that nothing else reads."""
        more = tokens - self.tokens
        zeros = np.zeros(more, dtype=np.int64)
        return replace(
            self,
            ids_T=np.r_[self.ids_T, zeros],
            positions_T=np.r_[self.positions_T, zeros],
            starts_S=np.r_[self.starts_S, self.tokens],
            ends_S=np.r_[self.ends_S, tokens],
            causal_S=np.r_[self.causal_S, True],
            own_S=np.r_[self.own_S, True],
            read_offsets_S1=np.r_[self.read_offsets_S1, self.read_offsets_S1[-1]],
            kinds_S=(*self.kinds_S, "instruction"),
        )

    def part(self, kept_C: NDArray[np.bool_], *, whole: bool) -> PackedLayout:
        """The same layout with a part of its documents, to divide one layout over several devices.

        Query tokens attend to the documents of each part separately, and the results are merged by their log-sum-exps;
        so they read the instruction and their own segment in one part only, the `whole` one.
        """
        dropped_S = np.zeros(len(self.starts_S), dtype=bool)
        dropped_S[self.document_segment_C[~kept_C]] = True
        layout = self.without(dropped_S)
        if whole:
            return layout
        is_query, segments = layout.is_query_S, len(layout.starts_S)
        owner_R = np.repeat(np.arange(segments), np.diff(layout.read_offsets_S1))
        instruction_end_S = layout.ends_S[layout.instruction_segment_B[layout.request_S]]
        reads_R2 = layout.reads_R2.copy()
        floor_R = np.where(is_query[owner_R], instruction_end_S[owner_R] + layout.cached_rows, 0)
        reads_R2[:, 0] = np.maximum(reads_R2[:, 0], floor_R)
        reads_R2, read_offsets_S1 = _ranges_that_hold_rows(reads_R2, owner_R, segments)
        return replace(
            layout,
            causal_S=layout.causal_S & ~is_query,
            own_S=layout.own_S & ~is_query,
            reads_R2=reads_R2,
            read_offsets_S1=read_offsets_S1,
        )

    def joined(self) -> PackedLayout:
        """An equivalent layout for attention: a request whose segments all read everything before them, causally,
        becomes one segment. Further query segments, which do not read the one before them, stay segments of their own.
        The layout itself if there is no such request."""
        counts_S = np.diff(self.read_offsets_S1)
        alone_S = counts_S == 0
        heads = np.flatnonzero(alone_S)
        if len(heads) == len(counts_S) or not len(heads) or heads[0]:
            return self
        group_S = np.cumsum(alone_S) - 1
        rows_S = self.starts_S + self.cached_rows
        first_R = np.minimum(self.read_offsets_S1[:-1], len(self.reads_R2) - 1)
        reads_all_S = (counts_S == 1) & (self.reads_R2[first_R] == np.stack([rows_S[heads[group_S]], rows_S], 1)).all(1)
        goes_on_S = self.causal_S & self.own_S & (alone_S | reads_all_S)
        joins_S = goes_on_S | (self._further_S if len(self.kinds_S) else False)
        begins_S = alone_S | ~goes_on_S | ~np.logical_and.reduceat(joins_S, heads)[group_S]
        if begins_S.all():
            return self
        nothing = np.zeros(0, dtype=np.int64)
        return replace(
            self,
            starts_S=self.starts_S[begins_S],
            ends_S=self.ends_S[np.append(np.flatnonzero(begins_S)[1:], len(begins_S)) - 1],
            causal_S=self.causal_S[begins_S],
            own_S=self.own_S[begins_S],
            reads_R2=self.reads_R2[np.repeat(begins_S, counts_S)],
            read_offsets_S1=np.concatenate([[0], np.cumsum(counts_S[begins_S])]).astype(np.int64),
            document_segment_C=nothing,
            document_request_C=nothing,
            kinds_S=(),
        )

    def key_rows(self, segments: Ints) -> tuple[Ints, Ints]:
        """All rows the given segments read, own rows last: flat row indices and the count for each segment."""
        first, last = self.read_offsets_S1[segments], self.read_offsets_S1[segments + 1]
        own_ends = np.where(self.own_S[segments], self.ends_S[segments], self.starts_S[segments])
        own = np.stack([self.starts_S[segments], own_ends], 1) + self.cached_rows
        ranges = ranges_flat(first, last)
        # One list of ranges in segment order: the rows that each segment reads, then its own.
        owner = np.concatenate([np.repeat(np.arange(len(segments)), last - first), np.arange(len(segments))])
        order = np.argsort(owner, kind="stable")
        table = np.concatenate([self.reads_R2[ranges], own])[order]
        counts = np.bincount(owner[order], weights=table[:, 1] - table[:, 0], minlength=len(segments))
        return ranges_flat(table[:, 0], table[:, 1]), counts.astype(np.int64)


def _ranges_that_hold_rows(reads_R2: Ints, owner_R: Ints, segments: int) -> tuple[Ints, Ints]:
    """Ranges without the empty ones, and their offsets over segments. owner_R: the segment of each, ascending."""
    some_R = reads_R2[:, 1] > reads_R2[:, 0]
    counts_S = np.bincount(owner_R[some_R], minlength=segments)
    return reads_R2[some_R], np.r_[0, np.cumsum(counts_S)].astype(np.int64)


def ranges_flat(starts: Ints, ends: Ints) -> Ints:
    """Concatenate `arange(start, end)` over all pairs, without a Python loop."""
    lengths = ends - starts
    total = int(lengths.sum())
    offsets = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths) if total else np.zeros(0)
    return (np.arange(total) + offsets).astype(np.int64)


def pack(requests: Sequence[TokenisedRequest], spec: RankSpec) -> PackedLayout:
    """Lay requests one after the other in one stream; no request ever reads rows of another.

    Positions (method, section 2): the instruction starts at 0, every document right after it, the query segment at
    `query_offset` (or where documents start). Under the causal pattern each segment starts where the one before it
    ended, the query at `query_offset` if that is higher. Query segments of one request start at the same position and
    do not read each other.
    """
    segments = [segment for request in requests for segment in request.segments]
    lengths = np.array([len(segment.ids) for segment in segments], dtype=np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    sizes = np.array([len(request.segments) for request in requests], dtype=np.int64)
    request_S = np.repeat(np.arange(len(requests)), sizes)
    first_S = np.repeat(np.cumsum(sizes) - sizes, sizes)
    is_query = np.array([segment.kind == "query" for segment in segments])
    is_document = np.array([segment.kind == "document" for segment in segments])
    before_S = _read_up_to(starts, is_query)
    reads, read_offsets = _reads(starts, ends, before_S, first_S, is_query, is_document, spec)
    pattern = spec.pattern
    after_S = before_S - starts[first_S] if pattern.kind == "causal" else lengths[first_S]
    begin_S = np.where(is_document | is_query, after_S, 0)
    if pattern.query_offset is not None:
        begin_S = np.where(is_query, np.maximum(pattern.query_offset, begin_S), begin_S)
    signal, signal_request = _signals(segments, starts, request_S, is_query, spec)
    return PackedLayout(
        ids_T=np.concatenate([segment.ids for segment in segments]),
        positions_T=np.arange(int(ends[-1])) + np.repeat(begin_S - starts, lengths),
        starts_S=starts,
        ends_S=ends,
        causal_S=np.where(is_query, pattern.query_attention == "causal", pattern.document_attention == "causal"),
        own_S=np.ones(len(segments), dtype=bool),
        reads_R2=reads,
        read_offsets_S1=read_offsets,
        document_segment_C=np.flatnonzero(is_document),
        document_request_C=request_S[is_document],
        signal_G=signal,
        signal_request_G=signal_request,
        requests=len(requests),
        kinds_S=tuple(segment.kind for segment in segments),
    )


def _read_up_to(starts: Ints, is_query: NDArray[np.bool_]) -> Ints:
    """(S,) where what may stand before each segment ends: at its own start, of a further query segment at that of the
    first one of its request."""
    begins_S = ~is_query | ~np.r_[False, is_query[:-1]]
    return starts[np.maximum.accumulate(np.where(begins_S, np.arange(len(starts)), 0))]


def _reads(
    starts: Ints,
    ends: Ints,
    before_S: Ints,
    first_S: Ints,
    is_query: NDArray[np.bool_],
    is_document: NDArray[np.bool_],
    spec: RankSpec,
) -> tuple[Ints, Ints]:
    """The block pattern: documents read the instruction; the query reads all before it, or the instruction alone.
    The causal one: every segment reads all of its request before it. before_S: where that ends.

    Every segment reads at most one range here, as rows of a request are contiguous; empty ranges are left out.
    """
    range_starts = starts[first_S]
    document_ends = before_S if spec.pattern.kind == "causal" else ends[first_S]
    range_ends = np.where(is_document, document_ends, range_starts)
    range_ends = np.where(is_query, before_S if spec.pattern.query_reads == "all" else ends[first_S], range_ends)
    keep = range_ends > range_starts
    offsets = np.concatenate([[0], np.cumsum(keep)]).astype(np.int64)
    return np.stack([range_starts[keep], range_ends[keep]], 1), offsets


def _signals(
    segments: Sequence[Segment], starts: Ints, request_S: Ints, is_query: NDArray[np.bool_], spec: RankSpec
) -> tuple[Ints, Ints]:
    """Stream positions of the signal tokens and the request each belongs to."""
    queries = np.flatnonzero(is_query)
    ends = np.array([segment.signal_end for segment in segments], dtype=np.int64)[queries]
    wanted = spec.readout.signal_tokens
    counts = ends if wanted == "query" else np.minimum(ends, wanted)
    positions = ranges_flat(starts[queries] + ends - counts, starts[queries] + ends)
    return positions, np.repeat(request_S[queries], counts)
