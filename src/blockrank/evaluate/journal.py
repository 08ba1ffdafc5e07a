"""The journal of one system on one collection: finished shards, one JSON line each, that survive a kill at any
moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blockrank.keep.records import RecordFile
from blockrank.types import Ranking


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is kept of one query's ranking: its documents, best first, their scores, what was cut to fit, and what it
    took.

    calls, read_tokens: as in `Ranking`; None where the journal is from before they were kept. repaired: how many
    answers that a model wrote could not be taken as they were.
    """

    query_id: str
    doc_ids: list[str]
    scores: list[float]
    cut_documents: int = 0
    query_cut: bool = False
    calls: int | None = None
    read_tokens: int | None = None
    repaired: int = 0

    @classmethod
    def of(cls, ranking: Ranking) -> Outcome:
        """The outcome of a complete ranking."""
        return cls(
            ranking.query_id,
            ranking.doc_ids,
            [entry.score for entry in ranking],
            sum(entry.cut_tokens > 0 for entry in ranking),
            ranking.query_cut_tokens > 0,
            ranking.calls,
            ranking.read_tokens,
            ranking.repaired,
        )

    def is_whole(self) -> bool:
        """Whether there is a score to each document; what is read from disk may be anything."""
        values = isinstance(self.doc_ids, list) and isinstance(self.scores, list)
        return values and len(self.doc_ids) == len(self.scores) and all(type(score) is float for score in self.scores)


class Journal(RecordFile):
    """Shards appended in order.

    `shards` counts the finished ones. `latency_ms` are times of single requests; `latency_queries` is how many were
    asked for, 0 where none were taken. `order_taus`: by query_id, how far rankings of its candidates in other orders
    agree, see `evaluate.order`.
    """

    def __init__(self, path: Path) -> None:
        self.shards = 0
        self.latency_queries = 0
        self.latency_ms: list[float] = []
        self.order_taus: dict[str, float | None] = {}
        super().__init__(path)

    def append_shard(self, outcomes: Sequence[Outcome]) -> None:
        """Add the next shard."""
        self.append({"shard": self.shards, "outcomes": [asdict(outcome) for outcome in outcomes]})
        self.shards += 1

    def append_latency(self, queries: int, milliseconds: list[float]) -> None:
        """Add the times of single requests, of which `queries` were asked for."""
        self.append({"latency_queries": queries, "latency_ms": milliseconds})
        self.latency_queries, self.latency_ms = queries, milliseconds

    def append_order_tau(self, query_id: str, tau: float | None) -> None:
        """Add how far the rankings of a query's shuffled candidates agree; None where there is only one."""
        self.append({"order_query": query_id, "tau": tau})
        self.order_taus[query_id] = tau

    def outcomes(self) -> Iterator[Outcome]:
        """The outcomes of every finished shard, in order."""
        for record in self.records():
            for outcome in record.get("outcomes", ()):
                yield Outcome(**outcome)

    def take(self, record: dict[str, Any]) -> bool:
        """See `RecordFile.take`."""
        if "latency_ms" in record:
            self.latency_queries, self.latency_ms = record["latency_queries"], record["latency_ms"]
            return True
        if "tau" in record:
            self.order_taus[record["order_query"]] = None if record["tau"] is None else float(record["tau"])
            return True
        if record.get("shard") != self.shards:
            return False
        self.shards += 1
        return all(Outcome(**outcome).is_whole() for outcome in record["outcomes"])
