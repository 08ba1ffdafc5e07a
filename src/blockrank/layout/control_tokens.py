"""Control tokens in what a caller wrote are kept from acting: it is text, never markup."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from blockrank.layout.encoding import Encoded, Ints
from blockrank.layout.prompt import Piece
from blockrank.types import InputError

_BREAK_ROUNDS = 8


class ControlTokens:
    """The tokens of a vocabulary that stand outside the text. names: their names, by id; runs of white space are text.

    backend: a fast tokenizer's, which encodes again what was broken up. unknown: the ids that may be the unknown token.
    """

    def __init__(self, backend: Any, unknown: set[int | None]) -> None:
        self._backend, self._unknown = backend, unknown
        # White space steers nothing, and ordinary text may well yield it.
        added = backend.get_added_tokens_decoder()
        self.names: dict[int, str] = {i: token.content for i, token in added.items() if token.content.strip()}
        self.longest_name = max(map(len, self.names.values()), default=0)
        self._ids = np.array(sorted(self.names), dtype=np.int64)

    def broken_up(self, encoded: Encoded, name: str) -> Encoded:
        """A piece in whose bodies no control token is left: each is broken up by a space.

        name: what the piece is called where that is not possible, which raises `InputError`.
        """
        for _ in range(_BREAK_ROUNDS):
            hits = self._written(encoded)
            if not hits:
                return encoded
            piece, breaks = _spaced(encoded, hits)
            encoded = Encoded.of(self._backend.encode(piece.text, add_special_tokens=False), piece, breaks)
        raise InputError(f"{name} holds control tokens of this tokenizer that cannot be broken up; remove them.")

    def _written(self, encoded: Encoded) -> list[int]:
        """First characters of control tokens that lie in a body, ascending."""
        bodies = encoded.piece.bodies
        if not bodies:
            return []
        found = np.flatnonzero(np.isin(encoded.ids_L, self._ids))
        spans = zip(encoded.ids_L[found].tolist(), encoded.spans_L2[found].tolist(), strict=True)
        written = [
            _first_visible(encoded.piece.text, start, end)
            for token, (start, end) in spans
            if any(a < end and start < b for a, b in bodies) and self._is_named(encoded.piece.text[start:end], token)
        ]
        return sorted(set(written))

    def _is_named(self, text: str, token: int) -> bool:
        """Whether a control token stands in the text by its name. The unknown one also comes of characters that the
        vocabulary lacks, and is then text; in many vocabularies it is the token that ends a text as well."""
        return token not in self._unknown or text.strip() == self.names[token]


def _first_visible(text: str, start: int, end: int) -> int:
    """The first character of a token that is no white space: some take in what stands before them."""
    covered = text[start:end]
    return start + len(covered) - len(covered.lstrip()) if covered.strip() else start


def _spaced(encoded: Encoded, hits: Sequence[int]) -> tuple[Piece, Ints]:
    """The piece with a space after the character of each hit, and all places where something was put in."""
    text, bodies = encoded.piece.text, encoded.piece.bodies
    cuts = [0, *(hit + 1 for hit in hits), len(text)]
    spaced = " ".join(text[start:end] for start, end in itertools.pairwise(cuts))
    moved = tuple((a + bisect_left(hits, a), b + bisect_left(hits, b)) for a, b in bodies)
    old = encoded.breaks + np.searchsorted(hits, encoded.breaks)
    new = np.array(hits, dtype=np.int64) + 1 + np.arange(len(hits))
    return replace(encoded.piece, text=spaced, bodies=moved), np.sort(np.concatenate([old, new]))
