"""The judged requests of an analysis: queries of a collection, their candidates and what is relevant of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blockrank.analyze.settings import AnalysisSettings
from blockrank.data import Collection, Run
from blockrank.evaluate.first_stage import FirstStage
from blockrank.text.characters import is_readable
from blockrank.types import Document, InputError, RankRequest

_DRAWN = 20  # judged queries searched for each one wanted: bounds the first stage's work on large collections
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JudgedRequest:
    """A request with what is known of its candidates.

    relevance_C: graded, 0 where not judged or judged not relevant. first_stage_C: the place of each candidate in the
    first stage's order, from 0. ideal: relevance above zero of everything judged, descending: the ideal ranking.
    """

    request: RankRequest
    relevance_C: NDArray[np.int64]
    first_stage_C: NDArray[np.int64]
    ideal: tuple[int, ...]

    def some(self, count: int, generator: np.random.Generator) -> JudgedRequest:
        """A smaller request: the first of the relevant candidates, at most a third of `count`, and the first of the
        others, in random order."""
        order = np.argsort(self.first_stage_C)
        relevant = order[self.relevance_C[order] > 0][: max(1, count // 3)]
        others = order[self.relevance_C[order] <= 0][: count - len(relevant)]
        return self._at(generator.permutation(np.concatenate([relevant, others])))

    def shuffled(self, generator: np.random.Generator) -> JudgedRequest:
        """The same candidates in random order."""
        return self._at(generator.permutation(len(self.relevance_C)))

    def _at(self, places: NDArray[np.int64]) -> JudgedRequest:
        request = RankRequest(
            self.request.query, [self.request.candidates[i] for i in places], self.request.query_id
        )  # fmt: skip
        return JudgedRequest(request, self.relevance_C[places], self.first_stage_C[places], self.ideal)


def judged_requests(collection: Collection, first_stage: FirstStage, settings: AnalysisSettings) -> list[JudgedRequest]:
    """Judged queries with a relevant candidate and another one, at most as many as wanted, in random order.

    Candidates without any text are left out. Raises `InputError` where fewer than two queries have a relevant one.
    """
    generator = np.random.default_rng(settings.seed)
    names = [query_id for query_id in collection.qrels if is_readable(collection.queries.get(query_id, ""))]
    drawn = [names[i] for i in generator.permutation(len(names))[: _DRAWN * settings.queries]]
    run = first_stage.search(collection, {name: collection.queries[name] for name in drawn}, settings.candidates)
    useful = [name for name in drawn if _is_useful(collection, run, name, settings.candidates)][: settings.queries]
    wanted = {doc_id: None for name in useful for doc_id in list(run[name])[: settings.candidates]}
    documents = {doc_id: item for doc_id, item in collection.corpus.read(wanted).items() if is_readable(item.content)}
    made = [_judged(collection, name, list(run[name])[: settings.candidates], documents) for name in useful]
    found = [item for item in made if item is not None]
    if len(found) < 2:
        raise InputError(
            f"{collection.source}: {len(found)} judged queries have both a relevant document and another among the "
            f"first {settings.candidates} of {first_stage.source}; an analysis needs at least two."
        )
    _log.info("%s: %d judged queries with a relevant candidate.", collection.name, len(found))
    return [item.shuffled(generator) for item in found] if settings.shuffle else found


def _is_useful(collection: Collection, run: Run, name: str, depth: int) -> bool:
    """Whether one of the first candidates is relevant and another is not: else every order is as good."""
    relevant = [collection.qrels[name].get(doc_id, 0) > 0 for doc_id in list(run.get(name, ()))[:depth]]
    return any(relevant) and not all(relevant)


def _judged(
    collection: Collection, name: str, doc_ids: Sequence[str], documents: dict[str, Document]
) -> JudgedRequest | None:
    """The request of a query; None where its candidates with text are all relevant, or none of them is."""
    kept = [doc_id for doc_id in doc_ids if doc_id in documents]
    qrels = collection.qrels[name]
    relevance = np.array([max(qrels.get(doc_id, 0), 0) for doc_id in kept], dtype=np.int64)
    if not relevance.any() or relevance.all():
        return None
    request = RankRequest(collection.queries[name], [documents[doc_id] for doc_id in kept], name)
    ideal = tuple(sorted((value for value in qrels.values() if value > 0), reverse=True))
    return JudgedRequest(request, relevance, np.arange(len(kept)), ideal)
