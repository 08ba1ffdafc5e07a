"""From segment texts to tokens: encode the part that can matter, keep control tokens out, cut to the limits."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockrank.layout.batches import plan_batches
from blockrank.layout.chat import ChatMarkup
from blockrank.layout.encoder import PieceEncoder
from blockrank.layout.encoding import Encoded, Ints
from blockrank.layout.excerpts import FIRST_ROOM, LAST_ROOM, Excerpt, excerpt, settled
from blockrank.layout.memo import Memo
from blockrank.layout.prompt import Kind, Piece, SegmentText, segments
from blockrank.spec import RankSpec, Template
from blockrank.types import InputError, RankRequest

_GROUP_CHARACTERS = 1 << 18  # encoded at once: a tokenizer's `Encoding` takes a hundred times the size of its text
_QUERY_SLACK = 16  # largest difference in tokens between a query alone and in its frame


@dataclass(frozen=True, slots=True)
class Segment:
    """One tokenised segment.

    `ids` are its tokens; `body_tokens` counts those that came from the caller, `cut` those dropped for the limit. A
    document of over `FIRST_ROOM` characters per token of the limit is not encoded to its end: then `cut` is an estimate
    (`cut_is_estimate`). `silent` (documents): no token comes from the caller's text, so there is nothing to rank.
    `signal_end` (query segment) is the end of the tokens that may be read out: an answer may follow it in training.
    `spans_L2` (documents): each token's [start, end) in the characters of the document's content, -1 for frame.
    `ranks_A` (query segment with an answer): for each token after `signal_end`, the rank from 1 of its id in the
    answer, 0 for separators and the end.
    """

    kind: Kind
    ids: Ints
    body_tokens: int
    cut: int = 0
    signal_end: int = 0
    spans_L2: Ints | None = None
    ranks_A: Ints | None = None
    cut_is_estimate: bool = False
    silent: bool = False


@dataclass(frozen=True, slots=True)
class EncodedPiece:
    """One piece of a segment as tokens, and the part that was left out."""

    encoded: Encoded
    excerpt: Excerpt


@dataclass(frozen=True, slots=True)
class TokenisedRequest:
    """The segments of one request: instruction, documents in order, query; further query segments may follow it.

    `query_cut`: tokens the query lost. `read`: the candidates that have a segment, None where all have one.
    """

    segments: tuple[Segment, ...]
    query_cut: int = 0
    read: tuple[int, ...] | None = None

    @property
    def documents(self) -> tuple[Segment, ...]:
        """The document segments, one for each candidate that has something to read."""
        return tuple(segment for segment in self.segments if segment.kind == "document")

    @property
    def indices(self) -> Sequence[int]:
        """For each document segment its candidate's index in the request."""
        return range(len(self.documents)) if self.read is None else self.read

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
        self._encoder = PieceEncoder(tokenizer)
        self._chat = ChatMarkup(tokenizer)

    @property
    def control_tokens(self) -> dict[str, int]:
        """Tokens that stand outside the text, by name, and their ids; runs of white space are text."""
        return self._encoder.control_tokens

    def written(self, template: Template) -> Template:
        """A template as it is tokenised, the markup of a chat written out. Raises `InputError` where this tokenizer's
        chat template cannot be used."""
        return self._chat.written(template)

    def encode(self, text: str) -> Ints:
        """Token ids of a plain text, without a frame."""
        return self._encoder.text(text)[0]

    def encode_parts(self, parts: Sequence[str]) -> list[Ints]:
        """Token ids of consecutive texts encoded as one piece, part by part; a token across a boundary belongs to the
        later part."""
        ids_L, spans_L2 = self._encoder.text("".join(parts))
        last_L = np.maximum(spans_L2[:, 0], spans_L2[:, 1] - 1)
        owner_L = np.searchsorted(np.cumsum([len(part) for part in parts]), last_L, side="right")
        return [ids_L[owner_L == index] for index in range(len(parts))]

    def shorten(self, text: str, limit: int) -> tuple[str, int]:
        """The beginning of a text that takes at most `limit` tokens, and how many tokens were dropped: an estimate
        where the text has over `FIRST_ROOM` characters for each token of the limit."""
        part, tokens = self._measured(text, limit)
        if tokens <= limit or not len(part.encoded.ids_L):
            return text, 0
        end = part.encoded.given(part.encoded.spans_L2[:limit, 1][-1:])
        return text[: int(end[0])], tokens - limit

    def _measured(self, text: str, limit: int) -> tuple[EncodedPiece, int]:
        """The beginning of a query, as far as needed for `limit` tokens, and the number of tokens of the whole
        query."""
        whole = Piece(text, ((0, len(text)),), content=0)
        for room in (FIRST_ROOM, LAST_ROOM):
            found = excerpt(whole, room * limit)
            part = EncodedPiece(self._encoder.pieces([found.piece], ["query"])[0], found)
            if self._settled(part, is_last=room == LAST_ROOM) > limit or found.gap is None:
                break
        return part, len(part.encoded.ids_L) + _estimated(part)

    def _settled(self, part: EncodedPiece, *, is_last: bool) -> int:
        """How many of the first tokens of a piece equal those of the whole, uncut piece."""
        if part.excerpt.gap is None:
            return len(part.encoded.ids_L)
        return settled(part.encoded, part.excerpt.gap, self._encoder, is_last=is_last)

    def tokenise_request(
        self,
        request: RankRequest,
        spec: RankSpec,
        answer: tuple[int, ...] | None = None,
        memo: Memo[Segment] | None = None,
        between: Callable[[], None] | None = None,
        read: Sequence[int] | None = None,
    ) -> TokenisedRequest:
        """The segments of a request as tokens; a query over the limit is cut at its end if the spec allows it.

        A document without a readable character, or without any token of this tokenizer, has no segment: `indices` lists
        those that have one. `answer`: see `blockrank.layout.prompt.segments`; `memo`: see `tokenise`. Raises
        `InputError` as `tokenise` does, where no document yields a token, and where a document listed in the answer
        does not. between: called before each group of segments; an exception from it ends the work. read: indices of
        the candidates in this prompt, in this order; by default all readable ones.
        """
        request, cut = self._within_limit(request, spec)
        indices = request.readable if read is None else tuple(read)
        while True:
            texts = segments(self.written(spec.prompt), request, answer, indices)
            made = self._in_groups(texts, spec, request.evidence, memo, between)
            kept = tuple(i for i, segment in zip(indices, made.documents, strict=True) if not segment.silent)
            if kept == indices:
                return replace(made, query_cut=cut, read=indices)
            if silent := sorted(set(answer or ()) - set(kept)):
                raise InputError(f"documents[{silent[0]}] yields no token of this tokenizer, and the answer lists it.")
            if not kept:
                raise InputError("documents: none yields a token of this tokenizer; there is nothing to rank.")
            indices = kept

    def _within_limit(self, request: RankRequest, spec: RankSpec) -> tuple[RankRequest, int]:
        """The request with its query cut close to its limit, and how many tokens the query lost. A query over the limit
        is refused here, before it is encoded as a whole in each of its frames."""
        query, limit = request.query.strip(), spec.limits.max_query_tokens
        if spec.limits.long_queries == "cut":
            query, cut = self.shorten(query, limit)
            return (replace(request, query=query) if cut else request), cut
        if len(query) > FIRST_ROOM * limit and (tokens := self._measured(query, limit)[1]) > limit + _QUERY_SLACK:
            raise _too_long(f"about {tokens}", limit)
        return request, 0

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

        spans: record the character spans of document tokens. memo: a cache of tokenised documents, read and filled.
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
        """Segments, encoded as far as they can matter."""
        made: dict[int, Segment] = {}
        for room in (FIRST_ROOM, LAST_ROOM):
            waiting = [index for index in range(len(texts)) if index not in made]
            for index, parts in self._parts(texts, waiting, room * spec.limits.max_segment_tokens):
                segment = self._segment(texts[index], parts, spec, spans, is_last=room == LAST_ROOM)
                if segment is not None:
                    made[index] = segment
        return [made[index] for index in range(len(texts))]

    def _parts(
        self, texts: Sequence[SegmentText], chosen: Sequence[int], room: int
    ) -> Iterator[tuple[int, list[EncodedPiece]]]:
        """The parts of the chosen segments, encoded group by group to save memory."""
        found = [[excerpt(piece, room) for piece in texts[index].pieces] for index in chosen]
        sizes = [sum(len(item.piece.text) for item in items) for items in found]
        for group in plan_batches(sizes, _GROUP_CHARACTERS):
            flat = [
                (item, _name(texts[i])) for i, items in zip(chosen[group], found[group], strict=True) for item in items
            ]
            encoded = iter(self._encoder.pieces([item.piece for item, _ in flat], [name for _, name in flat]))
            for index, items in zip(chosen[group], found[group], strict=True):
                yield index, [EncodedPiece(next(encoded), item) for item in items]

    def _segment(
        self, text: SegmentText, parts: Sequence[EncodedPiece], spec: RankSpec, spans: bool, *, is_last: bool
    ) -> Segment | None:
        """The segment of encoded parts; None where more of a document must be encoded first."""
        ids = [part.encoded.ids_L for part in parts]
        joined = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int64)
        if text.kind == "document":
            return self._document(joined, parts, text, spec, spans, is_last)
        if _says_nothing(parts) or (text.kind == "query" and text.pieces and not len(joined)):
            raise InputError("query yields no token of this tokenizer: there is nothing to read.")
        body = int(_body_mask(parts).sum())
        if text.kind == "query" and body > spec.limits.max_query_tokens:
            raise _too_long(str(body), spec.limits.max_query_tokens)
        end = self._signal_end(text, ids, spec)
        answered = text.kind == "query" and end < len(joined)
        ranks_A = _answer_ranks(parts[-1].encoded, len(joined) - end) if answered else None
        return Segment(text.kind, joined, body, signal_end=end, ranks_A=ranks_A)

    def _document(
        self, ids_L: Ints, parts: Sequence[EncodedPiece], text: SegmentText, spec: RankSpec, spans: bool, is_last: bool
    ) -> Segment | None:
        """Drop body tokens from the end until the segment fits; the frame stays whole."""
        is_whole = all(part.excerpt.gap is None for part in parts)
        body_at = np.flatnonzero(_body_mask(parts))
        most = spec.limits.max_segment_tokens - (len(ids_L) - len(body_at))
        if most <= 0 < len(body_at) - most:
            raise InputError(
                f"documents[{text.index}] does not fit: its frame alone takes {len(ids_L) - len(body_at)} of the "
                f"{spec.limits.max_segment_tokens} tokens of max_segment_tokens."
            )
        count = min(len(body_at), most)
        if not is_whole:
            known = int(np.searchsorted(body_at, self._settled_tokens(parts, is_last)))
            if known < most and not is_last:
                return None
            count = min(known, most)
        if _says_nothing(parts) or (not is_whole and not count):
            return Segment("document", ids_L, 0, silent=True)
        dropped = body_at[count:]
        return Segment(
            "document",
            np.delete(ids_L, dropped),
            count,
            len(dropped) + sum(map(_estimated, parts)),
            spans_L2=np.delete(_content_spans(parts), dropped, axis=0) if spans else None,
            cut_is_estimate=not is_whole,
        )

    def _settled_tokens(self, parts: Sequence[EncodedPiece], is_last: bool) -> int:
        """How many of the first tokens of a segment equal those of the whole, uncut segment."""
        tokens = 0
        for part in parts:
            tokens += self._settled(part, is_last=is_last)
            if part.excerpt.gap is not None:
                break
        return tokens

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
    """Everything that a document's segment depends on, except the tokenizer. Its number is part of the text if the
    template writes it."""
    return text.kind, text.pieces, spec.limits.max_segment_tokens, spans


def _bytes(text: SegmentText, segment: Segment) -> int:
    arrays = [segment.ids] if segment.spans_L2 is None else [segment.ids, segment.spans_L2]
    return 4 * sum(len(piece.text) for piece in text.pieces) + sum(array.nbytes for array in arrays)


def _name(text: SegmentText) -> str:
    return f"documents[{text.index}]" if text.kind == "document" else "query"


def _too_long(count: str, limit: int) -> InputError:
    return InputError(
        f"query is {count} tokens long and the limit is {limit}: shorten it, or allow it to be cut "
        "(long_queries='cut')."
    )


def _estimated(part: EncodedPiece) -> int:
    """Estimated number of omitted tokens, at the rate of tokens per character before the gap."""
    if part.excerpt.gap is None:
        return 0
    gap = part.encoded.encoded(part.excerpt.gap)
    before = int(np.searchsorted(part.encoded.spans_L2[:, 0], gap))
    return max(round(before / max(gap, 1) * part.excerpt.omitted), 1)


def _says_nothing(parts: Sequence[EncodedPiece]) -> bool:
    """Whether there are bodies, but no token covers a character of them: contents in a document, else the query's
    bodies."""
    wanted, covered = False, False
    for part in parts:
        piece, spans_L2 = part.encoded.piece, part.encoded.spans_L2
        for start, end in piece.bodies if piece.content is None else [piece.bodies[piece.content]]:
            wanted = True
            covered |= bool((np.minimum(spans_L2[:, 1], end) > np.maximum(spans_L2[:, 0], start)).any())
    return wanted and not covered


def _body_mask(parts: Sequence[EncodedPiece]) -> NDArray[np.bool_]:
    """Which tokens lie entirely inside a body; a token across the boundary belongs to the frame."""
    masks = [np.zeros(0, dtype=bool)]
    for part in parts:
        spans_L2 = part.encoded.spans_L2
        inside = np.zeros(len(spans_L2), dtype=bool)
        for start, end in part.encoded.piece.bodies:
            inside |= (spans_L2[:, 0] >= start) & (spans_L2[:, 1] <= end) & (spans_L2[:, 1] > spans_L2[:, 0])
        masks.append(inside)
    return np.concatenate(masks)


def _answer_ranks(answer: Encoded, count: int) -> Ints:
    """`Segment.ranks_A` of the last `count` tokens of an answer; a token across the boundary of id and frame belongs to
    the id."""
    offsets = answer.spans_L2
    ranks = np.zeros(len(offsets), dtype=np.int64)
    for rank, (start, end) in enumerate(answer.piece.id_spans, 1):
        ranks[(offsets[:, 0] < end) & (offsets[:, 1] > start) & (ranks == 0)] = rank
    return ranks[len(ranks) - count :]


def _content_spans(parts: Sequence[EncodedPiece]) -> Ints:
    """(L, 2) characters of the document's content under each token, -1 where a token covers none of it."""
    tables = [np.zeros((0, 2), dtype=np.int64)]
    for part in parts:
        encoded, found = part.encoded, part.excerpt
        spans = np.full((len(encoded.ids_L), 2), -1, dtype=np.int64)
        if encoded.piece.content is not None:
            start, end = encoded.piece.bodies[encoded.piece.content]
            covered = np.clip(encoded.spans_L2, start, end)
            some = covered[:, 1] > covered[:, 0]
            places = encoded.given(covered[some])
            if found.gap is not None:
                places = places + found.omitted * (places > found.gap)
            spans[some] = places - encoded.given(np.array(start))
        tables.append(spans)
    return np.concatenate(tables)
