"""From segment texts to one packed token stream: tokenise, limit, pack.

Rows are key/value positions in the order `[cached | new]`. Every new segment lists the rows it may read before its
own; that one list is the sparsity pattern, the packing of several requests and the place of a document cache.
Everything here is numpy on the host; nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockrank.prompt import Kind, SegmentText, segments
from blockrank.spec import RankSpec
from blockrank.types import InputError, RankRequest

Ints = NDArray[np.int64]
_BREAK_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Segment:
    """One tokenised segment.

    `ids` are its tokens; `body_tokens` counts those that came from the caller, `cut` those dropped for the limit;
    `signal_end` (query segment) is the end of the tokens that may be read out: an answer may follow it in training.
    """

    kind: Kind
    ids: Ints
    body_tokens: int
    cut: int = 0
    signal_end: int = 0


@dataclass(frozen=True, slots=True)
class TokenisedRequest:
    """The segments of one request: instruction, documents in order, query. `query_cut`: tokens the query lost."""

    segments: tuple[Segment, ...]
    query_cut: int = 0

    @property
    def documents(self) -> tuple[Segment, ...]:
        """The document segments, one a candidate."""
        return self.segments[1:-1]

    @property
    def length(self) -> int:
        """Tokens over all segments."""
        return sum(len(segment.ids) for segment in self.segments)


class PromptTokenizer:
    """Tokenises segments piece by piece with a private copy of a fast tokenizer.

    Control tokens written in a frame become control tokens; the same characters in a caller's text never do, also
    where an added token is marked `special=False`: a space is put into them and the piece is encoded again.
    """

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: a Hugging Face tokenizer with a fast backend. Raises `InputError` without one."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InputError(
                f"{type(tokenizer).__name__} has no fast (Rust) backend; token positions in the text are needed."
            )
        # A copy: truncation and padding stored in the tokenizer's file must not act here, and a shared backend is
        # not safe to reconfigure while another thread encodes.
        self._backend = type(backend).from_str(backend.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        # White space and the unknown token steer nothing, and ordinary text may well yield them.
        harmless = {getattr(tokenizer, "unk_token_id", None)}
        added = self._backend.get_added_tokens_decoder()
        control = sorted(i for i, token in added.items() if token.content.strip() and i not in harmless)
        self._control = np.array(control, dtype=np.int64)

    def encode(self, text: str) -> Ints:
        """Token ids of a plain text, without a frame."""
        return np.array(self._backend.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def shorten(self, text: str, limit: int) -> tuple[str, int]:
        """The beginning of a plain text that takes at most `limit` tokens, and how many tokens were dropped."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        over = len(encoding.ids) - limit
        return (text[: encoding.offsets[limit - 1][1]], over) if over > 0 else (text, 0)

    def tokenise_request(
        self, request: RankRequest, spec: RankSpec, answer: tuple[int, ...] | None = None
    ) -> TokenisedRequest:
        """The segments of a request as tokens; a query over the limit loses its end where the spec allows it.

        `answer`: see `blockrank.prompt.segments`. Raises `InputError` as `tokenise` does.
        """
        cut = 0
        if spec.long_queries == "cut":
            query, cut = self.shorten(request.query.strip(), spec.max_query_tokens)
            request = replace(request, query=query) if cut else request
        return replace(self.tokenise(segments(spec.prompt, request, answer), spec), query_cut=cut)

    def tokenise(self, texts: Sequence[SegmentText], spec: RankSpec) -> TokenisedRequest:
        """Encode the segments of one request under the limits of `spec`.

        Raises `InputError` when the query is over `max_query_tokens`, a document's frame alone is over
        `max_segment_tokens`, a text yields no token, or it cannot be kept free of control tokens.
        """
        pieces = [piece for text in texts for piece in text.pieces]
        encodings = self._backend.encode_batch([piece.text for piece in pieces], add_special_tokens=False)
        encoded = [
            self._protected(piece.text, piece.bodies, encoding)
            for piece, encoding in zip(pieces, encodings, strict=True)
        ]
        segments, at = [], 0
        for text in texts:
            parts = encoded[at : at + len(text.pieces)]
            at += len(text.pieces)
            segments.append(self._segment(text, parts, spec))
        return TokenisedRequest(tuple(segments))

    def _protected(self, text: str, bodies: tuple[tuple[int, int], ...], encoding: Any) -> tuple[Any, Any]:
        """Return the encoding and its body spans, with every control token inside a body broken up."""
        for _ in range(_BREAK_ROUNDS):
            hits = self._control_hits(bodies, encoding)
            if not hits:
                return encoding, bodies
            for start in reversed(hits):
                text = f"{text[: start + 1]} {text[start + 1 :]}"
                bodies = tuple((a + (a > start), b + (b > start)) for a, b in bodies)
            encoding = self._backend.encode(text, add_special_tokens=False)
        raise InputError("a text holds control tokens of this tokenizer that cannot be broken up; remove them.")

    def _control_hits(self, bodies: tuple[tuple[int, int], ...], encoding: Any) -> list[int]:
        """First characters of control tokens that lie in a body."""
        if not bodies:
            return []
        found = np.flatnonzero(np.isin(np.array(encoding.ids, dtype=np.int64), self._control))
        if not len(found):
            return []
        offsets = encoding.offsets
        starts = [offsets[i][0] for i in found if any(a < offsets[i][1] and offsets[i][0] < b for a, b in bodies)]
        return sorted(set(starts))

    def _segment(self, text: SegmentText, parts: Sequence[tuple[Any, Any]], spec: RankSpec) -> Segment:
        ids = [np.array(encoding.ids, dtype=np.int64) for encoding, _ in parts]
        joined = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int64)
        if text.kind != "instruction" and not len(joined):
            name = "query" if text.kind == "query" else f"documents[{text.index}]"
            raise InputError(f"{name} yields no token of this tokenizer: there is nothing to read.")
        if text.kind == "document":
            return self._document(text, joined, parts, spec)
        body = int(self._body_mask(parts).sum())
        if text.kind == "query" and body > spec.max_query_tokens:
            raise InputError(
                f"query is {body} tokens long and the limit is {spec.max_query_tokens}: shorten it, or allow it to be "
                "cut (long_queries='cut')."
            )
        return Segment(text.kind, joined, body, signal_end=self._signal_end(text, ids, spec))

    def _document(self, text: SegmentText, ids: Ints, parts: Sequence[tuple[Any, Any]], spec: RankSpec) -> Segment:
        """Drop body tokens from the end until the segment fits; the frame stays whole."""
        over = len(ids) - spec.max_segment_tokens
        if over <= 0:
            frame = sum(len(piece.text) - sum(b - a for a, b in piece.bodies) for piece in text.pieces)
            body = len(ids) if not frame else int(self._body_mask(parts).sum())
            return Segment("document", ids, body)
        body_at = np.flatnonzero(self._body_mask(parts))
        if over >= len(body_at):
            raise InputError(
                f"documents[{text.index}] does not fit: its frame alone takes {len(ids) - len(body_at)} of the "
                f"{spec.max_segment_tokens} tokens of max_segment_tokens."
            )
        return Segment("document", np.delete(ids, body_at[-over:]), len(body_at) - over, cut=over)

    @staticmethod
    def _body_mask(parts: Sequence[tuple[Any, Any]]) -> NDArray[np.bool_]:
        """Which tokens lie wholly inside a body; a token that straddles the seam belongs to the frame."""
        masks = [np.zeros(0, dtype=bool)]
        for encoding, bodies in parts:
            offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            inside = np.zeros(len(offsets), dtype=bool)
            for start, end in bodies:
                inside |= (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 1] > offsets[:, 0])
            masks.append(inside)
        return np.concatenate(masks)

    def _signal_end(self, text: SegmentText, ids: Sequence[Ints], spec: RankSpec) -> int:
        """End of the readable tokens: the template's answer opening, without an answer that follows it."""
        if text.kind != "query":
            return 0
        total = sum(map(len, ids))
        opening = spec.prompt.answer
        if not opening or text.pieces[-1].text == opening:
            return total
        opened = self.encode(opening)
        if list(ids[-1][: len(opened)]) != list(opened):
            raise InputError(f"this tokenizer merges the answer opening {opening!r} with the answer; it cannot train.")
        return total - len(ids[-1]) + len(opened)


@dataclass(frozen=True)
class PackedLayout:
    """One packed forward: T new tokens of S segments of B requests, after `cached_rows` rows that exist already.

    ids_T, positions_T: token ids and positions.
    starts_S, ends_S: each segment's tokens, as [start, end) in the stream; its own rows are those plus `cached_rows`.
    causal_S: whether a token reads its own segment up to itself (else all of it).
    reads_R2 with read_offsets_S1: rows read before the own ones, as [start, end) ranges, CSR over segments.
    document_segment_C, document_request_C: segment and request of each document, request by request.
    signal_G, signal_request_G: stream positions of the tokens that are read out, and their requests.
    """

    ids_T: Ints
    positions_T: Ints
    starts_S: Ints
    ends_S: Ints
    causal_S: NDArray[np.bool_]
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

    def key_rows(self, segments: Ints) -> tuple[Ints, Ints]:
        """All rows the given segments read, own rows last: flat row indices and the count for each segment."""
        first, last = self.read_offsets_S1[segments], self.read_offsets_S1[segments + 1]
        own = np.stack([self.starts_S[segments], self.ends_S[segments]], 1) + self.cached_rows
        ranges = ranges_flat(first, last)
        # One list of ranges in segment order: what each segment reads, then its own rows.
        owner = np.concatenate([np.repeat(np.arange(len(segments)), last - first), np.arange(len(segments))])
        order = np.argsort(owner, kind="stable")
        table = np.concatenate([self.reads_R2[ranges], own])[order]
        counts = np.bincount(owner[order], weights=table[:, 1] - table[:, 0], minlength=len(segments))
        return ranges_flat(table[:, 0], table[:, 1]), counts.astype(np.int64)


def ranges_flat(starts: Ints, ends: Ints) -> Ints:
    """Concatenate `arange(start, end)` over all pairs, without a Python loop."""
    lengths = ends - starts
    total = int(lengths.sum())
    offsets = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths) if total else np.zeros(0)
    return (np.arange(total) + offsets).astype(np.int64)


def pack(requests: Sequence[TokenisedRequest], spec: RankSpec) -> PackedLayout:
    """Lay requests one after the other in one stream; no row of one is ever listed by another.

    Positions (method, section 2): the instruction starts at 0, every document right after it, the query segment at
    `query_offset` (or where documents start).
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
    reads, read_offsets = _reads(starts, ends, first_S, is_query, is_document, spec)
    begin_S = np.where(is_document | is_query, lengths[first_S], 0)
    if spec.query_offset is not None:
        begin_S = np.where(is_query, np.maximum(spec.query_offset, lengths[first_S]), begin_S)
    signal, signal_request = _signals(segments, starts, is_query, spec)
    return PackedLayout(
        ids_T=np.concatenate([segment.ids for segment in segments]),
        positions_T=np.arange(int(ends[-1])) + np.repeat(begin_S - starts, lengths),
        starts_S=starts,
        ends_S=ends,
        causal_S=np.where(is_query, spec.query_attention == "causal", spec.document_attention == "causal"),
        reads_R2=reads,
        read_offsets_S1=read_offsets,
        document_segment_C=np.flatnonzero(is_document),
        document_request_C=request_S[is_document],
        signal_G=signal,
        signal_request_G=signal_request,
        requests=len(requests),
        kinds_S=tuple(segment.kind for segment in segments),
    )


def _reads(
    starts: Ints,
    ends: Ints,
    first_S: Ints,
    is_query: NDArray[np.bool_],
    is_document: NDArray[np.bool_],
    spec: RankSpec,
) -> tuple[Ints, Ints]:
    """The block pattern: documents read the instruction; the query reads all before it, or the instruction alone.

    Every segment reads at most one range here (rows of a request are contiguous), none where it would be empty.
    """
    range_starts = starts[first_S]
    range_ends = np.where(is_document, ends[first_S], range_starts)
    range_ends = np.where(is_query, starts if spec.query_reads == "all" else ends[first_S], range_ends)
    keep = range_ends > range_starts
    offsets = np.concatenate([[0], np.cumsum(keep)]).astype(np.int64)
    return np.stack([range_starts[keep], range_ends[keep]], 1), offsets


def _signals(
    segments: Sequence[Segment], starts: Ints, is_query: NDArray[np.bool_], spec: RankSpec
) -> tuple[Ints, Ints]:
    """Stream positions of the signal tokens and the request each belongs to."""
    queries = np.flatnonzero(is_query)
    ends = np.array([segment.signal_end for segment in segments], dtype=np.int64)[queries]
    counts = ends if spec.signal_tokens == "query" else np.minimum(ends, int(spec.signal_tokens))
    positions = ranges_flat(starts[queries] + ends - counts, starts[queries] + ends)
    return positions, np.repeat(np.arange(len(queries)), counts)
