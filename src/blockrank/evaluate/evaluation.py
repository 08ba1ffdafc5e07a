"""An evaluation: rerankers over a first stage on judged collections, resumable at any moment.

The judged queries are ranked in fixed shards, each on disk in a journal before the next begins; documents are encoded
in groups that depend on the collection alone. So an evaluation that was killed and is started again ends with the same
run files, byte for byte. Candidates below a system's depth, and those without any text, keep the first stage's order
under the reranked ones, so that reranking few candidates costs no recall.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

from blockrank import __version__
from blockrank.data import Collection, read_run
from blockrank.evaluate.checks import check_measures, check_of, check_works
from blockrank.evaluate.compare import compare
from blockrank.evaluate.measures import aggregate, ideal, per_query, summary, without_failing
from blockrank.evaluate.plan import Plan, Reranker
from blockrank.evaluate.ranking import finished, order_queries, rank_collection
from blockrank.evaluate.results import CollectionResult, EvaluationResult, SystemResult
from blockrank.evaluate.settings import RankingSettings
from blockrank.evaluate.tables import text_table
from blockrank.evaluate.work import SHARD_QUERIES, Work, prepare
from blockrank.keep.files import atomic_file, safe_name
from blockrank.keep.identity import ranker_identity
from blockrank.keep.settings import Settings, locked
from blockrank.report.environment import installed, machine, versions
from blockrank.types import InputError, RequestRanker
from blockrank.types.progress import NamedProgress

_DECISIVE = ("torch", "transformers")  # another version may round otherwise
_REPORTED = (*_DECISIVE, "numpy", "ir-measures", "bm25s")


def evaluate(
    collections: Sequence[Collection],
    plan: Plan,
    output: str | Path,
    *,
    restart: bool = False,
    progress: NamedProgress | None = None,
) -> EvaluationResult:
    """Rank, measure and compare; go on where an earlier evaluation in the folder `output` was ended.

    Writes `results.json`, `results.md`, `settings.json` and, for each collection, its runs, journals and
    `per_query.csv`. restart: drop what is there and begin again. progress: called with what is done, how much of it,
    and of how much.

    Raises `InputError` where the folder holds an evaluation with other settings, is used by another process, or the
    collections cannot be evaluated.
    """
    folder = Path(output)
    names = [safe_name(collection.name) for collection in collections]
    if len(set(names)) < len(names):
        raise InputError(f"two collections have the same name: {', '.join(sorted(names))}.")
    check_measures(collections, plan)
    with locked(folder):
        settings = RankingSettings(folder)
        if restart:
            settings.clear()
        _claim(plan, settings)
        works = [prepare(collection, plan, settings, folder) for collection in collections]
        check_works(works, plan, {item.label: item.checks() if item.checks else None for item in plan.rerankers})
        for reranker in plan.rerankers:
            for work, system in product(works, plan.systems(reranker)):
                work.restore_run(system)
            _rank(reranker, works, plan, settings, progress or _silent)
        result = _result(works, plan, settings)
        _write(result, works, folder)
    return result


def _silent(_what: str, _done: int, _of: int) -> None:
    """Report no progress."""


def _claim(plan: Plan, settings: Settings) -> None:
    """Enter what is known before anything is loaded."""
    common = {
        "blockrank": __version__,
        **{name: installed(name) for name in _DECISIVE},
        "shard_queries": SHARD_QUERIES,
        "unranked_candidates": "below the reranked ones, in the first stage's order",
        "reuse_bytes": plan.reuse_bytes,
    }
    settings.claim("evaluation", "all systems", common)
    for reranker in plan.rerankers:
        for system, depth in plan.systems(reranker).items():
            settings.claim("systems", system, {"label": reranker.label, "depth": depth, **reranker.settings})


def _rank(reranker: Reranker, works: Sequence[Work], plan: Plan, settings: Settings, progress: NamedProgress) -> None:
    """All systems of one reranker on all collections; it is loaded when a query needs it."""
    ranker: RequestRanker | None = None
    for work in works:
        systems = {name: depth for name, depth in plan.systems(reranker).items() if not finished(work, name, plan)}
        if systems and ranker is None:
            ranker = reranker.load()
            settings.claim("loaded", reranker.label, ranker_identity(ranker))
            if reranker.checks is None:
                check_works(works, replace(plan, rerankers=(reranker,)), {reranker.label: check_of(ranker)})
        if systems and ranker is not None:
            rank_collection(ranker, work, systems, plan, progress)


def _result(works: Sequence[Work], plan: Plan, settings: Settings) -> EvaluationResult:
    found, measures, failures = without_failing(
        plan.measures, lambda names: [_collection(work, replace(plan, measures=names)) for work in works]
    )
    environment = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(_REPORTED),
        "machine": machine(),
        "settings": settings.entries,
        "notes": [*(note for _, notes in found for note in notes), *map(str, failures)],
    }
    return EvaluationResult(measures, tuple(collection for collection, _ in found), environment)


def _collection(work: Work, plan: Plan) -> tuple[CollectionResult, list[str]]:
    """Everything about one collection, and notes a reader needs."""
    values = per_query(work.candidates, work.qrels, plan.measures)
    longest, candidates = max(map(len, work.candidates.values())), sum(map(len, work.candidates.values()))
    first = plan.first_stage.name
    systems = [SystemResult(first, longest, summary(values, plan.measures), values, None, candidates, 0, 0)]
    notes = work.notes()
    for reranker in plan.rerankers:
        for system, depth in plan.systems(reranker).items():
            systems.append(_system(work, system, depth, plan))
            if empty := sum(min(depth, len(found)) for found in work.candidates.values()) - systems[-1].documents:
                notes.append(f"{work.name}: {empty} candidates of {system} have no text; they were not reranked.")
    main = plan.measures[0]
    compared = {system.name: {query_id: row[main] for query_id, row in system.per_query.items()} for system in systems}
    ceilings = {
        depth: aggregate(ideal(work.candidates, work.qrels, depth), work.qrels, plan.measures)
        for depth in sorted(set(plan.depths))
    }
    result = CollectionResult(
        work.name, len(work.qrels), first, tuple(systems), ceilings, compare(compared, main)
    )  # fmt: skip
    return result, notes


def _system(work: Work, system: str, depth: int, plan: Plan) -> SystemResult:
    documents = cut_documents = cut_queries = repaired = 0
    calls: list[int | None] = []
    read_tokens: list[int | None] = []
    journal = work.journal(system)
    for outcome in journal.outcomes():
        documents += len(outcome.doc_ids)
        cut_documents += outcome.cut_documents
        cut_queries += outcome.query_cut
        repaired += outcome.repaired
        if outcome.doc_ids:  # others were not ranked
            calls.append(outcome.calls)
            read_tokens.append(outcome.read_tokens)
    values = per_query(read_run(work.run_path(system)), work.qrels, plan.measures)
    latency = statistics.median(journal.latency_ms) if plan.latency_queries and journal.latency_ms else None
    taus = [journal.order_taus.get(query_id) for query_id in order_queries(work, plan)]
    return SystemResult(
        system, depth, summary(values, plan.measures), values, latency, documents, cut_documents, cut_queries,
        _mean(calls), _mean(read_tokens), repaired, _mean([tau for tau in taus if tau is not None]),
    )  # fmt: skip


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where there is no value, or one is not known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _write(result: EvaluationResult, works: Sequence[Work], folder: Path) -> None:
    """The results, each file whole or not at all."""
    texts = {
        folder / "results.json": json.dumps(result.to_dict(), indent=1, ensure_ascii=False) + "\n",
        folder / "results.md": text_table(result, markdown=True) + "\n",
    }
    for work, found in zip(works, result.collections, strict=True):
        texts[work.folder / "per_query.csv"] = found.per_query_csv()
    for path, text in texts.items():
        with atomic_file(path) as stream:
            stream.write(text.encode())
