"""Queries over a pool of documents, whatever source they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from blockrank.data import Corpus
from blockrank.mine.pool import Pool
from blockrank.types import Document


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """A query over a pool; documents are positions in it. positives: none where nothing is judged.

    given: negatives that the source names, best first. barred: documents that are neither positive nor negative. group:
    queries of one group come from one page, or empty.
    """

    query_id: str
    query: str
    positives: tuple[int, ...]
    given: tuple[int, ...] = ()
    barred: tuple[int, ...] = ()
    group: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """Queries, and the pool of all documents. corpus: the pool as a file beside which an index may be kept, or None.

    left_out: how many queries were left out, by reason. own_form: how a query sees its positives, where it was taken
    from their text.
    """

    source: str
    pool: Pool
    queries: Sequence[JudgedQuery]
    corpus: Corpus | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    own_form: Callable[[Document], Document] | None = None
