"""From the texts of a prompt's segments to tokens: encode, keep control tokens out, cut to the limits."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockrank.layout.batches import plan_batches
from blockrank.layout.memo import Memo
from blockrank.prompt import Kind, Piece, SegmentText, segments
from blockrank.spec import RankSpec
from blockrank.types import InputError, RankRequest

Ints = NDArray[np.int64]
_BREAK_ROUNDS = 8
_GROUP_CHARACTERS = 100_000  # of segments encoded at once: some hundredths of a second


@dataclass(frozen=True, slots=True)
class Segment:
    """One tokenised segment.

    `ids` are its tokens; `body_tokens` counts those that came from the caller, `cut` those dropped for the limit;
    `signal_end` (query segment) is the end of the tokens that may be read out: an answer may follow it in training.
    `spans_L2` (documents): each token's [start, end) in the characters of the document's content, -1 for frame.
    `ranks_A` (query segment with an answer): for each token after `signal_end`, the place from 1 in the answer of the
    id that the token is part of, 0 for separators and the end.
    """

    kind: Kind
    ids: Ints
    body_tokens: int
    cut: int = 0
    signal_end: int = 0
    spans_L2: Ints | None = None
    ranks_A: Ints | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """One piece as tokens. encoding: the tokenizer's own. piece: its text as encoded; breaks: places in that text
    where a character was put in, ascending."""

    encoding: Any
    piece: Piece
    breaks: tuple[int, ...] = ()

    def given(self, position: int) -> int:
        """A place in the encoded text as a place in the text before anything was put in."""
        return position - bisect_left(self.breaks, position)


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
        # White space steers nothing, and ordinary text may well yield it.
        added = self._backend.get_added_tokens_decoder()
        self._names: dict[int, str] = {i: token.content for i, token in added.items() if token.content.strip()}
        self._control = np.array(sorted(self._names), dtype=np.int64)
        self._unknown_id = getattr(tokenizer, "unk_token_id", None)

    def encode(self, text: str) -> Ints:
        """Token ids of a plain text, without a frame."""
        return np.array(self._backend.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def encode_parts(self, parts: Sequence[str]) -> list[Ints]:
        """Token ids of texts that follow each other as one piece, part by part; one over a seam is the later part's."""
        encoding = self._backend.encode("".join(parts), add_special_tokens=False)
        last = [max(start, end - 1) for start, end in encoding.offsets]
        owner_L = np.searchsorted(np.cumsum([len(part) for part in parts]), last, side="right")
        ids_L = np.array(encoding.ids, dtype=np.int64)
        return [ids_L[owner_L == index] for index in range(len(parts))]

    def shorten(self, text: str, limit: int) -> tuple[str, int]:
        """The beginning of a plain text that takes at most `limit` tokens, and how many tokens were dropped."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        over = len(encoding.ids) - limit
        return (text[: encoding.offsets[limit - 1][1]], over) if over > 0 else (text, 0)

    def tokenise_request(
        self,
        request: RankRequest,
        spec: RankSpec,
        answer: tuple[int, ...] | None = None,
        memo: Memo[Segment] | None = None,
        between: Callable[[], None] | None = None,
    ) -> TokenisedRequest:
        """The segments of a request as tokens; a query over the limit loses its end where the spec allows it.

        `answer`: see `blockrank.prompt.segments`; `memo`: see `tokenise`. between: called before each group of
        documents; what it raises ends the work. Raises `InputError` as `tokenise` does.
        """
        cut = 0
        if spec.long_queries == "cut":
            query, cut = self.shorten(request.query.strip(), spec.max_query_tokens)
            request = replace(request, query=query) if cut else request
        texts = segments(spec.prompt, request, answer)
        return replace(self._in_groups(texts, spec, request.evidence, memo, between), query_cut=cut)

    def _in_groups(
        self,
        texts: Sequence[SegmentText],
        spec: RankSpec,
        spans: bool,
        memo: Memo[Segment] | None,
        between: Callable[[], None] | None,
    ) -> TokenisedRequest:
        """`tokenise`, a few segments at once."""
        made: list[Segment] = []
        for group in plan_batches([sum(len(piece.text) for piece in text.pieces) for text in texts], _GROUP_CHARACTERS):
            if between is not None:
                between()
            made += self.tokenise(texts[group], spec, spans=spans, memo=memo).segments
        return TokenisedRequest(tuple(made))

    def tokenise(
        self, texts: Sequence[SegmentText], spec: RankSpec, *, spans: bool = False, memo: Memo[Segment] | None = None
    ) -> TokenisedRequest:
        """Encode the segments of one request under the limits of `spec`.

        spans: note where document tokens stand. memo: documents that are in it are taken from it, and others put there.
        Raises `InputError` when the query is over `max_query_tokens`, a document's frame alone is over
        `max_segment_tokens`, a text yields no token, or it cannot be kept free of control tokens.
        """
        if memo is None:
            return TokenisedRequest(tuple(self._encoded(texts, spec, spans)))
        keys = [_key(text, spec, spans) for text in texts]
        found = [memo.get(key) for key in keys]
        new = iter(self._encoded([text for text, kept in zip(texts, found, strict=True) if kept is None], spec, spans))
        made = [next(new) if kept is None else kept for kept in found]
        for text, key, kept, segment in zip(texts, keys, found, made, strict=True):
            if kept is None and text.kind == "document":
                memo.put(key, segment, _bytes(text, segment))
        return TokenisedRequest(tuple(made))

    def _encoded(self, texts: Sequence[SegmentText], spec: RankSpec, spans: bool) -> list[Segment]:
        pieces = [piece for text in texts for piece in text.pieces]
        encodings = self._backend.encode_batch([piece.text for piece in pieces], add_special_tokens=False)
        encoded = [self._protected(Encoded(encoding, piece)) for piece, encoding in zip(pieces, encodings, strict=True)]
        made, at = [], 0
        for text in texts:
            parts = encoded[at : at + len(text.pieces)]
            at += len(text.pieces)
            made.append(self._segment(text, parts, spec, spans))
        return made

    def _protected(self, encoded: Encoded) -> Encoded:
        """The piece with every control token inside a body broken up by a space."""
        for _ in range(_BREAK_ROUNDS):
            hits = self._control_hits(encoded)
            if not hits:
                return encoded
            piece, breaks = encoded.piece, encoded.breaks
            for start in reversed(hits):
                text = f"{piece.text[: start + 1]} {piece.text[start + 1 :]}"
                bodies = tuple((a + (a > start), b + (b > start)) for a, b in piece.bodies)
                piece = replace(piece, text=text, bodies=bodies)
                breaks = tuple(sorted([*(at + (at > start) for at in breaks), start + 1]))
            encoded = Encoded(self._backend.encode(piece.text, add_special_tokens=False), piece, breaks)
        raise InputError("a text holds control tokens of this tokenizer that cannot be broken up; remove them.")

    def _control_hits(self, encoded: Encoded) -> list[int]:
        """First characters of control tokens that lie in a body."""
        bodies = encoded.piece.bodies
        if not bodies:
            return []
        found = np.flatnonzero(np.isin(np.array(encoded.encoding.ids, dtype=np.int64), self._control))
        if not len(found):
            return []
        spans = [encoded.encoding.offsets[i] for i in found.tolist() if self._is_written(encoded, i)]
        return sorted({start for start, end in spans if any(a < end and start < b for a, b in bodies)})

    def _is_written(self, encoded: Encoded, at: int) -> bool:
        """Whether a control token stands in the text by its name. The unknown one also comes of characters that the
        vocabulary lacks, and is then text; in many vocabularies it is the token that ends a text as well."""
        token, (start, end) = int(encoded.encoding.ids[at]), encoded.encoding.offsets[at]
        return token != self._unknown_id or encoded.piece.text[start:end].strip() == self._names[token]

    def _segment(self, text: SegmentText, parts: Sequence[Encoded], spec: RankSpec, spans: bool) -> Segment:
        ids = [np.array(part.encoding.ids, dtype=np.int64) for part in parts]
        joined = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int64)
        if text.kind != "instruction" and not len(joined):
            name = "query" if text.kind == "query" else f"documents[{text.index}]"
            raise InputError(f"{name} yields no token of this tokenizer: there is nothing to read.")
        if text.kind == "document":
            return self._document(text, joined, parts, spec, _content_spans(parts) if spans else None)
        body = int(_body_mask(parts).sum())
        if text.kind == "query" and body > spec.max_query_tokens:
            raise InputError(
                f"query is {body} tokens long and the limit is {spec.max_query_tokens}: shorten it, or allow it to be "
                "cut (long_queries='cut')."
            )
        end = self._signal_end(text, ids, spec)
        answered = text.kind == "query" and end < len(joined)
        ranks_A = _answer_ranks(parts[-1], len(joined) - end) if answered else None
        return Segment(text.kind, joined, body, signal_end=end, ranks_A=ranks_A)

    def _document(
        self, text: SegmentText, ids: Ints, parts: Sequence[Encoded], spec: RankSpec, spans_L2: Ints | None
    ) -> Segment:
        """Drop body tokens from the end until the segment fits; the frame stays whole."""
        over = len(ids) - spec.max_segment_tokens
        if over <= 0:
            frame = sum(len(piece.text) - sum(b - a for a, b in piece.bodies) for piece in text.pieces)
            body = len(ids) if not frame else int(_body_mask(parts).sum())
            return Segment("document", ids, body, spans_L2=spans_L2)
        body_at = np.flatnonzero(_body_mask(parts))
        if over >= len(body_at):
            raise InputError(
                f"documents[{text.index}] does not fit: its frame alone takes {len(ids) - len(body_at)} of the "
                f"{spec.max_segment_tokens} tokens of max_segment_tokens."
            )
        if spans_L2 is not None:
            spans_L2 = np.delete(spans_L2, body_at[-over:], axis=0)
        kept = np.delete(ids, body_at[-over:])
        return Segment("document", kept, len(body_at) - over, cut=over, spans_L2=spans_L2)

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


def _key(text: SegmentText, spec: RankSpec, spans: bool) -> Hashable:
    """What a document's segment depends on, beside the tokenizer. The place among the candidates is in the text where
    the template writes it."""
    return text.kind, text.pieces, spec.max_segment_tokens, spans


def _bytes(text: SegmentText, segment: Segment) -> int:
    arrays = [segment.ids] if segment.spans_L2 is None else [segment.ids, segment.spans_L2]
    return 4 * sum(len(piece.text) for piece in text.pieces) + sum(array.nbytes for array in arrays)


def _offsets(encoded: Encoded) -> Ints:
    """(L, 2) characters of each token in the encoded text."""
    return np.array(encoded.encoding.offsets, dtype=np.int64).reshape(-1, 2)


def _body_mask(parts: Sequence[Encoded]) -> NDArray[np.bool_]:
    """Which tokens lie wholly inside a body; a token that straddles the seam belongs to the frame."""
    masks = [np.zeros(0, dtype=bool)]
    for part in parts:
        offsets = _offsets(part)
        inside = np.zeros(len(offsets), dtype=bool)
        for start, end in part.piece.bodies:
            inside |= (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 1] > offsets[:, 0])
        masks.append(inside)
    return np.concatenate(masks)


def _answer_ranks(answer: Encoded, count: int) -> Ints:
    """`Segment.ranks_A` of the last `count` tokens of an answer; a token over the seam of id and frame is the id's."""
    offsets = _offsets(answer)
    ranks = np.zeros(len(offsets), dtype=np.int64)
    for rank, (start, end) in enumerate(answer.piece.id_spans, 1):
        ranks[(offsets[:, 0] < end) & (offsets[:, 1] > start) & (ranks == 0)] = rank
    return ranks[len(ranks) - count :]


def _content_spans(parts: Sequence[Encoded]) -> Ints:
    """(L, 2) characters of the document's content under each token, -1 where a token covers none of it."""
    tables = []
    for part in parts:
        spans = np.full((len(part.encoding.ids), 2), -1, dtype=np.int64)
        if part.piece.content is not None:
            start, end = part.piece.bodies[part.piece.content]
            covered = np.clip(_offsets(part), start, end)
            some = covered[:, 1] > covered[:, 0]
            first = part.given(start)
            spans[some] = [[part.given(a) - first, part.given(b) - first] for a, b in covered[some].tolist()]
        tables.append(spans)
    return np.concatenate(tables)
