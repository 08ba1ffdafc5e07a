"""BM25 of the first stage: the package's words against the words of bm25s, on collections in folders.

    python benchmarks/first_stage.py --collections DIR [--only NAME ...] [--depth 100] [--out FILE.json]

bm25s's own words are runs of two and more letters, digits and underscores, lower-cased, without 33 English stop words,
stemmed by Snowball's English stemmer. Both sides have k1 0.9 and b 0.4, and are measured over the judged queries.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bm25s
import ir_measures
import numpy as np
import Stemmer
from ir_measures import R, nDCG
from record import environment, write_record

from blockrank import Document
from blockrank.data import Run, open_collection
from blockrank.report.environment import versions
from blockrank.retrieve import Bm25Index

MEASURES = (nDCG @ 10, R @ 100)
K1, B = 0.9, 0.4


def plain_terms(texts: Sequence[str], **options: Any) -> Any:
    """bm25s's own words."""
    stemmer = Stemmer.Stemmer("english")
    return bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False, **options)


def plain_run(documents: Sequence[Document], queries: dict[str, str], depth: int) -> Run:
    """A first stage over bm25s's own words."""
    index = bm25s.BM25(k1=K1, b=B)
    index.index(plain_terms([document.content for document in documents]), show_progress=False)
    run: Run = {}
    for query_id, query in queries.items():
        terms = plain_terms([query], return_ids=False)[0]
        scores = index.get_scores(terms) if terms else np.zeros(len(documents), dtype=np.float32)
        best = np.argsort(-scores, kind="stable")[:depth]
        run[query_id] = {str(documents[at].doc_id): float(scores[at]) for at in best if scores[at] > 0}
    return run


def measured(qrels: Any, run: Run) -> dict[str, float]:
    """Means over the judged queries; scores become ranks, so that ties stand as they were found."""
    ranks = {query_id: {doc_id: -float(at) for at, doc_id in enumerate(found)} for query_id, found in run.items()}
    means = ir_measures.calc_aggregate(MEASURES, qrels, ranks)
    return {str(measure): round(means[measure], 4) for measure in MEASURES}


def compared(folder: Path, depth: int) -> dict[str, Any]:
    """Both sides on one collection."""
    full = folder / "full_qrels.tsv"
    collection = open_collection(folder, qrels=full if full.exists() else None)
    documents = list(collection.corpus.documents())
    qrels = {query_id: dict(grades) for query_id, grades in collection.qrels.items()}
    queries = {query_id: text for query_id, text in collection.queries.items() if query_id in qrels}
    row: dict[str, Any] = {"documents": len(documents), "queries": len(queries)}
    start = time.perf_counter()
    row["bm25s"] = measured(qrels, plain_run(documents, queries, depth))
    middle = time.perf_counter()
    row["blockrank"] = measured(qrels, Bm25Index.build(documents, k1=K1, b=B).run(queries, depth))
    row["seconds"] = {"bm25s": round(middle - start, 2), "blockrank": round(time.perf_counter() - middle, 2)}
    row["difference"] = {name: round(row["blockrank"][name] - row["bm25s"][name], 4) for name in row["bm25s"]}
    return row


def main() -> None:
    """Measure, print a table, and write a dated record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collections", type=Path, required=True)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    folders = [folder for folder in sorted(options.collections.iterdir()) if (folder / "qrels").is_dir()]
    rows: dict[str, Any] = {}
    names = [str(measure) for measure in MEASURES]
    sys.stdout.write(
        f"| collection | {' | '.join(f'{name}, bm25s | blockrank' for name in names)} |\n|---|---|---|---|---|\n"
    )
    for folder in folders:
        if options.only and folder.name not in options.only:
            continue
        row = rows[folder.name] = compared(folder, options.depth)
        cells = [f"{row[side][name]:.4f}" for name in names for side in ("bm25s", "blockrank")]
        sys.stdout.write(f"| {folder.name} | {' | '.join(cells)} |\n")
        sys.stdout.flush()
    if options.out:
        settings = {"k1": K1, "b": B, "depth": options.depth}
        found = environment()
        found["versions"] |= versions(("bm25s", "PyStemmer", "ir-measures"))
        write_record(options.out, {**found, **settings, "rows": rows})


if __name__ == "__main__":
    main()
