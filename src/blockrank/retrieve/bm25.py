"""BM25 over a corpus, kept on disk beside it.

Scores are those of bm25s in Lucene's variant (arXiv 2407.03618), over lower-cased words of two and more characters
without English stop words, stemmed by Snowball's English stemmer; title and text are one field.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blockrank.data import Corpus, Run
from blockrank.retrieve.kept import FOLDER, KeptFolder, Records, write_records
from blockrank.types import Document, InputError, MissingExtraError

_FORMAT = 1  # raised whenever what is written below changes
_WORD = re.compile(r"(?u)\b\w\w+\b")
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
    def open(cls, corpus: Corpus, *, folder: Path | None = None, k1: float = 0.9, b: float = 0.4) -> Bm25Index:
        """The index of a corpus: loaded where it is fresh, else made and kept.

        folder: where indices are kept; None means `.blockrank` beside the corpus. An index is fresh while size and time
        of the corpus file, the settings and the version of bm25s are those it was made with. Where the folder cannot be
        written, or the corpus has no file, the index stays in memory.

        Raises `InputError` where the corpus has no documents, `MissingExtraError` without the extra.
        """
        if corpus.path is None:
            return cls.build(corpus.documents(), k1=k1, b=b)
        try:
            state = corpus.path.stat()
        except OSError as error:
            raise InputError(f"{corpus.path}: cannot be read: {error.strerror}.") from None
        kept = KeptFolder(
            folder or corpus.path.parent / FOLDER,
            "bm25",
            [str(corpus.path.resolve()) if folder else corpus.path.name, k1, b],
            [*versions(), k1, b, state.st_size, state.st_mtime_ns],
        )
        if kept.is_whole() and (index := cls._loaded(kept.path)):
            return index
        index = cls.build(corpus.documents(), k1=k1, b=b)
        try:
            kept.write(index.save)
        except OSError as error:
            _log.warning("the BM25 index of %s is not kept: %s", corpus.path, error)
            return index
        return cls._loaded(kept.path) or index

    @classmethod
    def build(cls, documents: Iterable[Document], *, k1: float = 0.9, b: float = 0.4) -> Bm25Index:
        """The index of documents with ids, in memory. Raises as `open`."""
        bm25s, _ = _libraries()
        doc_ids: list[str] = []

        def contents() -> Iterator[str]:
            for document in documents:
                doc_ids.append(str(document.doc_id))
                yield document.content

        ids, vocabulary = _tokenised(contents(), return_ids=True)
        if not doc_ids:
            raise InputError("the corpus has no documents: there is nothing to index.")
        if not vocabulary:  # bm25s cannot index nothing at all; no query holds the empty word
            ids, vocabulary = [[0]] * len(doc_ids), {"": 0}
        scores = bm25s.BM25(k1=k1, b=b)
        scores.index((ids, vocabulary), create_empty_token=False, show_progress=False)
        return cls(scores, doc_ids)

    def save(self, folder: Path) -> None:
        """Write the index into an empty folder."""
        self._scores.save(folder, show_progress=False)
        write_records(folder, "doc_ids", self._doc_ids)

    @classmethod
    def load(cls, folder: Path) -> Bm25Index:
        """The index that `save` wrote; scores and ids stay on disk until they are needed.

        Raises `OSError`, `ValueError` or `KeyError` where it is damaged.
        """
        bm25s, _ = _libraries()
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
        """Scores of the best `depth` documents that share a word with the query, best first. Empty where none does."""
        return {str(self._doc_ids[position]): score for position, score in self.positions(query, depth)}

    def positions(self, query: str, depth: int) -> list[tuple[int, float]]:
        """The same as pairs of position in the corpus (from 0) and score."""
        if depth < 1:
            raise InputError(f"depth must be positive, not {depth}.")
        words = _tokenised([query], return_ids=False)[0]
        if not words:
            return []
        scores = self._scores.get_scores(words)
        found = np.flatnonzero(scores > 0)
        if len(found) > depth:  # no need to sort what cannot be among the best
            least = np.partition(scores[found], -depth)[-depth]
            found = found[scores[found] >= least]
        best = found[np.argsort(-scores[found], kind="stable")][:depth]
        return [(int(position), float(scores[position])) for position in best]

    def run(self, queries: Mapping[str, str], depth: int) -> Run:
        """`search` for every query: query_id -> doc_id -> score."""
        return {query_id: self.search(query, depth) for query_id, query in queries.items()}


def versions() -> list[object]:
    """What an index depends on besides texts and settings: form of its files, versions of the libraries."""
    bm25s, stemmer = _libraries()
    return [_FORMAT, bm25s.__version__, stemmer.version()]


def matching_words(query: str, text: str) -> list[tuple[int, int]]:
    """Where in `text` words of the query stand, as (start, end) of characters; other forms of a word count."""
    wanted = {word for words in _tokenised([query], return_ids=False) for word in words}
    spans = [match.span() for match in _WORD.finditer(text)]
    stems = _stemmed([text[start:end].lower() for start, end in spans])
    return [span for span, stem in zip(spans, stems, strict=True) if stem in wanted]


def _tokenised(texts: Iterable[str], *, return_ids: bool) -> Any:
    """bm25s's own: with `return_ids` ids a text and the vocabulary, else lists of stems."""
    bm25s, stemmer = _libraries()
    return bm25s.tokenize(
        texts, token_pattern=_WORD.pattern, stopwords="en", stemmer=stemmer.Stemmer("english"),
        return_ids=return_ids, show_progress=False,
    )  # fmt: skip


def _stemmed(words: Collection[str]) -> list[str]:
    _, stemmer = _libraries()
    return list(stemmer.Stemmer("english").stemWords(list(words)))


def _libraries() -> tuple[Any, Any]:
    """bm25s and PyStemmer; raises `MissingExtraError` without them."""
    try:
        import bm25s
        import Stemmer
    except ImportError as error:
        raise MissingExtraError(
            f"searching needs bm25s and PyStemmer ({error.name} is missing): pip install 'blockrank[search]'."
        ) from None
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG
    return bm25s, Stemmer
