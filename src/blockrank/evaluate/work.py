"""One collection made ready: its judged queries, their candidates, and the files of its systems."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from blockrank.data import (
    Collection,
    Qrels,
    Run,
    check_ids,
    read_run,
    run_lines,
    strictly_decreasing,
    unknown_ids,
    write_run,
)
from blockrank.evaluate.journal import Journal, Outcome
from blockrank.evaluate.plan import Plan
from blockrank.keep.files import atomic_file, safe_name
from blockrank.keep.identity import digest, file_identity
from blockrank.keep.settings import Settings
from blockrank.text.characters import is_readable
from blockrank.types import Document, InputError, RankRequest

SHARD_QUERIES = 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """A collection to be ranked.

    qrels: the judgements that count. queries: the judged queries with a text. candidates: the first stage's run.
    unknown: how many of the judged documents the corpus lacks.
    """

    collection: Collection
    qrels: Qrels
    queries: dict[str, str]
    candidates: Run
    folder: Path
    unknown: int = 0

    @property
    def name(self) -> str:
        """The collection's name."""
        return self.collection.name

    def journal(self, system: str) -> Journal:
        """The journal of a system."""
        return Journal(self.folder / f"{system}.journal.jsonl")

    def run_path(self, system: str) -> Path:
        """The run file of a system, or of the first stage."""
        return self.folder / "runs" / f"{system}.trec"

    @cached_property
    def shards(self) -> list[list[str]]:
        """The judged queries that have candidates, in groups that depend on nothing else."""
        ids = [query_id for query_id in self.queries if query_id in self.candidates]
        return [ids[start : start + SHARD_QUERIES] for start in range(0, len(ids), SHARD_QUERIES)]

    def doc_ids(self, query_id: str, depth: int) -> list[str]:
        """The first `depth` candidates of a query."""
        return list(islice(self.candidates[query_id], depth))

    def documents(self, query_ids: Sequence[str], depth: int) -> dict[str, Document]:
        """The distinct first `depth` candidates of queries, in order of appearance; those without any text left out.

        Raises `InputError` where the collection lacks one.
        """
        wanted = dict.fromkeys(doc_id for query_id in query_ids for doc_id in self.doc_ids(query_id, depth))
        found = self.collection.corpus.read(wanted)
        return {doc_id: found[doc_id] for doc_id in wanted if is_readable(found[doc_id].content)}

    def request(self, query_id: str, depth: int, documents: dict[str, Document]) -> RankRequest | None:
        """The request of a query; None where none of its candidates has text."""
        found = [documents[doc_id] for doc_id in self.doc_ids(query_id, depth) if doc_id in documents]
        return RankRequest(self.queries[query_id], found, query_id) if found else None

    def is_ranked(self, system: str) -> bool:
        """Whether the journal of a system is complete."""
        return self.journal(system).shards == len(self.shards)

    def write_run(self, system: str) -> None:
        """The run file of a system whose journal is complete, whole or not at all."""
        with atomic_file(self.run_path(system)) as stream:
            stream.writelines(self._run_lines(system))

    def restore_run(self, system: str) -> None:
        """Write the run file of a system again where its journal is complete and the file is not what it says."""
        if not self.is_ranked(system):
            return
        path = self.run_path(system)
        if path.exists():
            with path.open("rb") as stream:
                if all(stream.readline() == line for line in self._run_lines(system)) and not stream.read(1):
                    return
            _log.warning("%s is not what its journal says: lines were lost or changed. It is written again.", path)
        self.write_run(system)

    def _run_lines(self, system: str) -> Iterator[bytes]:
        """The lines of a system's run. Raises `InputError` where its journal is not that of these queries."""
        journal = self.journal(system)
        for query_id, outcome in zip_longest(chain.from_iterable(self.shards), journal.outcomes()):
            if outcome is None or outcome.query_id != query_id:
                raise InputError(f"{journal.path}: the query_id {query_id!r} is not where it belongs; use --restart.")
            for line in run_lines(query_id, self._scores(outcome), system):
                yield f"{line}\n".encode()

    def _scores(self, outcome: Outcome) -> dict[str, float]:
        """Scores of all candidates of a query: the reranked ones, and below them the others in their order."""
        lowered = strictly_decreasing(outcome.scores)
        scores = dict(zip(outcome.doc_ids, lowered, strict=True))
        lowest = lowered[-1] if lowered else 0.0
        others = [doc_id for doc_id in self.candidates[outcome.query_id] if doc_id not in scores]
        return scores | {doc_id: lowest - place for place, doc_id in enumerate(others, start=1)}

    def notes(self) -> list[str]:
        """What a reader of the results has to know about the queries."""
        ranked = sum(map(len, self.shards))
        notes = []
        if self.unknown:
            judged = len(_judged_documents(self.qrels))
            notes.append(
                f"{self.name}: {self.unknown} of {judged} judged documents are not in the collection; none is found."
            )
        if textless := len(self.qrels) - len(self.queries):
            notes.append(f"{self.name}: {textless} of {len(self.qrels)} judged queries have no text; they count 0.")
        if bare := len(self.queries) - ranked:
            notes.append(f"{self.name}: {bare} of {len(self.qrels)} judged queries have no candidates; they count 0.")
        return notes


def prepare(collection: Collection, plan: Plan, settings: Settings, output: Path) -> Work:
    """Choose the judged queries, find their candidates, and enter both in the settings.

    A first-stage run that is there from before is used again. Raises `InputError` where no query can be ranked, or
    where something differs from before.
    """
    folder = output / safe_name(collection.name)
    path = folder / "runs" / f"{plan.first_stage.name}.trec"
    path.parent.mkdir(parents=True, exist_ok=True)
    queries = _judged(collection, plan.max_queries)
    qrels = {query_id: collection.qrels[query_id] for query_id in queries}
    if plan.max_queries is None:  # judged queries without a text count as well
        qrels |= {query_id: judged for query_id, judged in collection.qrels.items() if query_id not in qrels}
    for query_id in queries:
        if query_id.split() != [query_id]:
            _refuse_ids(collection, query_id, ())
    identity = _identity(collection, plan, queries)
    judgements = _judgements(collection, qrels, identity, settings.find("judgements", collection.name))
    known = settings.find("collections", collection.name)
    run = _kept_run(path, known, identity)
    kept = run is not None
    run = plan.first_stage.search(collection, queries, plan.search_depth) if run is None else run
    for query_id, scores in run.items():
        _refuse_ids(collection, query_id, scores)
    if known.get("first_stage_run") == _run_identity(run):  # other words that find the same: what is ranked stands
        settings.note("collections", collection.name, {"first_stage_words": identity["first_stage_words"]})
    settings.claim("collections", collection.name, {**identity, "first_stage_run": _run_identity(run)})
    settings.note("judgements", collection.name, judgements)
    if not kept:
        write_run(path, run, plan.first_stage.name)
    return Work(collection, qrels, queries, read_run(path), folder, judgements["unknown"])


def _kept_run(path: Path, known: Mapping[str, Any], identity: Mapping[str, Any]) -> Run | None:
    """The first stage's run of before; None where there is none, its settings were others, or it has changed."""
    if not path.exists() or not known.items() >= identity.items():
        return None
    try:
        run = read_run(path)
        if _run_identity(run) == known.get("first_stage_run"):
            return run
        _log.warning("%s is not what was written there: lines were lost or changed. It is made again.", path)
    except InputError as error:
        _log.warning("%s It is made again.", error)
    return None


def _run_identity(run: Run) -> str:
    return digest({query_id: list(scores) for query_id, scores in run.items() if scores})


def _refuse_ids(collection: Collection, query_id: str, doc_ids: Iterable[str]) -> None:
    """Raise `InputError`, with its place, on ids that a run file cannot carry."""
    try:
        check_ids(query_id, doc_ids)
    except InputError as error:
        wrong = next((doc_id for doc_id in doc_ids if doc_id.split() != [doc_id]), None)
        ours = query_id.split() == [query_id] and wrong is not None
        place = collection.document_place(str(wrong)) if ours else collection.query_place(query_id)
        raise InputError(f"{place}: {error}") from None


def _judged_documents(qrels: Qrels) -> set[str]:
    return {doc_id for judged in qrels.values() for doc_id in judged}


def _judgements(
    collection: Collection, qrels: Qrels, identity: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """What is kept of the judgements; `unknown` counts the judged documents that the corpus lacks, which the log tells.

    known: what was kept before, so that they are counted once. Raises `InputError` where the corpus lacks all of them.
    """
    judged, place = _judged_documents(qrels), collection.qrels_file or collection.source
    entry = {"count": sum(map(len, qrels.values())), "content": digest(qrels), "corpus": identity["corpus"]}
    same = known.items() >= entry.items() and isinstance(known.get("unknown"), int)
    unknown: int = known["unknown"] if same else len(unknown_ids(collection.corpus, judged))
    if unknown == len(judged):
        raise InputError(f"{place}: none of its {unknown} judged documents is in the collection: is it of another one?")
    if unknown:
        _log.warning("%s: %d of %d judged documents are not in the collection.", place, unknown, len(judged))
    return {**entry, "unknown": unknown}


def _judged(collection: Collection, most: int | None) -> dict[str, str]:
    """The first `most` judged queries that have a text, in the order of the queries."""
    judged = {q: text for q, text in collection.queries.items() if q in collection.qrels and is_readable(text)}
    if not judged:
        raise InputError(f"{collection.source}: none of its {len(collection.queries)} queries is judged.")
    return dict(islice(judged.items(), most))


def _identity(collection: Collection, plan: Plan, queries: dict[str, str]) -> dict[str, Any]:
    """What decides the rankings of a collection, but for the run itself."""
    corpus, file = collection.corpus.path, plan.first_stage.file(collection)
    return {
        "corpus": collection.source if corpus is None else file_identity(corpus),
        "queries": {"count": len(queries), "content": digest(list(queries.items()))},
        "first_stage": plan.first_stage.name,
        "first_stage_drops_own": plan.first_stage.drop_own,
        "first_stage_file": file_identity(file) if file is not None else None,
        "first_stage_words": plan.first_stage.words(collection),
        "first_stage_depth": None if file is not None else plan.search_depth,
    }
