"""BM25 over a corpus, kept on disk.

Scores are those of bm25s in Lucene's variant (arXiv 2407.03618) over the terms of `blockrank.retrieve.terms`; title and
text are one field. Stop words and single characters, in queries that use them, are scored without length normalisation.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blockrank.data import Corpus, Run
from blockrank.keep.folders import KeptFolder, index_folder, tell_of_former
from blockrank.keep.identity import file_digest
from blockrank.keep.lines import Records, write_records
from blockrank.retrieve.terms import TERMS_VERSION, Analyser, is_apart, libraries
from blockrank.types import Document, InputError

K1, B = 0.9, 0.4  # term-frequency saturation; length normalisation
_FORMAT = 2  # incremented whenever the format written below changes
_log = logging.getLogger(__name__)


class Bm25Index:
    """Finds the documents that share words with a query, best first.

    Equal scores are ordered as in the corpus.
    """

    def __init__(self, scores: Any, doc_ids: Sequence[str] | Records) -> None:
        self._scores, self._doc_ids = scores, doc_ids

    def __len__(self) -> int:
        return len(self._doc_ids)

    @classmethod
    def open(cls, corpus: Corpus, *, folder: Path | None = None, k1: float = K1, b: float = B) -> Bm25Index:
        """The index of a corpus: loaded from disk if up to date, else built and saved.

        folder: where indices are kept; None means the user's own cache folder. An index is up to date while the content
        of the corpus file, the settings and the versions of the libraries are unchanged. If the folder cannot be
        written, or the corpus has no file, the index stays in memory.

        Raises `InputError` where the corpus has no documents, `MissingExtraError` without the extra.
        """
        place = folder or index_folder()
        if corpus.path is None or place is None:
            return cls.build(corpus.documents(), k1=k1, b=b)
        settings = [_FORMAT, versions(), k1, b, file_digest(corpus.path)]
        kept = KeptFolder(place, "bm25", [str(corpus.path.resolve()), k1, b], settings)
        if kept.is_whole() and (index := cls._loaded(kept.path)):
            return index
        tell_of_former(corpus.path.parent, place)
        index = cls.build(corpus.documents(), k1=k1, b=b)
        try:
            kept.write(index.save)
        except OSError as error:
            _log.warning("the BM25 index of %s is not kept: %s", corpus.path, error)
            return index
        return cls._loaded(kept.path) or index

    @classmethod
    def build(cls, documents: Iterable[Document], *, k1: float = K1, b: float = B) -> Bm25Index:
        """The index of documents with ids, in memory. Raises as `open`."""
        analyser, postings, doc_ids = Analyser(), _Postings(), list[str]()
        for document in documents:
            doc_ids.append(str(document.doc_id))
            postings.add(analyser.of_document(document.content))
        if not doc_ids:
            raise InputError("the corpus has no documents: there is nothing to index.")
        counted = _scored(postings.counted, postings.ids.counted, k1, b)
        return cls(_joined(counted, _scored(postings.apart, postings.ids.apart, k1, b=0.0)), doc_ids)

    def save(self, folder: Path) -> None:
        """Write the index into an empty folder."""
        self._scores.save(folder, show_progress=False)
        write_records(folder, "doc_ids", self._doc_ids)

    @classmethod
    def load(cls, folder: Path) -> Bm25Index:
        """The index that `save` wrote; scores and ids stay on disk until they are needed.

        Raises `OSError`, `ValueError` or `KeyError` where it is damaged.
        """
        bm25s, _ = libraries()
        index = cls(bm25s.BM25.load(folder, mmap=True, show_progress=False), Records(folder, "doc_ids"))
        if index._scores.scores["num_docs"] != len(index):
            raise ValueError(f"{folder}: scores and ids differ in number")
        return index

    @classmethod
    def _loaded(cls, folder: Path) -> Bm25Index | None:
        """The index in `folder`; None where another process has just removed or replaced it."""
        try:
            return cls.load(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s cannot be loaded: %s", folder, error)
            return None

    def search(self, query: str, depth: int) -> dict[str, float]:
        """Scores of the best `depth` documents that share a word with the query, best first. Empty if none does."""
        return {str(self._doc_ids[position]): score for position, score in self.positions(query, depth)}

    def positions(self, query: str, depth: int) -> list[tuple[int, float]]:
        """The same as pairs of position in the corpus (from 0) and score."""
        if depth < 1:
            raise InputError(f"depth must be positive, not {depth}.")
        terms = Analyser().of_query(query)
        if not terms:
            return []
        scores = self._scores.get_scores(terms)
        found = np.flatnonzero(scores > 0)
        if len(found) > depth:  # sort only candidates for the best
            least = np.partition(scores[found], -depth)[-depth]
            found = found[scores[found] >= least]
        best = found[np.argsort(-scores[found], kind="stable")][:depth]
        return [(int(position), float(scores[position])) for position in best]

    def run(self, queries: Mapping[str, str], depth: int) -> Run:
        """`search` for every query: query_id -> doc_id -> score."""
        return {query_id: self.search(query, depth) for query_id, query in queries.items()}


def versions() -> dict[str, object]:
    """Versions that decide matches and scores besides texts and settings: of our terms, and of the libraries below."""
    bm25s, stemmer = libraries()
    return {
        "terms": TERMS_VERSION,
        "bm25s": bm25s.__version__,
        "PyStemmer": stemmer.version(),
        "Unicode": unicodedata.unidata_version,
    }


def matching_words(query: str, text: str) -> list[tuple[int, int]]:
    """(start, end) of the characters in `text` that match words of the query; other forms of a word match too."""
    return Analyser().matches(query, text)


class _TermIds(dict[str, int]):
    """Ids of terms, assigned as terms occur: from 0 up in the order of `counted`, from -1 down in the order of
    `apart`."""

    def __init__(self) -> None:
        self.counted: dict[str, int] = {}
        self.apart: dict[str, int] = {}

    def __missing__(self, term: str) -> int:
        if is_apart(term):
            self[term] = ~self.apart.setdefault(term, len(self.apart))
        else:
            self[term] = self.counted.setdefault(term, len(self.counted))
        return self[term]


class _Postings:
    """The terms of each document: those that count in its length, and separately those that do not, each with its own
    ids."""

    def __init__(self) -> None:
        self.ids = _TermIds()
        self.counted: list[list[int]] = []
        self.apart: list[list[int]] = []

    def add(self, terms: Iterable[str]) -> None:
        """The terms of the next document."""
        ids = list(map(self.ids.__getitem__, terms))
        self.counted.append([place for place in ids if place >= 0])
        self.apart.append([~place for place in ids if place < 0])


def _scored(ids: list[list[int]], vocabulary: dict[str, int], k1: float, b: float) -> Any:
    """An index over the terms of each document."""
    if not vocabulary:  # bm25s cannot index an empty corpus; no query contains the empty word
        ids, vocabulary = [[0]] * len(ids), {"": 0}
    scores = libraries()[0].BM25(k1=k1, b=b)
    scores.index((ids, vocabulary), create_empty_token=False, show_progress=False)
    return scores


def _joined(counted: Any, apart: Any) -> Any:
    """Two indices of the same documents merged: the columns of the second follow those of the first."""
    for name in ("data", "indices"):
        counted.scores[name] = np.concatenate([counted.scores[name], apart.scores[name]])
    ends = apart.scores["indptr"][1:] + counted.scores["indptr"][-1]
    counted.scores["indptr"] = np.concatenate([counted.scores["indptr"], ends])
    first = len(counted.vocab_dict)
    counted.vocab_dict |= {term: first + place for term, place in apart.vocab_dict.items() if term}
    counted.unique_token_ids_set = set(counted.vocab_dict.values())
    return counted
