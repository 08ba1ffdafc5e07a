"""The ranking itself: shards of queries into journals, journals into run files, the time of single requests, and how
far rankings depend on the order of the candidates."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice

from blockrank.evaluate.journal import Journal, Outcome
from blockrank.evaluate.order import order_tau, sampled
from blockrank.evaluate.plan import Plan
from blockrank.evaluate.work import Work
from blockrank.types import Document, RankRequest, RequestRanker
from blockrank.types.progress import NamedProgress

_log = logging.getLogger(__name__)


def finished(work: Work, system: str, plan: Plan) -> bool:
    """Whether there is nothing left to do for a system on a collection."""
    journal = work.journal(system)
    return work.is_ranked(system) and _timed(journal, plan) and not _unordered(work, journal, plan)


def _timed(journal: Journal, plan: Plan) -> bool:
    return plan.latency_queries == 0 or journal.latency_queries == plan.latency_queries


def rank_collection(
    ranker: RequestRanker, work: Work, systems: Mapping[str, int], plan: Plan, progress: NamedProgress
) -> None:
    """Rank what is missing of a collection at the depth of each system, write the runs, take the times, and compare
    rankings of shuffled candidates."""
    query_ids = list(chain.from_iterable(work.shards))
    missing = not all(map(work.is_ranked, systems))
    again = [*query_ids[: plan.latency_queries], *order_queries(work, plan)]
    documents = work.documents(query_ids if missing else again, max(plan.depths))
    if missing:
        with _remembered(ranker, list(documents.values()), plan.reuse_bytes, f"{work.name}: documents", progress):
            for system, depth in systems.items():
                _rank_shards(ranker, work, work.journal(system), depth, documents, f"{work.name}: {system}", progress)
    for system, depth in systems.items():
        work.write_run(system)
        if not _timed(journal := work.journal(system), plan):
            requests = (work.request(query_id, depth, documents) for query_id in query_ids)
            timed = list(islice((request for request in requests if request is not None), plan.latency_queries))
            journal.append_latency(
                plan.latency_queries, _latency_ms(ranker, timed, f"{work.name}: {system} timed", progress)
            )
        _compare_orders(ranker, work, journal, depth, documents, plan, f"{work.name}: {system} shuffled", progress)


def order_queries(work: Work, plan: Plan) -> list[str]:
    """The queries whose candidates are shuffled: always the same for a collection and a number of them."""
    return sampled(list(chain.from_iterable(work.shards)), plan.order_queries)


def _unordered(work: Work, journal: Journal, plan: Plan) -> list[str]:
    """Those of them that the journal lacks."""
    return [query_id for query_id in order_queries(work, plan) if query_id not in journal.order_taus]


def _compare_orders(
    ranker: RequestRanker, work: Work, journal: Journal, depth: int, documents: dict[str, Document], plan: Plan,
    what: str, progress: NamedProgress,
) -> None:  # fmt: skip
    """Rank shuffled candidates of the queries that the journal lacks; each is on disk before the next begins."""
    missing = _unordered(work, journal, plan)
    for done, query_id in enumerate(missing):
        progress(what, done, len(missing))
        journal.append_order_tau(query_id, order_tau(ranker, work.request(query_id, depth, documents)))
    if missing:
        progress(what, len(missing), len(missing))


@contextmanager
def _remembered(
    ranker: RequestRanker, documents: Sequence[Document], most: int, what: str, progress: NamedProgress
) -> Iterator[None]:
    """Keep documents encoded while the block runs, where the ranker can."""
    if not most:
        yield
        return
    if not ranker.remember(documents, most, lambda done, of: progress(what, done, of)):
        _log.info("%s are encoded again for every query: the ranker or the memory does not allow reuse.", what)
    try:
        yield
    finally:
        ranker.forget()


def _rank_shards(
    ranker: RequestRanker, work: Work, journal: Journal, depth: int, documents: dict[str, Document], what: str,
    progress: NamedProgress,
) -> None:  # fmt: skip
    """Rank the shards that the journal lacks."""
    total, done = sum(map(len, work.shards)), sum(map(len, work.shards[: journal.shards]))
    progress(what, done, total)
    missing = work.shards[journal.shards :]
    groups = (_requests(work, query_ids, depth, documents) for query_ids in missing)
    for query_ids, rankings in zip(missing, ranker.rank_groups(groups), strict=True):
        outcomes = {query_id: Outcome(query_id, [], []) for query_id in query_ids}
        journal.append_shard([*(outcomes | {ranking.query_id: Outcome.of(ranking) for ranking in rankings}).values()])
        done += len(query_ids)
        progress(what, done, total)


def _requests(work: Work, query_ids: Sequence[str], depth: int, documents: dict[str, Document]) -> list[RankRequest]:
    """The requests of a shard; queries none of whose candidates has text have none."""
    found = (work.request(query_id, depth, documents) for query_id in query_ids)
    return [request for request in found if request is not None]


def _latency_ms(
    ranker: RequestRanker, requests: Sequence[RankRequest], what: str, progress: NamedProgress
) -> list[float]:
    """Milliseconds of each request ranked alone, after one that warms up."""
    times: list[float] = []
    for request in [*requests[:1], *requests]:
        progress(what, len(times), len(requests) + 1)
        start = time.perf_counter()
        ranker.rank_many([request])
        times.append(1000 * (time.perf_counter() - start))
    progress(what, len(times), len(times))
    return times[1:]
