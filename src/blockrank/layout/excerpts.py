"""The part of a long text that is encoded: as much of its beginning as can matter, and its end if a frame follows.

Of a document over the limit the first tokens are kept, and the others are counted and dropped. Tokenizers work word by
word, so that the first tokens do not depend on the rest. The encoded text is the beginning, a gap, and the end, which
may merge with the frame behind it. The tokens before the gap, minus a margin of words, are those of the whole text.
First a beginning of `FIRST_ROOM` characters per token of the limit is tried, then one of `LAST_ROOM`. More is never
encoded: a text that has too few tokens even then (because of one very long word, for example) is treated as if it ended
there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from blockrank.layout.encoder import PieceEncoder
from blockrank.layout.encoding import Encoded
from blockrank.layout.prompt import Piece

FIRST_ROOM, LAST_ROOM = 8, 64
_END = 256  # characters of a document's end that are encoded with the frame behind it
_MARGIN_WORDS = 3


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A piece without the middle of its content. gap: the position of the omitted part in `piece.text`, or None if
    nothing is left out; omitted: its number of characters."""

    piece: Piece
    gap: int | None = None
    omitted: int = 0


def excerpt(piece: Piece, room: int) -> Excerpt:
    """The piece with at most `room` characters of its content before the gap; the whole piece if that saves nothing."""
    if piece.content is None:
        return Excerpt(piece)
    start, end = piece.bodies[piece.content]
    gap = start + room
    resumed = _end_of(piece.text, end)
    if resumed <= gap:
        return Excerpt(piece)
    omitted = resumed - gap
    bodies = tuple((a - omitted * (a > gap), b - omitted * (b > gap)) for a, b in piece.bodies)
    text = piece.text[:gap] + piece.text[resumed:]
    return Excerpt(replace(piece, text=text, bodies=bodies), gap, omitted)


def _end_of(text: str, end: int) -> int:
    """Start of the end part of a content, at a space if there is one; the end part is empty if nothing follows."""
    if end == len(text):
        return end
    start = max(end - _END, 0)
    return next((at for at in range(start, end) if text[at].isspace()), start)


def settled(encoded: Encoded, gap: int, encoder: PieceEncoder, *, is_last: bool) -> int:
    """How many of the first tokens do not depend on the text behind the gap.

    is_last: whether the text is treated as if it ended there.
    """
    place = encoded.encoded(gap) - encoder.longest_name
    if is_last:
        return int(np.searchsorted(encoded.spans_L2[:, 0], place))
    place = _before_runs(encoded.piece.text, place)
    words = np.flatnonzero(encoder.words(encoded) & (encoded.spans_L2[:, 0] <= place))
    return int(words[-1 - _MARGIN_WORDS]) if len(words) > _MARGIN_WORDS else 0


def _before_runs(text: str, place: int) -> int:
    """The position before the run of white space and digits that ends there: some tokenizers group those from their
    end."""
    for _ in range(2):
        while place > 0 and text[place - 1].isnumeric():
            place -= 1
        while place > 0 and text[place - 1].isspace():
            place -= 1
    return place
