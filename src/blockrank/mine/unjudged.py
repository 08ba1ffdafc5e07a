"""Queries without judgements over a collection: from a file, or taken from the documents themselves."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from blockrank.data import Corpus, open_corpus, read_queries, text_lines
from blockrank.mine.judged import Judged, JudgedQuery
from blockrank.mine.pool import Pool, text_key
from blockrank.mine.requests import query_generator
from blockrank.mine.sources import marco_corpus, read_pairs
from blockrank.text.words import fold
from blockrank.types import Document, InputError

Taken = Literal["titles", "sentences"]
_LEAST, _MOST = 20, 300  # characters of a sentence that serves as a query: no "Fig. 1.", no paragraph without a stop
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*")


@contextmanager
def open_unjudged(
    source: str | Path, queries: str | Path | None = None, *, take: Taken = "titles", seed: int = 0
) -> Iterator[Judged]:
    """Open a collection without judgements; its texts are in a temporary folder until the block ends.

    source: a BEIR folder, of which only the corpus is read; a file in the form of its corpus; a folder with MS MARCO's
    `collection.tsv`; or an id of ir_datasets. queries: a file of queries, JSON lines of `_id` and `text`, lines of id
    and tab and text where it ends in `.tsv`, else one query per line. They have no positives. None takes queries from
    the documents: `titles` takes the title if no other document has it, else the first sentence; `sentences` takes one
    at random. The document is the positive of such a query, without the words taken: with them it could be found by
    word overlap alone.

    Raises `InputError` where something is missing or broken, or there is no query.
    """
    corpus: Corpus = marco_corpus(Path(source)) or open_corpus(source)
    given = read_query_file(queries) if queries is not None else None
    with tempfile.TemporaryDirectory(prefix="blockrank-pool-") as folder:
        pool = Pool.write(Path(folder), corpus.documents())
        if given is not None:
            found = [JudgedQuery(query_id, text, ()) for query_id, text in given.items()]
            yield Judged(str(source), pool, found, corpus)
        else:
            yield _derived(str(source), pool, corpus, take, seed)


def read_query_file(path: str | Path) -> dict[str, str]:
    """Queries by id; a query without an id gets its line number.

    Raises `InputError` on a broken line and where there is no query.
    """
    name = str(path).removesuffix(".gz").removesuffix(".xz")
    if name.endswith(".jsonl"):
        found: Mapping[str, str] = read_queries(path)
    elif name.endswith(".tsv"):
        found = dict(read_pairs(Path(path), "query_id"))
    else:
        found = {str(number): text.strip() for number, text in text_lines(path)}
    texts = {query_id: text for query_id, text in found.items() if text.strip()}
    if not texts:
        raise InputError(f"{path}: there are no queries in it.")
    return texts


def _derived(source: str, pool: Pool, corpus: Corpus, take: Taken, seed: int) -> Judged:
    """Queries taken from the documents that yield one."""
    titles = Counter(text_key(document.title) for document in pool.documents())
    taking = QueryTaking(take, frozenset(key for key, count in titles.items() if count > 1), seed)
    queries: dict[int, JudgedQuery] = {}
    left_out: Counter[str] = Counter()
    for place, document in enumerate(pool.documents()):
        taken = taking.taken(document)
        if taken is None:
            left_out["their document has no words to spare"] += 1
        elif (key := text_key(taken[0])) in queries:
            left_out["an earlier document gave the same one"] += 1
        else:
            queries[key] = JudgedQuery(str(document.doc_id), taken[0], (place,))
    if not queries:
        needed = "text beside a title of its own, or " if take == "titles" else ""
        raise InputError(f"{source}: no document has {needed}two sentences; there is nothing to take queries from.")
    return Judged(source, pool, list(queries.values()), corpus, left_out, taking.rest)


@dataclass(frozen=True, slots=True)
class QueryTaking:
    """Takes a query out of a document. shared: keys of titles that several documents have, and which are therefore not
    used.

    What is drawn depends on the seed and the document's id alone.
    """

    take: Taken
    shared: frozenset[int]
    seed: int = 0

    def taken(self, document: Document) -> tuple[str, Document] | None:
        """A query, and the document without its words; None where one of the two would be empty."""
        if self.take == "titles" and self._names(document.title):
            text = _without(document.text, document.title)
            if text_key(text):
                return document.title.strip(), replace(document, title="", text=text)
        spans = sentences(document.text)
        if len(spans) < 2:
            return None
        usable = [(start, end) for start, end in spans if _LEAST <= len(document.text[start:end].strip()) <= _MOST]
        if self.take == "titles":
            usable = usable[:1] if usable[:1] == spans[:1] else []
        if not usable:
            return None
        start, end = usable[int(query_generator(self.seed, str(document.doc_id)).integers(len(usable)))]
        rest = document.text[:start] + document.text[end:]
        return document.text[start:end].strip(), replace(document, text=rest)

    def _names(self, title: str) -> bool:
        """Whether a title can be a query for its document."""
        return text_key(title) not in self.shared and any(map(str.isalpha, title)) and len(title) <= _MOST

    def rest(self, document: Document) -> Document:
        """The document without the words of its query."""
        taken = self.taken(document)
        assert taken is not None, "its query was taken before"
        return taken[1]


def _without(text: str, title: str) -> str:
    """A text without the title that it begins with, if it does."""
    words = fold(title).split()
    parts = text.split(None, len(words))
    if [fold(part) for part in parts[: len(words)]] == words:
        return parts[len(words)] if len(parts) > len(words) else ""
    return text


def sentences(text: str) -> list[tuple[int, int]]:
    """Where sentences begin and end, white space behind them included; what is short is part of the next."""
    spans, start = [], 0
    for stop in _SENTENCE_END.finditer(text):
        if len(text[start : stop.start()].strip()) >= _LEAST:
            spans.append((start, stop.end()))
            start = stop.end()
    if text_key(text[start:]):
        spans.append((start, len(text)))
    return spans
