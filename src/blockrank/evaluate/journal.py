"""The journal of one system on one collection: finished shards, a JSON line each, that survive a kill at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blockrank.types import InputError, Ranking


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is kept of one query's ranking: its documents, best first, their scores, and what was cut to fit."""

    query_id: str
    doc_ids: list[str]
    scores: list[float]
    cut_documents: int = 0
    query_cut: bool = False

    @classmethod
    def of(cls, ranking: Ranking) -> Outcome:
        """The outcome of a complete ranking."""
        return cls(
            ranking.query_id,
            ranking.doc_ids,
            [entry.score for entry in ranking],
            sum(entry.cut_tokens > 0 for entry in ranking),
            ranking.query_cut_tokens > 0,
        )


class Journal:
    """Shards appended in order, each on disk before the next begins.

    A last line that a kill has torn is dropped when the journal is opened; a broken line before it raises `InputError`.
    `shards` counts the finished ones. `latency_ms` are times of single requests; `latency_queries` is how many were
    asked for, 0 where none were taken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shards = 0
        self.latency_queries = 0
        self.latency_ms: list[float] = []
        if path.exists():
            self._open()

    def append_shard(self, outcomes: Sequence[Outcome]) -> None:
        """Add the next shard."""
        self._append({"shard": self.shards, "outcomes": [asdict(outcome) for outcome in outcomes]})
        self.shards += 1

    def append_latency(self, queries: int, milliseconds: list[float]) -> None:
        """Add the times of single requests, of which `queries` were asked for."""
        self._append({"latency_queries": queries, "latency_ms": milliseconds})
        self.latency_queries, self.latency_ms = queries, milliseconds

    def outcomes(self) -> Iterator[Outcome]:
        """The outcomes of every finished shard, in order, read from disk one shard at a time."""
        with self.path.open("rb") as stream:
            for line in stream:
                for outcome in json.loads(line).get("outcomes", ()):
                    yield Outcome(**outcome)

    def _append(self, record: dict[str, Any]) -> None:
        with self.path.open("ab") as stream:
            stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _open(self) -> None:
        """Count what is there and cut a torn end off."""
        whole, broken = 0, 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if broken:
                    raise InputError(f"{self.path}:{broken}: the journal is broken here; start over with --restart.")
                if self._count(line):
                    whole += len(line)
                else:
                    broken = number
        if broken:
            os.truncate(self.path, whole)

    def _count(self, line: bytes) -> bool:
        """Take note of a record; False where it is none."""
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            return False
        if not isinstance(record, dict):
            return False
        if "latency_ms" in record:
            self.latency_queries, self.latency_ms = record["latency_queries"], record["latency_ms"]
        elif record.get("shard") == self.shards:
            self.shards += 1
        else:
            return False
        return True
