"""First stages: BM25 over a corpus, and search in folders and files."""

from blockrank.retrieve.bm25 import Bm25Index, matching_words
from blockrank.retrieve.passages import Passage
from blockrank.retrieve.reading import ReadLimits
from blockrank.retrieve.search import Hit, PassageIndex, check_query, search, skipped_text

__all__ = [
    "Bm25Index",
    "Hit",
    "Passage",
    "PassageIndex",
    "ReadLimits",
    "check_query",
    "matching_words",
    "search",
    "skipped_text",
]
