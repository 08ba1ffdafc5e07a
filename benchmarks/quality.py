"""nDCG@10 and more of a model on judged collections in BEIR layout, reranking a given first-stage run.

    python benchmarks/quality.py --collections DIR [--model FOLDER] [--dtype bfloat16] [--depth 100] [--only NAME ...]

Each folder of DIR holds `corpus.jsonl.gz`, `queries.jsonl.gz`, `qrels/test.tsv` and `runs/`; `runs/bm25.trec` is taken
where there is one, else `runs/bm25s_top100.trec`, and `full_qrels.tsv` where there is one. Where a model's documents
depend on neither the query nor each other, each distinct document is encoded once and its keys are used again: the
same forward and the same read-out, and the scores are checked against `Ranker.rank` on the first query of each set.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ir_measures
import numpy as np
import torch
from record import environment, write_record
from torch import Tensor
from tqdm import tqdm

from blockrank import Document, Ranker, RankRequest
from blockrank.layout import Segment, TokenisedRequest, pack
from blockrank.signals import log_scores

_log = logging.getLogger("quality")
MEASURES = [ir_measures.parse_measure(name) for name in ("nDCG@10", "RR@10", "P@1", "R@100")]
_ENCODE_TOKENS = 8192


@dataclass(frozen=True)
class Collection:
    """A judged collection: texts by id, and a first-stage run of at most `depth` candidates a query."""

    name: str
    documents: dict[str, Document]
    queries: dict[str, str]
    qrels: list[ir_measures.Qrel]
    run: dict[str, list[str]]


def read_collection(folder: Path, depth: int) -> Collection:
    """Read a folder; only judged queries and the documents their candidates name are kept."""
    full, given = folder / "full_qrels.tsv", folder / "runs" / "bm25.trec"
    lines = (full if full.exists() else folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    qrels = [ir_measures.Qrel(query, document, int(float(gain))) for query, document, gain in rows]
    judged = {qrel.query_id for qrel in qrels}
    run: dict[str, list[str]] = defaultdict(list)
    path = given if given.exists() else folder / "runs" / "bm25s_top100.trec"
    for line in path.read_text(encoding="utf-8").splitlines():
        query, _, document, *_rest = line.split()
        if query in judged and len(run[query]) < depth:
            run[query].append(document)
    wanted = {document for candidates in run.values() for document in candidates}
    documents = {}
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["_id"] in wanted:
                documents[row["_id"]] = Document(row["text"], row["_id"], row.get("title") or "")
    with gzip.open(folder / "queries.jsonl.gz", "rt", encoding="utf-8") as file:
        queries = {row["_id"]: row["text"] for row in map(json.loads, file) if row["_id"] in run}
    return Collection(folder.name, documents, queries, qrels, dict(run))


class DocumentKeys:
    """Keys of distinct documents at the scoring layer, encoded once (exact for query-free, id-free templates)."""

    def __init__(self, ranker: Ranker, collection: Collection) -> None:
        spec = ranker.spec
        assert spec.query_reads == "own", "keys of a document are its own"
        assert not spec.prompt.reads_query_first, "no document depends on the query"
        assert not spec.prompt.numbers_documents, "no document depends on its place"
        self._ranker, self._keys = ranker, dict[str, tuple[Segment, Tensor]]()
        requests = {
            doc_id: ranker.tokenise(RankRequest("q", [document])) for doc_id, document in collection.documents.items()
        }
        order = sorted(requests, key=lambda doc_id: requests[doc_id].length)
        for batch in tqdm(_batches(order, [requests[i].length for i in order]), desc=collection.name, disable=None):
            self._encode(batch, [requests[doc_id] for doc_id in batch])

    @torch.inference_mode()
    def _encode(self, doc_ids: Sequence[str], requests: Sequence[TokenisedRequest]) -> None:
        layout = pack(requests, self._ranker.spec)
        keys = self._ranker.model.forward(layout).k_PKH
        for doc_id, request, segment in zip(doc_ids, requests, layout.document_segment_C, strict=True):
            rows = keys[int(layout.starts_S[segment]) : int(layout.ends_S[segment])].clone()
            self._keys[doc_id] = (request.documents[0], rows)

    @torch.inference_mode()
    def scores(self, query: str, doc_ids: Sequence[str]) -> list[float]:
        """Scores of a request whose documents are all encoded."""
        frame = self._ranker.tokenise(RankRequest(query, ["d"]))
        instruction, tail = frame.segments[0], frame.segments[-1]
        own = self._ranker.model.forward(pack([TokenisedRequest((instruction, tail))], self._ranker.spec))
        stored = [self._keys[doc_id] for doc_id in doc_ids]
        layout = pack([TokenisedRequest((instruction, *(s for s, _ in stored), tail))], self._ranker.spec)
        head = len(instruction.ids)
        keys = torch.cat([own.k_PKH[:head], *(rows for _, rows in stored), own.k_PKH[head:]])
        result: list[float] = log_scores(own.q_GNH, keys, layout, self._ranker.spec, own.scale).exp().tolist()
        return result


def _batches(order: Sequence[str], lengths: Sequence[int]) -> list[list[str]]:
    batches: list[list[str]] = [[]]
    total = 0
    for doc_id, length in zip(order, lengths, strict=True):
        if batches[-1] and total + length > _ENCODE_TOKENS:
            batches.append([])
            total = 0
        batches[-1].append(doc_id)
        total += length
    return batches


def rerank(ranker: Ranker, collection: Collection) -> dict[str, dict[str, float]]:
    """Scores by query and document."""
    keys = DocumentKeys(ranker, collection)
    run = {}
    for number, (query_id, query) in enumerate(collection.queries.items()):
        doc_ids = collection.run[query_id]
        scores = keys.scores(query, doc_ids)
        if number == 0:
            ranking = ranker.rank(query, [collection.documents[doc_id] for doc_id in doc_ids])
            alone = {entry.doc_id: entry.score for entry in ranking}
            close = 1e-5 if ranker.model.dtype == torch.float32 else 1e-1
            assert np.allclose(scores, [alone[doc_id] for doc_id in doc_ids], atol=close), "reuse must be exact"
        run[query_id] = dict(zip(doc_ids, scores, strict=True))
    return run


def measure(collection: Collection, run: dict[str, dict[str, float]]) -> dict[str, float]:
    """All measures, ties broken by candidate order as the ranker does."""
    scored = []
    for query_id, scores in run.items():
        order = sorted(scores, key=lambda doc_id: -scores[doc_id])
        scored += [ir_measures.ScoredDoc(query_id, doc_id, -float(rank)) for rank, doc_id in enumerate(order)]
    values = ir_measures.calc_aggregate(MEASURES, collection.qrels, scored)
    return {str(name): round(float(value), 4) for name, value in values.items()}


def main() -> None:
    """Measure and write a dated record."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collections", type=Path, required=True)
    parser.add_argument("--model", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    logging.getLogger("blockrank").setLevel(logging.ERROR)  # cuts are many and expected here
    ranker = Ranker.from_pretrained(options.model, dtype=options.dtype)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for folder in sorted(options.collections.iterdir()):
        if not (folder / "corpus.jsonl.gz").exists() or (options.only and folder.name not in options.only):
            continue
        start, collection = time.perf_counter(), read_collection(folder, options.depth)
        first = {q: {d: -float(rank) for rank, d in enumerate(ids)} for q, ids in collection.run.items()}
        rows[folder.name] = {
            "first_stage": measure(collection, first),
            "reranked": measure(collection, rerank(ranker, collection)),
        }
        entry = rows[folder.name]
        _log.info(
            "%-20s queries %4d  nDCG@10 %.4f -> %.4f  (%.0f s)",
            folder.name, len(collection.queries), entry["first_stage"]["nDCG@10"], entry["reranked"]["nDCG@10"],
            time.perf_counter() - start,
        )  # fmt: skip
    mean = {k: float(np.mean([row[k]["nDCG@10"] for row in rows.values()])) for k in ("first_stage", "reranked")}
    _log.info("mean nDCG@10 over %d: %.4f -> %.4f", len(rows), mean["first_stage"], mean["reranked"])
    if options.out:
        settings = {"model": options.model or "embedded", "dtype": str(ranker.model.dtype), "depth": options.depth}
        record = {**settings, "mean_nDCG@10": mean, "rows": rows}
        write_record(options.out, {**environment(), **record})


if __name__ == "__main__":
    main()
