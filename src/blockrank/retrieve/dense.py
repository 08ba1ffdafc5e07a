"""Dense retrieval: a vector for each document of a corpus, and exact search by its dot product with the query's vector.

Encoders are models of sentence-transformers. A corpus is encoded once; its vectors are kept on disk under the hash of
the corpus and of the encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from blockrank.data import Corpus, Run
from blockrank.keep.folders import KeptFolder, index_folder, tell_of_former
from blockrank.keep.identity import file_digest
from blockrank.keep.lines import Records, write_records
from blockrank.retrieve.encoder import Encoder, Floats
from blockrank.types import Document, InputError
from blockrank.types.progress import CountProgress

Dtype = Literal["float32", "float16"]

_FORMAT = 1  # incremented whenever the format written below changes
_GROUP = 1024  # documents encoded between two reports of progress; the encoder sorts them by length
_CHUNK = 65_536  # documents compared with queries at once
_log = logging.getLogger(__name__)


class DenseIndex:
    """Finds the documents whose vectors have the largest dot product with a query's, best first, by exact search.

    Equal scores are ordered as in the corpus. Documents without any text are not in it.
    """

    def __init__(self, encoder: Encoder, vectors_ND: NDArray[Any], doc_ids: Sequence[str]) -> None:
        assert len(vectors_ND) == len(doc_ids), "a vector for each document"
        self.encoder, self._vectors_ND, self.doc_ids = encoder, vectors_ND, list(doc_ids)
        self._places = {doc_id: place for place, doc_id in enumerate(self.doc_ids)}

    def __len__(self) -> int:
        return len(self.doc_ids)

    @classmethod
    def open(
        cls,
        corpus: Corpus,
        encoder: Encoder,
        *,
        folder: Path | None = None,
        dtype: Dtype = "float32",
        progress: CountProgress | None = None,
    ) -> DenseIndex:
        """The index of a corpus: loaded if its vectors are on disk, else encoded and saved.

        folder: where vectors are kept; None means the user's own cache folder. They are found by the content of the
        corpus file and of the encoder's files, so a copy or a new timestamp of the same files does not cause another
        encoding. dtype: of the stored vectors; dot products are computed in float32. If the folder cannot be written,
        the corpus has no file or the encoder no identity, the index stays in memory. progress: called with documents
        done and all.

        Raises `InputError` where the corpus has no text at all.
        """
        place = folder or index_folder()
        if corpus.path is None or encoder.identity is None or place is None:
            return cls.build(corpus.documents(), encoder, dtype=dtype, progress=progress)
        kept = KeptFolder(
            place,
            "dense",
            [str(corpus.path.resolve()), encoder.identity, dtype],
            [_FORMAT, file_digest(corpus.path), encoder.identity, dtype],
        )
        if kept.is_whole() and (index := cls._loaded(kept.path, encoder)):
            return index
        tell_of_former(corpus.path.parent, place)
        index = cls.build(corpus.documents(), encoder, dtype=dtype, progress=progress)
        try:
            kept.write(index.save)
        except OSError as error:
            _log.warning("the vectors of %s are not kept: %s", corpus.path, error)
            return index
        return cls._loaded(kept.path, encoder) or index

    @classmethod
    def build(
        cls,
        documents: Iterable[Document],
        encoder: Encoder,
        *,
        dtype: Dtype = "float32",
        progress: CountProgress | None = None,
    ) -> DenseIndex:
        """The index of documents with ids, in memory. Raises as `open`."""
        texts = {str(document.doc_id): document.content for document in documents}
        doc_ids = [doc_id for doc_id, text in texts.items() if text]
        if not doc_ids:
            raise InputError("the corpus has no documents with text: there is nothing to encode.")
        parts, done = [], 0
        for start in range(0, len(doc_ids), _GROUP):
            group = doc_ids[start : start + _GROUP]
            parts.append(encoder.documents([texts[doc_id] for doc_id in group]).astype(dtype))
            done += len(group)
            if progress:
                progress(done, len(doc_ids))
        return cls(encoder, np.concatenate(parts), doc_ids)

    def save(self, folder: Path) -> None:
        """Write vectors and ids into an empty folder."""
        np.save(folder / "vectors.npy", self._vectors_ND)
        write_records(folder, "doc_ids", self.doc_ids)

    @classmethod
    def load(cls, folder: Path, encoder: Encoder) -> DenseIndex:
        """The index that `save` wrote; its vectors stay on disk until they are needed.

        Raises `OSError` or `ValueError` where it is damaged.
        """
        vectors_ND, doc_ids = np.load(folder / "vectors.npy", mmap_mode="r"), list(Records(folder, "doc_ids"))
        if len(vectors_ND) != len(doc_ids):
            raise ValueError(f"{folder}: vectors and ids differ in number")
        return cls(encoder, vectors_ND, doc_ids)

    @classmethod
    def _loaded(cls, folder: Path, encoder: Encoder) -> DenseIndex | None:
        """The index in `folder`; None where another process has just removed or replaced it."""
        try:
            return cls.load(folder, encoder)
        except (OSError, ValueError) as error:
            _log.warning("%s cannot be loaded: %s", folder, error)
            return None

    def vectors(self, doc_ids: Sequence[str]) -> Floats:
        """Vectors of documents, (C, D), in the order given. Raises `InputError` naming one that is not in the index."""
        for doc_id in doc_ids:
            if doc_id not in self._places:
                raise InputError(f"the index has no document with the doc_id {doc_id!r}.")
        found: Floats = self._vectors_ND[[self._places[doc_id] for doc_id in doc_ids]].astype(np.float32)
        return found

    def search(self, query: str, depth: int) -> dict[str, float]:
        """Scores of the best `depth` documents, best first."""
        return self.nearest(self.encoder.queries([query]), depth)[0]

    def run(self, queries: Mapping[str, str], depth: int) -> Run:
        """`search` for every query: query_id -> doc_id -> score."""
        found = self.nearest(self.encoder.queries(list(queries.values())), depth)
        return dict(zip(queries, found, strict=True))

    def nearest(self, queries_QD: Floats, depth: int) -> list[dict[str, float]]:
        """As `search`, for vectors of queries. Raises `InputError` where depth or the width of the vectors is wrong."""
        if depth < 1:
            raise InputError(f"depth must be positive, not {depth}.")
        if queries_QD.ndim != 2 or queries_QD.shape[1] != self._vectors_ND.shape[1]:
            raise InputError(
                f"queries must be vectors of {self._vectors_ND.shape[1]} numbers, not of shape {queries_QD.shape}."
            )
        places_QK = np.zeros((len(queries_QD), 0), dtype=np.int64)
        scores_QK = np.zeros((len(queries_QD), 0), dtype=np.float32)
        for start in range(0, len(self), _CHUNK):
            chunk_ND = self._vectors_ND[start : start + _CHUNK].astype(np.float32)
            places = np.broadcast_to(np.arange(start, start + len(chunk_ND)), (len(queries_QD), len(chunk_ND)))
            places_QK = np.concatenate([places_QK, places], axis=1)
            scores_QK = np.concatenate([scores_QK, queries_QD.astype(np.float32) @ chunk_ND.T], axis=1)
            places_QK, scores_QK = _best(places_QK, scores_QK, depth)
        return [
            {self.doc_ids[place]: float(score) for place, score in zip(places, scores, strict=True)}
            for places, scores in zip(places_QK, scores_QK, strict=True)
        ]


def _best(places_QK: NDArray[np.int64], scores_QK: Floats, depth: int) -> tuple[NDArray[np.int64], Floats]:
    """The best `depth` of each row, by descending score, then ascending place; in the input, places of equal scores
    ascend."""
    order_QK = np.argsort(-scores_QK, axis=1, kind="stable")[:, :depth]
    return np.take_along_axis(places_QK, order_QK, 1), np.take_along_axis(scores_QK, order_QK, 1)
