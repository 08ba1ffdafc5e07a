"""A tokenizer's private copy, which encodes pieces of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockrank.layout.control_tokens import ControlTokens
from blockrank.layout.encoding import Encoded, Ints, spans
from blockrank.layout.prompt import Piece
from blockrank.types import InputError

_SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece vocabularies write a space


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
        named = self._backend.token_to_id(getattr(self._backend.model, "unk_token", None) or "")
        self._control = ControlTokens(self._backend, {getattr(tokenizer, "unk_token_id", None), named})
        self._marks = None if _splits(self._backend) else _space_marks(self._backend)

    @property
    def control_tokens(self) -> dict[str, int]:
        """Tokens that stand outside the text, by name, and their ids; runs of white space are text."""
        return {name: i for i, name in self._control.names.items()}

    @property
    def longest_name(self) -> int:
        """Characters of the longest name of a control token."""
        return self._control.longest_name

    def text(self, text: str) -> tuple[Ints, Ints]:
        """Ids (L,) and characters (L, 2) of the tokens of a plain text, without a frame and as it is."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.int64), spans(encoding)

    def pieces(self, pieces: Sequence[Piece], names: Sequence[str]) -> list[Encoded]:
        """Pieces as tokens, every control token inside a body broken up by a space.

        names: what each piece is called where that is not possible, which raises `InputError`.
        """
        encodings = self._backend.encode_batch([piece.text for piece in pieces], add_special_tokens=False)
        return [
            self._control.broken_up(Encoded.of(encoding, piece, np.zeros(0, dtype=np.int64)), name)
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
