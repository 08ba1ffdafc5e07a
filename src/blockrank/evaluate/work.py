"""One collection made ready: its judged queries, their candidates, and the files of its systems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from blockrank.characters import is_readable
from blockrank.data import Collection, Qrels, Run, atomic_file, read_run, run_lines, strictly_decreasing, write_run
from blockrank.evaluate.journal import Journal, Outcome
from blockrank.evaluate.plan import Plan
from blockrank.evaluate.settings import Settings, digest, file_identity, safe_name
from blockrank.types import Document, InputError, RankRequest

SHARD_QUERIES = 16


@dataclass(frozen=True)
class Work:
    """A collection to be ranked.

    qrels: the judgements that count. queries: the judged queries with a text. candidates: the first stage's run.
    """

    collection: Collection
    qrels: Qrels
    queries: dict[str, str]
    candidates: Run
    folder: Path

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

    def write_run(self, system: str) -> None:
        """The run file of a system whose journal is complete, whole or not at all."""
        with atomic_file(self.run_path(system)) as stream:
            for outcome in self.journal(system).outcomes():
                for line in run_lines(outcome.query_id, self._scores(outcome), system):
                    stream.write(f"{line}\n".encode())

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
    identity = _identity(collection, plan, queries, qrels)
    kept = path.exists() and settings.find("collections", collection.name).items() >= identity.items()
    run = read_run(path) if kept else plan.first_stage.search(collection, queries, plan.search_depth)
    identity["first_stage_run"] = digest({query_id: list(scores) for query_id, scores in run.items() if scores})
    settings.claim("collections", collection.name, identity)
    if not kept:
        write_run(path, run, plan.first_stage.name)
    return Work(collection, qrels, queries, read_run(path), folder)


def _judged(collection: Collection, most: int | None) -> dict[str, str]:
    """The first `most` judged queries that have a text, in the order of the queries."""
    judged = {q: text for q, text in collection.queries.items() if q in collection.qrels and is_readable(text)}
    if not judged:
        raise InputError(f"{collection.source}: none of its {len(collection.queries)} queries is judged.")
    return dict(islice(judged.items(), most))


def _identity(collection: Collection, plan: Plan, queries: dict[str, str], qrels: Qrels) -> dict[str, Any]:
    """What decides the rankings and measures of a collection, but for the run itself."""
    corpus, file = collection.corpus.path, plan.first_stage.file(collection)
    return {
        "corpus": collection.source if corpus is None else file_identity(corpus),
        "queries": {"count": len(queries), "content": digest(list(queries.items()))},
        "judgements": {"count": sum(map(len, qrels.values())), "content": digest(qrels)},
        "first_stage": plan.first_stage.name,
        "first_stage_drops_own": plan.first_stage.drop_own,
        "first_stage_file": file_identity(file) if file is not None else None,
        "first_stage_depth": None if file is not None else plan.search_depth,
    }
