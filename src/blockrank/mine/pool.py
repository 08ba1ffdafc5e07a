"""The documents that negatives are drawn from: on disk in the order they came, found by position."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blockrank.keep.lines import Records, write_records
from blockrank.text.words import fold
from blockrank.types import Document

_UNUSABLE = 0  # key of a document without text


def text_key(text: str) -> int:
    """63-bit key, equal for texts that are equal after folding, ignoring white space; zero if nothing is left."""
    words = " ".join(fold(text).split())
    if not words:
        return _UNUSABLE
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big") >> 1 | 1


def document_key(document: Document) -> int:
    """`text_key` of a document's text; of its title where there is no text."""
    return text_key(document.text) or text_key(document.title)


@dataclass(frozen=True, slots=True)
class Pool:
    """C documents with ids. Texts stay in files of a folder; `keys_C` and the ids' places are in memory.

    keys_C: `document_key` of each; zero for a document without text, which is never used. A document with the key of an
    earlier one is its copy.
    """

    keys_C: NDArray[np.int64]
    _places: dict[str, int]
    _records: Records

    @classmethod
    def write(cls, folder: Path, documents: Iterable[Document]) -> Pool:
        """Copy documents with ids, each its own, into an empty folder."""
        keys: list[int] = []
        places: dict[str, int] = {}

        def values() -> Iterator[list[str]]:
            for document in documents:
                places[str(document.doc_id)] = len(keys)
                keys.append(document_key(document))
                yield [str(document.doc_id), document.title, document.text]

        write_records(folder, "pool", values())
        return cls(np.array(keys, dtype=np.int64), places, Records(folder, "pool"))

    def __len__(self) -> int:
        return len(self.keys_C)

    def __getitem__(self, position: int) -> Document:
        doc_id, title, text = self._records[position]
        return Document(text, doc_id, title)

    def documents(self) -> Iterator[Document]:
        """Every document, in order."""
        return (self[position] for position in range(len(self)))

    def position(self, doc_id: str) -> int | None:
        """Position of the document with an id; None if there is none."""
        return self._places.get(doc_id)

    def distinct(self) -> int:
        """How many documents have text and are no copies."""
        return len(np.unique(self.keys_C[self.keys_C != _UNUSABLE]))
