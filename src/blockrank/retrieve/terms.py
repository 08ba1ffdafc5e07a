"""Terms: words as BM25 compares them, in an index and in a query.

Words are stemmed by Snowball's English stemmer, which does not change other scripts. English stop words and single
characters are separate terms that do not count in a document's length. In a query, single characters are used, as in
`vitamin C` or `type 2`; stop words only if it holds nothing else, or if they are in capitals, as in `IT budget`.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from typing import Any

from blockrank.text.words import document_words, query_words, spans_of_words
from blockrank.types import MissingExtraError

TERMS_VERSION = 2  # incremented whenever the terms of a text or query change, by this module or `blockrank.text.words`
# Lucene's English list, and `i`, `eg` and `ie`.
STOP_WORDS = frozenset({
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "eg", "for", "i", "ie", "if", "in", "into", "is", "it",
    "no", "not", "of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to",
    "was", "will", "with",
})  # fmt: skip
_CAPITALS = re.compile(rf"\b[A-Z]{{2,{max(map(len, STOP_WORDS))}}}\b")
_APART = " "  # prefix of separate terms: no stem begins with it


class _Terms(dict[str, str]):
    """From a word to its term: filled as words occur."""

    def __init__(self) -> None:
        _, stemmer = libraries()
        self._stemmer = stemmer.Stemmer("english")

    def __missing__(self, word: str) -> str:
        apart = word in STOP_WORDS or sum(unicodedata.category(letter)[0] != "M" for letter in word) == 1
        term = self[word] = _APART + word if apart else self._stemmer.stemWord(word)
        return term


class Analyser:
    """Texts to terms. Not thread-safe: it caches the term of each word."""

    def __init__(self) -> None:
        self._terms = _Terms()

    def of_document(self, text: str) -> list[str]:
        """The terms of a text that is searched."""
        return [*map(self._terms.__getitem__, document_words(text)), *_capitals(text)]

    def of_query(self, text: str) -> list[str]:
        """The terms of a query."""
        words, capitals = query_words(text), _capitals(text)
        meant = {word.strip().lower() for word in capitals}
        counted = [word for word in words if word not in STOP_WORDS or word in meant]
        return [*map(self._terms.__getitem__, counted or words), *capitals]

    def matches(self, query: str, text: str) -> list[tuple[int, int]]:
        """(start, end) of the characters in `text` that match words of the query; other forms of a word match too."""
        wanted = set(self.of_query(query))
        return spans_of_words(text, lambda word: self._terms[word] in wanted)


def is_apart(term: str) -> bool:
    """Whether a term is a stop word or a single character."""
    return term.startswith(_APART)


def _capitals(text: str) -> list[str]:
    """Stop words in capitals, such as the name IT, unless the whole text is in capitals."""
    if text.isupper() and len(text.split()) > 1:
        return []
    return [_APART + word for word in _CAPITALS.findall(text) if word.lower() in STOP_WORDS]


def libraries() -> tuple[Any, Any]:
    """bm25s and PyStemmer; raises `MissingExtraError` without them."""
    try:
        import bm25s
        import Stemmer
    except ImportError as error:
        raise MissingExtraError(
            f"BM25 needs bm25s and PyStemmer ({error.name} is missing): pip install 'blockrank[search]', "
            "or 'blockrank[mine]' to mine training requests alone."
        ) from None
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # the library sets its logger to DEBUG
    return bm25s, Stemmer
