"""What an evaluation found: a result for each system and collection, with its JSON form and its per-query table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from blockrank.evaluate.compare import Comparison

SIGNIFICANT = 0.05  # corrected p under which a difference is marked


@dataclass(frozen=True, slots=True)
class SystemResult:
    """One system on one collection.

    name: the first stage's, or a reranker's label (`label@depth` where it is evaluated at several depths).
    depth: how many candidates were reranked; for the first stage, the length of its longest ranking.
    measures: means over the judged queries; per_query: query_id -> measure -> value, of every judged query.
    latency_ms: median of single requests ranked alone with nothing reused; None where it was not measured.
    documents: candidates read, over all queries; cut_documents and cut_queries: how many of them, and of the queries,
    did not fit and lost their end.
    calls, read_tokens: means over the queries that were ranked, of how many requests the model had for one, and of the
    documents' tokens that it read in these, one that is read twice counted twice; None where that was not recorded.
    repaired: over all queries, how many answers that the model wrote could not be taken as they were. order_tau: how
    far rankings of the same candidates in shuffled orders agree, as the mean of Kendall's tau; None where that was not
    measured.
    """

    name: str
    depth: int
    measures: dict[str, float]
    per_query: dict[str, dict[str, float]]
    latency_ms: float | None
    documents: int
    cut_documents: int
    cut_queries: int
    calls: float | None = None
    read_tokens: float | None = None
    repaired: int = 0
    order_tau: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SystemResult:
        """Inverse of `to_dict`."""
        return cls(**values)


@dataclass(frozen=True, slots=True)
class CollectionResult:
    """All systems on one collection.

    queries: how many are judged and were evaluated. systems: the first stage, then the rerankers in the order given.
    ceilings: depth -> measure -> value of the best possible order of the first `depth` candidates, the rest as it is.
    comparisons: every pair of systems on the first measure, corrected together; `a` is the later system of the two.
    """

    name: str
    queries: int
    first_stage: str
    systems: tuple[SystemResult, ...]
    ceilings: dict[int, dict[str, float]]
    comparisons: tuple[Comparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; depths become strings, as JSON has no other keys."""
        return {
            "name": self.name,
            "queries": self.queries,
            "first_stage": self.first_stage,
            "systems": [system.to_dict() for system in self.systems],
            "ceilings": {str(depth): dict(values) for depth, values in self.ceilings.items()},
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CollectionResult:
        """Inverse of `to_dict`."""
        return cls(
            values["name"],
            values["queries"],
            values["first_stage"],
            tuple(SystemResult.from_dict(system) for system in values["systems"]),
            {int(depth): dict(ceiling) for depth, ceiling in values["ceilings"].items()},
            tuple(Comparison(**comparison) for comparison in values["comparisons"]),
        )

    def against_first_stage(self, system: str) -> Comparison | None:
        """The comparison of a system with the first stage, None for the first stage itself."""
        pair = (system, self.first_stage)
        return next((found for found in self.comparisons if (found.a, found.b) == pair), None)

    def per_query_csv(self) -> str:
        """A line for each query and system: `query_id,system`, then a column for each measure."""
        measures = list(self.systems[0].measures)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["query_id", "system", *measures])
        for query_id in self.systems[0].per_query:
            for system in self.systems:
                values = system.per_query[query_id]
                writer.writerow([query_id, system.name, *(values[measure] for measure in measures)])
        return text.getvalue()


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """All systems on all collections.

    measures: names, the main one first: systems are compared on it. environment: `date`, `versions` (package ->
    version), `machine` (platform, processor, cores), `settings` (what decided the rankings: of the models, the first
    stages and the collections) and `notes` (sentences a reader has to know, such as queries without candidates).
    """

    measures: tuple[str, ...]
    collections: tuple[CollectionResult, ...]
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "measures": list(self.measures),
            "collections": [collection.to_dict() for collection in self.collections],
            "environment": self.environment,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvaluationResult:
        """Inverse of `to_dict`."""
        return cls(
            tuple(values["measures"]),
            tuple(CollectionResult.from_dict(collection) for collection in values["collections"]),
            dict(values["environment"]),
        )

    def means(self) -> dict[str, dict[str, float]]:
        """System -> measure -> mean over collections; a system that lacks a collection is left out.

        First stages are one system: where their names differ, it is called "first stage".
        """
        firsts = {collection.first_stage for collection in self.collections}
        first = firsts.pop() if len(firsts) == 1 else "first stage"
        rows: dict[str, list[Mapping[str, float]]] = {}
        for collection in self.collections:
            for place, system in enumerate(collection.systems):
                rows.setdefault(system.name if place else first, []).append(system.measures)
        count = len(self.collections)
        return {
            name: {measure: sum(row[measure] for row in found) / count for measure in self.measures}
            for name, found in rows.items()
            if len(found) == count
        }
