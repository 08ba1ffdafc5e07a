"""What is to be evaluated, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from blockrank.evaluate.first_stage import FirstStage
from blockrank.evaluate.measures import DEFAULT_MEASURES, cutoff_of
from blockrank.types import InputError, RequestRanker
from blockrank.types.requests import Check

REUSE_BYTES = 4 << 30
LATENCY_QUERIES = 5
_LEAST_SEARCHED = 100  # so that R@100 says something of the first stage


@dataclass(frozen=True, slots=True)
class Reranker:
    """A ranker under evaluation.

    load: called when it is first needed. settings: JSON-ready; what decides its scores, as far as that is known before
    it is loaded (such as the identity of its files): an evaluation goes on only with equal ones. checks: called before
    anything is ranked; what it gives raises `InputError` on a request that the ranker would refuse. Without it that is
    found out when the ranker is loaded.
    """

    label: str
    load: Callable[[], RequestRanker]
    settings: Mapping[str, Any] = field(default_factory=dict)
    checks: Callable[[], Check] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """How collections are evaluated.

    depths: how many candidates are reranked; each is a system of its own. measures: the first is the one that systems
    are compared on. max_queries: only the first so many judged queries. reuse_bytes: memory for documents that are
    encoded once per collection; 0 encodes them again for every query. latency_queries: how many requests are ranked
    again, alone, for their time. order_queries: of how many queries the candidates are ranked in three shuffled orders
    more, to see how far rankings depend on the order. Raises `InputError` on values out of range, and on labels that
    clash.
    """

    rerankers: tuple[Reranker, ...]
    first_stage: FirstStage = field(default_factory=FirstStage)
    depths: tuple[int, ...] = (100,)
    measures: tuple[str, ...] = DEFAULT_MEASURES
    max_queries: int | None = None
    reuse_bytes: int = REUSE_BYTES
    latency_queries: int = LATENCY_QUERIES
    order_queries: int = 0

    def __post_init__(self) -> None:
        if not self.depths or min(self.depths) < 1:
            raise InputError(f"depth must be positive, not {min(self.depths, default=None)}.")
        if not self.measures:
            raise InputError("measures is empty: there is nothing to measure.")
        if self.max_queries is not None and self.max_queries < 1:
            raise InputError(f"max_queries must be positive, not {self.max_queries}.")
        if min(self.reuse_bytes, self.latency_queries, self.order_queries) < 0:
            raise InputError("reuse_bytes, latency_queries and order_queries must not be negative.")
        labels = [self.first_stage.name]
        for reranker in self.rerankers:
            if not reranker.label or not all(sign.isalnum() or sign in "-_.+" for sign in reranker.label):
                raise InputError(f"label {reranker.label!r} must be letters, digits and -_.+ alone.")
            if reranker.label in labels:
                raise InputError(f"two systems are called {reranker.label!r}: give one another label (LABEL=MODEL).")
            labels.append(reranker.label)

    @property
    def search_depth(self) -> int:
        """How many candidates BM25 is asked for."""
        return max(_LEAST_SEARCHED, *self.depths, *map(cutoff_of, self.measures))

    def systems(self, reranker: Reranker) -> dict[str, int]:
        """The names of a reranker's systems, and their depths."""
        depths = sorted(set(self.depths))
        return {reranker.label if len(depths) == 1 else f"{reranker.label}@{depth}": depth for depth in depths}
