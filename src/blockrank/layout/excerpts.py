"""How much of a long text is encoded: its beginning, as far as it can matter, and its end where a frame follows.

Of a document over the limit the first tokens are kept, and the others are counted and dropped. Tokenizers work word by
word, so that the first tokens are known without the rest: what is encoded is a beginning, a gap, and the end that the
frame behind it may merge with. The tokens before the gap, less a margin of words, are those of the whole text. A
beginning of `FIRST_ROOM` characters for each token of the limit is tried first, then one of `LAST_ROOM`. More is never
encoded: a text that has so few tokens, or a word so long that it fills all of that, is taken as if it ended there.
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
    """A piece without the middle of its content. gap: where that stood, in `piece.text`, or None where nothing is left
    out; omitted: how many characters that were."""

    piece: Piece
    gap: int | None = None
    omitted: int = 0


def excerpt(piece: Piece, room: int) -> Excerpt:
    """The piece with at most `room` characters of its content before the gap; whole where that would save nothing."""
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
    """Where the end of a content begins, at a space if there is one; none of it where nothing follows."""
    if end == len(text):
        return end
    start = max(end - _END, 0)
    return next((at for at in range(start, end) if text[at].isspace()), start)


def settled(encoded: Encoded, gap: int, encoder: PieceEncoder, *, is_last: bool) -> int:
    """How many of the first tokens stay what they are whatever stands behind the gap.

    is_last: whether the text is taken to end there.
    """
    place = encoded.encoded(gap) - encoder.longest_name
    if is_last:
        return int(np.searchsorted(encoded.spans_L2[:, 0], place))
    place = _before_runs(encoded.piece.text, place)
    words = np.flatnonzero(encoder.words(encoded) & (encoded.spans_L2[:, 0] <= place))
    return int(words[-1 - _MARGIN_WORDS]) if len(words) > _MARGIN_WORDS else 0


def _before_runs(text: str, place: int) -> int:
    """A place before the white space and digits that end there: some tokenizers group those from their end."""
    for _ in range(2):
        while place > 0 and text[place - 1].isnumeric():
            place -= 1
        while place > 0 and text[place - 1].isspace():
            place -= 1
    return place
