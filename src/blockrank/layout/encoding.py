"""Pieces of text to tokens: what a caller wrote is never markup."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockrank.layout.prompt import Piece
from blockrank.types import InputError

Ints = NDArray[np.int64]
_BREAK_ROUNDS = 8
_SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece vocabularies write a space


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

    def given(self, places: Ints) -> Ints:
        """Places in the encoded text as places in the text before anything was put in."""
        return places - np.searchsorted(self.breaks, places)

    def encoded(self, place: int) -> int:
        """A place in the text before anything was put in as a place in the encoded text, before what was put in
        there."""
        return place + int(np.searchsorted(self.breaks - np.arange(len(self.breaks)), place))


class PieceEncoder:
    """A private copy of a fast tokenizer that encodes pieces and keeps control tokens out of their bodies."""

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
        named = self._backend.token_to_id(getattr(self._backend.model, "unk_token", None) or "")
        self._unknown = {getattr(tokenizer, "unk_token_id", None), named}
        self._marks = None if _splits(self._backend) else _space_marks(self._backend)
        self.longest_name = max(map(len, self._names.values()), default=0)

    @property
    def control_tokens(self) -> dict[str, int]:
        """Tokens that stand outside the text, by name, and their ids; runs of white space are text."""
        return {name: i for i, name in self._names.items()}

    def text(self, text: str) -> tuple[Ints, Ints]:
        """Ids (L,) and characters (L, 2) of the tokens of a plain text, without a frame and as it is."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.int64), _table(encoding.offsets)

    def pieces(self, pieces: Sequence[Piece], names: Sequence[str]) -> list[Encoded]:
        """Pieces as tokens, every control token inside a body broken up by a space.

        names: what each piece is called where that is not possible, which raises `InputError`.
        """
        encodings = self._backend.encode_batch([piece.text for piece in pieces], add_special_tokens=False)
        return [
            self._protected(_read(encoding, piece, np.zeros(0, dtype=np.int64)), name)
            for piece, encoding, name in zip(pieces, encodings, names, strict=True)
        ]

    def words(self, encoded: Encoded) -> NDArray[np.bool_]:
        """(L,) whether a word begins with a token: words are tokenised apart."""
        words = np.array([-1 if word is None else word for word in encoded.encoding.word_ids], dtype=np.int64)
        begins_L: NDArray[np.bool_] = np.diff(words, prepend=-2) != 0
        if self._marks is not None:
            marked_L, only_L = (np.isin(encoded.ids_L, marks) for marks in self._marks)
            begins_L[1:] |= marked_L[1:] & ~only_L[:-1]
        return begins_L

    def _protected(self, encoded: Encoded, name: str) -> Encoded:
        for _ in range(_BREAK_ROUNDS):
            hits = self._control_hits(encoded)
            if not hits:
                return encoded
            piece, breaks = _broken(encoded, hits)
            encoded = _read(self._backend.encode(piece.text, add_special_tokens=False), piece, breaks)
        raise InputError(f"{name} holds control tokens of this tokenizer that cannot be broken up; remove them.")

    def _control_hits(self, encoded: Encoded) -> list[int]:
        """First characters of control tokens that lie in a body, ascending."""
        bodies = encoded.piece.bodies
        if not bodies:
            return []
        found = np.flatnonzero(np.isin(encoded.ids_L, self._control))
        spans = zip(encoded.ids_L[found].tolist(), encoded.spans_L2[found].tolist(), strict=True)
        written = [
            _first_visible(encoded.piece.text, start, end)
            for token, (start, end) in spans
            if any(a < end and start < b for a, b in bodies) and self._is_written(encoded.piece.text[start:end], token)
        ]
        return sorted(set(written))

    def _is_written(self, text: str, token: int) -> bool:
        """Whether a control token stands in the text by its name. The unknown one also comes of characters that the
        vocabulary lacks, and is then text; in many vocabularies it is the token that ends a text as well."""
        return token not in self._unknown or text.strip() == self._names[token]


def _splits(backend: Any) -> bool:
    """Whether words are told apart before a model sees them."""
    if backend.pre_tokenizer is None:
        return False
    text = "a b c" if backend.normalizer is None else backend.normalizer.normalize_str("a b c")
    return len(backend.pre_tokenizer.pre_tokenize_str(text)) > 1


def _space_marks(backend: Any) -> tuple[Ints, Ints] | None:
    """The tokens that begin with the mark of a space, and those that are nothing else.

    None where a token holds the mark behind another character: there it may reach from one word into the next.
    """
    names = backend.get_vocab(with_added_tokens=False)
    if any(_SPACE_MARK in name.lstrip(_SPACE_MARK) for name in names):
        return None
    begin = [token for name, token in names.items() if name.startswith(_SPACE_MARK)]
    only = [token for name, token in names.items() if name and not name.strip(_SPACE_MARK)]
    return np.array(sorted(begin), dtype=np.int64), np.array(sorted(only), dtype=np.int64)


def _first_visible(text: str, start: int, end: int) -> int:
    """The first character of a token that is no white space: some take in what stands before them."""
    covered = text[start:end]
    return start + len(covered) - len(covered.lstrip()) if covered.strip() else start


def _broken(encoded: Encoded, hits: Sequence[int]) -> tuple[Piece, Ints]:
    """The piece with a space after the character of each hit, and all places where something was put in."""
    text, bodies = encoded.piece.text, encoded.piece.bodies
    cuts = [0, *(hit + 1 for hit in hits), len(text)]
    spaced = " ".join(text[start:end] for start, end in itertools.pairwise(cuts))
    moved = tuple((a + bisect_left(hits, a), b + bisect_left(hits, b)) for a, b in bodies)
    old = encoded.breaks + np.searchsorted(hits, encoded.breaks)
    new = np.array(hits, dtype=np.int64) + 1 + np.arange(len(hits))
    return replace(encoded.piece, text=spaced, bodies=moved), np.sort(np.concatenate([old, new]))


def _read(encoding: Any, piece: Piece, breaks: Ints) -> Encoded:
    return Encoded(np.array(encoding.ids, dtype=np.int64), _table(encoding.offsets), encoding, piece, breaks)


def _table(offsets: list[tuple[int, int]]) -> Ints:
    return np.array(offsets, dtype=np.int64).reshape(-1, 2)
