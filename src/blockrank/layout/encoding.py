"""A piece of text as tokens, and which characters stand under each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockrank.layout.prompt import Piece

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One piece as L tokens.

    ids_L: the tokens. spans_L2: the characters of `piece.text` under each. encoding: the tokenizer's own record. piece:
    its text as encoded; breaks: places in that text where a character was put in, ascending.
    """

    ids_L: Ints
    spans_L2: Ints
    encoding: Any
    piece: Piece
    breaks: Ints

    @classmethod
    def of(cls, encoding: Any, piece: Piece, breaks: Ints) -> Encoded:
        """What a tokenizer made of a piece's text. breaks: as above."""
        return cls(np.array(encoding.ids, dtype=np.int64), spans(encoding), encoding, piece, breaks)

    def given(self, places: Ints) -> Ints:
        """Places in the encoded text as places in the text before anything was put in."""
        return places - np.searchsorted(self.breaks, places)

    def encoded(self, place: int) -> int:
        """A place in the text before anything was put in as a place in the encoded text, before what was put in
        there."""
        return place + int(np.searchsorted(self.breaks - np.arange(len(self.breaks)), place))


def spans(encoding: Any) -> Ints:
    """(L, 2) first character and the one behind the last, of each token of a tokenizer's record."""
    return np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
