"""Queries over a pool of documents, independent of their source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from blockrank.data import Corpus
from blockrank.mine.pool import Pool
from blockrank.types import Document


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """A query over a pool; documents are given by position in it. positives: empty if nothing is judged.

    given: negatives that the source names, best first. barred: documents that are neither positive nor negative. group:
    queries of one group come from one page; empty if unknown.
    """

    query_id: str
    query: str
    positives: tuple[int, ...]
    given: tuple[int, ...] = ()
    barred: tuple[int, ...] = ()
    group: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """Queries, and the pool of all documents. corpus: the pool as a file whose index may be stored, or None.

    left_out: how many queries were left out, by reason. own_form: the form of the positives in a query's request, if
    the query was taken from their text.
    """

    source: str
    pool: Pool
    queries: Sequence[JudgedQuery]
    corpus: Corpus | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    own_form: Callable[[Document], Document] | None = None
