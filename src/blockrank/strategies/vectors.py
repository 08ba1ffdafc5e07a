"""Vectors of candidates, by which scores are carried over from some to others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from blockrank.errors import InputError
from blockrank.strategies.first import is_checkpoint
from blockrank.text.words import document_words

LEXICAL = "lexical"
_COLUMNS = 4096  # that words are hashed into


class LexicalEncoder:
    """Texts as the words that they hold: log(1 + count) times log(texts / texts with the word), of unit length.

    Words are hashed into columns, and how rare one is, the texts say themselves: vectors of different calls do not
    compare. A text without words, or with those alone that all hold, has zeros.
    """

    @property
    def identity(self) -> object:
        """What tells these vectors from others."""
        return {"words": _COLUMNS}

    def documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts, (N, D)."""
        counts_ND = np.zeros((len(texts), _COLUMNS), np.float32)
        for row, text in enumerate(texts):
            for word, count in Counter(document_words(text)).items():
                counts_ND[row, crc32(word.encode()) % _COLUMNS] += count
        holders_D = np.maximum((counts_ND > 0).sum(0), 1)
        vectors_ND = np.log1p(counts_ND) * np.log(len(texts) / holders_D).astype(np.float32)
        lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        found: NDArray[np.float32] = vectors_ND / np.where(lengths_N1 > 0, lengths_N1, 1)
        return found


def encoder_named(given: Any) -> Any:
    """What makes vectors: of a name, see `Adaptive`; an object with `documents` and `identity` as it is.

    Raises `InputError` on anything else.
    """
    if given == LEXICAL:
        return LexicalEncoder()
    if isinstance(given, str) and is_checkpoint(given):
        from blockrank.retrieve.encoder import SentenceEncoder

        return SentenceEncoder(given)
    if isinstance(given, str) or not (callable(getattr(given, "documents", None)) and hasattr(given, "identity")):
        raise InputError(
            "vectors is 'lexical', a folder or hub name of sentence-transformers, or an object with documents(texts) "
            f"and identity, not {given!r}."
        )
    return given
