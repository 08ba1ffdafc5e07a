"""Whether a ranker under strategies will take a request, known without the ranker's weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from blockrank.errors import InputError
from blockrank.scorers.checking import RequestCheck
from blockrank.spec import RankSpec
from blockrank.strategies.registry import in_strategies
from blockrank.types import Ranking, RankRequest, RequestRanker
from blockrank.types.requests import one_by_one


@dataclass(frozen=True)
class StrategyCheck:
    """Refuses what a ranker under strategies refuses, which sees few documents at once.

    Each document is checked beside a single other one. How many the ranker will see at once, and whether its scores are
    of a kind that the strategies take, is tried with as many short documents. text: as `in_strategies` takes it.
    """

    check: RequestCheck
    text: str
    _tried: set[int] = field(default_factory=set, repr=False)

    @property
    def spec(self) -> RankSpec:
        """How the ranker will read, as `RequestCheck` has it."""
        return self.check.spec

    def check_evidence(self) -> None:
        """Raise `InputError` where the scorer gives no evidence."""
        self.check.check_evidence()

    def __call__(self, request: RankRequest) -> None:
        """Raise `InputError` on a query over the limit, on a query or a document that cannot be tokenised, and where
        the strategies ask for more documents at once than the scorer takes."""
        for _, pair in one_by_one(replace(request, evidence=False)):
            self.check(pair)
        count = len(request.readable)
        if count not in self._tried:
            self._try(count)
            self._tried.add(count)

    @cached_property
    def _ranker(self) -> RequestRanker:
        """Made once: a strategy may load a first ranker."""
        return in_strategies(_Unweighted(self.check), self.text)

    def _try(self, count: int) -> None:
        documents = [f"document {number}" for number in range(count)]
        try:
            self._ranker.rank_many([RankRequest("query", documents)])
        except InputError as error:
            raise InputError(f"strategy {self.text!r}: {error}") from None


@dataclass(frozen=True)
class _Unweighted(RequestRanker):
    """Leaves documents in their order, and refuses what the ranker would that it stands for."""

    check: RequestCheck

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        """See `RequestRanker.rank_iter`: scores of the scorer's kind."""
        kind = self.check.scorer.kind
        for request in requests:
            self.check(request)
            ranks = range(1, len(request.readable) + 1)
            total = sum(1 / rank for rank in ranks)
            scores = [-float(rank) if kind == "order" else 1 / rank / total for rank in ranks]
            yield Ranking.from_scores(request, scores, kind=kind)

    def identity(self) -> dict[str, Any]:
        """See `RequestRanker.identity`."""
        return {"ranker": "unweighted"}
