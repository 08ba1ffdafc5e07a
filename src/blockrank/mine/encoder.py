"""A bi-encoder of sentence-transformers: vectors of queries and documents, and the nearest documents of a pool."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockrank.mine.pool import Pool
from blockrank.retrieve.encoder import Floats, SentenceEncoder
from blockrank.types.progress import NamedProgress

_DOCUMENTS, _QUERIES = 4096, 4096  # documents encoded, and queries compared, at a time


class CachingEncoder:
    """Vectors whose dot product is the model's similarity: unit length for cosine models.

    name_or_folder: a model that sentence-transformers loads. kept_bytes: size of a cache of document vectors. Raises as
    `SentenceEncoder`.
    """

    def __init__(
        self, name_or_folder: str, *, device: str | None = None, batch_size: int = 32, kept_bytes: int = 1 << 30
    ) -> None:
        self.name, self._kept_bytes = name_or_folder, kept_bytes
        self._encoder = SentenceEncoder(name_or_folder, device=device, batch_size=batch_size)
        self._kept: dict[bytes, Floats] = {}

    @property
    def device(self) -> Any:
        """The model's device."""
        return self._encoder.model.device

    def queries(self, texts: Sequence[str]) -> Floats:
        """Vectors (N, D) of queries, with the model's own prompt for them."""
        return self._encoder.queries(texts)

    def documents(self, texts: Sequence[str]) -> Floats:
        """Vectors (C, D) of documents, with the model's own prompt for them."""
        names = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        new = {name: text for name, text in zip(names, texts, strict=True) if name not in self._kept}
        vectors = self._encoder.documents(list(new.values())) if new else ()
        found = dict(zip(new, vectors, strict=True))
        vectors_CD = np.stack([found[name] if name in found else self._kept[name] for name in names])
        self._kept.update(found)
        if over := len(self._kept) - self._kept_bytes // vectors_CD[0].nbytes:
            for name in list(islice(self._kept, max(over, 0))):  # evict the oldest
                del self._kept[name]
        return vectors_CD


def nearest(
    encoder: CachingEncoder, queries: Sequence[str], pool: Pool, depth: int, progress: NamedProgress | None = None
) -> NDArray[np.int32]:
    """Positions (N, depth) of the most similar documents with text, best first; -1 where there are no more.

    The pool is encoded once, a few thousand documents at a time; memory holds the queries' vectors and the result.
    """
    import torch

    vectors_ND = torch.from_numpy(encoder.queries(queries)).to(encoder.device)
    usable, depth = np.flatnonzero(pool.keys_C), min(depth, len(pool))
    best_ND = torch.full((len(queries), depth), -torch.inf)
    places_ND = torch.full((len(queries), depth), -1, dtype=torch.int32)
    for first in range(0, len(usable), _DOCUMENTS):
        places = usable[first : first + _DOCUMENTS].tolist()
        documents_CD = torch.from_numpy(encoder.documents([pool[place].content for place in places]))
        places_C = torch.tensor(places, dtype=torch.int32)
        for start in range(0, len(queries), _QUERIES):
            rows = slice(start, start + _QUERIES)
            top = (vectors_ND[rows] @ documents_CD.to(encoder.device).T).topk(min(depth, len(places)), dim=1)
            scores = torch.cat([best_ND[rows], top.values.cpu()], 1)
            found = torch.cat([places_ND[rows], places_C[top.indices.cpu()]], 1)
            best_ND[rows], order = scores.topk(depth, dim=1)
            places_ND[rows] = found.gather(1, order)
        if progress is not None:
            progress("encoding", first + len(places), len(usable))
    return places_ND.numpy()
