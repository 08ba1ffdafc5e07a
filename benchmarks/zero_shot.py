"""Which rankers work with an instruct model that nobody trained to rank, and what they cost.

    python benchmarks/zero_shot.py prepare REQUESTS.json.gz COLLECTION ... [--queries 30] [--depth 50]
    python benchmarks/zero_shot.py rank REQUESTS.json.gz MODEL RANKINGS.json [--device cuda] [--only NAME ...]
    python benchmarks/zero_shot.py measure REQUESTS.json.gz RANKINGS.json --out FILE

Three steps, because the middle one may run where there is a GPU and neither collections nor evaluators. `prepare` draws
judged queries of BEIR folders (a run `runs/bm25s_top100.trec` gives their candidates, best first). `rank` ranks each by
every method, one request at a time after one that is not counted, all in one process, and notes seconds, calls, tokens
and repaired answers. `measure` computes nDCG@10, compares each method with the first stage, and writes the record.

A method that has used up `--most-seconds` ranks no further query of a collection: it is then measured on those that it
has ranked, and the table says how many.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import environment, write_record

from blockrank import BlockrankError, Ranker, RequestRanker
from blockrank.strategies import STRATEGIES

# name -> scorer, strategy ("" for none); all by the same instruct model
METHODS = {
    "icr, best candidate first": ("icr:order=best_first", ""),
    "icr, best candidate last": ("icr:order=best_last", ""),
    "icr, best first, not calibrated": ("icr:order=best_first,calibrate=false,token_filter=false", ""),
    "icr, best first, middle third of the layers": ("icr:order=best_first,layers=10..19", ""),
    "pointwise": ("pointwise", ""),
    "first_token, sliding window": ("first_token", "sliding:size=20,step=10"),
    "listwise, sliding window": ("listwise", "sliding:size=20,step=10"),
    "setwise, heap": ("setwise", "heap:size=10,top=10"),
    "setwise, sliding window": ("setwise", "sliding:size=20,step=10"),
    "embedding": ("embedding", ""),
    "groupwise, groups of ten": ("groupwise:temperature=0,max_new_tokens=160", "partition:size=10"),
}
EMBEDDED = "blockrank, embedded model"
FIRST, RANDOM = "first stage (BM25)", "random order"
_CHARACTERS, _SEGMENT = 1000, 160  # of a text, and tokens of it
_RESAMPLES = 10_000


def prepare(options: argparse.Namespace) -> None:
    """Write queries, candidates and judgements of some collections as one file."""
    from blockrank.data import open_collection, read_run

    found = {}
    for folder in options.collections:
        collection = open_collection(folder)
        run = read_run(folder / "runs" / "bm25s_top100.trec")
        judged = sorted(set(collection.queries) & set(collection.qrels) & set(run))
        chosen = random.Random(options.seed).sample(judged, min(options.queries, len(judged)))
        candidates = {query: list(run[query])[: options.depth] for query in chosen}
        texts = collection.corpus.read({doc for docs in candidates.values() for doc in docs})
        found[collection.name] = [
            {
                "query_id": query,
                "query": collection.queries[query],
                "documents": [{"id": doc, "text": texts[doc].content[:_CHARACTERS]} for doc in candidates[query]],
                "qrels": collection.qrels[query],
            }
            for query in chosen
        ]
    options.requests.write_bytes(gzip.compress(json.dumps(found).encode(), mtime=0))


def rank(options: argparse.Namespace) -> None:
    """Rank every query by every method."""
    requests = read_requests(options.requests)
    found: dict[str, Any] = {"model": options.model.name, "methods": {}}
    for name in [*METHODS, EMBEDDED]:
        if options.only and name not in options.only:
            continue
        started = time.perf_counter()
        try:
            ranker = made(name, options)
            found["methods"][name] = ranked(ranker, requests, options)
        except BlockrankError as error:
            found["methods"][name] = {"error": str(error)}
        sys.stderr.write(f"{name}: {time.perf_counter() - started:.0f} s\n")
        options.rankings.write_text(json.dumps({**environment(), **found}), encoding="utf-8")


def made(name: str, options: argparse.Namespace) -> RequestRanker:
    """The ranker of a method."""
    dtype = "bfloat16" if options.device.startswith("cuda") else "float32"
    if name == EMBEDDED:
        return Ranker.from_pretrained(device=options.device, dtype=dtype)
    scorer, strategy = METHODS[name]
    ranker = Ranker.from_pretrained(options.model, scorer=scorer, device=options.device, dtype=dtype)
    ranker = ranker.with_spec(max_segment_tokens=_SEGMENT)
    return STRATEGIES.make(strategy, ranker) if strategy else ranker


def ranked(ranker: RequestRanker, requests: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Rankings of each collection with what they cost, and the sum."""
    found: dict[str, Any] = {}
    for collection, items in requests.items():
        ranker.rank(items[0]["query"], items[0]["documents"])
        rankings, seconds = {}, []
        for item in items:
            if sum(seconds) > options.most_seconds:
                break
            synchronise(options.device)
            start = time.perf_counter()
            ranking = ranker.rank(item["query"], item["documents"])
            synchronise(options.device)
            seconds.append(time.perf_counter() - start)
            rankings[item["query_id"]] = ranking
        found[collection] = {
            "run": {query: ranking.doc_ids for query, ranking in rankings.items()},
            "median_ms": 1000 * statistics.median(seconds),
            "calls": statistics.fmean(ranking.calls for ranking in rankings.values()),
            "read_tokens": statistics.fmean(ranking.read_tokens for ranking in rankings.values()),
            "repaired": sum(ranking.repaired for ranking in rankings.values()),
        }
    return found


def synchronise(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure(options: argparse.Namespace) -> None:
    """Write the record, and print the table."""
    requests = read_requests(options.requests)
    found = json.loads(options.rankings.read_text(encoding="utf-8"))
    methods = found.pop("methods")
    first = first_runs(requests)
    rows = [row(FIRST, first, requests, first), row(RANDOM, random_runs(requests), requests, first)]
    for name, parts in methods.items():
        if "error" in parts:
            rows.append({"method": name, "error": parts["error"]})
            continue
        costs = {key: statistics.fmean(part[key] for part in parts.values()) for key in ("median_ms", "calls")}
        costs["read_tokens"] = statistics.fmean(part["read_tokens"] for part in parts.values())
        costs["repaired"] = sum(part["repaired"] for part in parts.values())
        runs = {collection: part["run"] for collection, part in parts.items()}
        rows.append({**row(name, runs, requests, first), **costs})
    kept = {name: len(items) for name, items in requests.items()}
    depth = max(len(item["documents"]) for items in requests.values() for item in items)
    write_record(options.out, {**found, "queries": kept, "depth": depth, "rows": rows})
    sys.stdout.write(table(rows, kept))


def row(name: str, runs: dict[str, Any], requests: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """Quality of one method, beside the first stage on the queries that it has ranked."""
    from blockrank.evaluate.compare import randomisation_p

    means, gains, counts = {}, [], {}
    for collection, items in requests.items():
        qrels = {item["query_id"]: item["qrels"] for item in items if item["query_id"] in runs[collection]}
        own, base = ndcg(runs[collection], qrels), ndcg(first[collection], qrels)
        means[collection] = statistics.fmean(own.values())
        gains += [own[query] - base[query] for query in qrels]
        counts[collection] = len(qrels)
    return {
        "method": name,
        "ndcg": {**means, "mean": statistics.fmean(means.values())},
        "queries": counts,
        "gain": statistics.fmean(gains),
        "p": randomisation_p(np.array(gains), _RESAMPLES) if any(gains) else None,
    }


def ndcg(run: dict[str, list[str]], qrels: dict[str, dict[str, int]]) -> dict[str, float]:
    """nDCG@10 of each judged query."""
    from blockrank.data import Run
    from blockrank.evaluate.measures import per_query

    scored = Run()
    for query in qrels:
        scored[query] = {doc: float(-place) for place, doc in enumerate(run[query])}
    return {query: values["nDCG@10"] for query, values in per_query(scored, qrels, ["nDCG@10"]).items()}


def first_runs(requests: dict[str, Any]) -> dict[str, Any]:
    """The candidates as they were given."""
    return {
        collection: {item["query_id"]: [doc["id"] for doc in item["documents"]] for item in items}
        for collection, items in requests.items()
    }


def random_runs(requests: dict[str, Any]) -> dict[str, Any]:
    """The candidates in an order by chance."""
    source = random.Random(0)
    return {
        collection: {query: source.sample(docs, len(docs)) for query, docs in queries.items()}
        for collection, queries in first_runs(requests).items()
    }


def table(rows: list[dict[str, Any]], collections: dict[str, int]) -> str:
    """A row a method, in Markdown. collections: how many queries each has; a row with fewer says so in brackets."""
    head = ["method", *collections, "mean", "against BM25", "ms", "calls", "tokens", "repaired"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for item in rows:
        if "error" in item:
            lines.append(f"| {item['method']} | {item['error']} |" + " |" * (len(head) - 2))
            continue
        few = {name: f" ({count})" if count < collections[name] else "" for name, count in item["queries"].items()}
        cells = [f"{item['ndcg'][name]:.3f}{few[name]}" for name in collections] + [f"{item['ndcg']['mean']:.3f}"]
        cells.append("" if item["p"] is None else f"{item['gain']:+.3f} (p {item['p']:.2g})")
        cells += [
            f"{item[key]:.0f}" if key in item else "" for key in ("median_ms", "calls", "read_tokens", "repaired")
        ]
        lines.append(f"| {item['method']} | " + " | ".join(cells) + " |")
    return "".join(f"{line}\n" for line in lines)


def read_requests(path: Path) -> dict[str, Any]:
    """What `prepare` has written."""
    found: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return found


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True)
    first = steps.add_parser("prepare")
    first.add_argument("requests", type=Path)
    first.add_argument("collections", type=Path, nargs="+")
    first.add_argument("--queries", type=int, default=30)
    first.add_argument("--depth", type=int, default=50)
    first.add_argument("--seed", type=int, default=0)
    first.set_defaults(step=prepare)
    middle = steps.add_parser("rank")
    middle.add_argument("requests", type=Path)
    middle.add_argument("model", type=Path)
    middle.add_argument("rankings", type=Path)
    middle.add_argument("--device", default="cuda")
    middle.add_argument("--most-seconds", type=float, default=15.0, help="for each method and collection")
    middle.add_argument("--only", nargs="+", choices=[*METHODS, EMBEDDED], default=None)
    middle.set_defaults(step=rank)
    last = steps.add_parser("measure")
    last.add_argument("requests", type=Path)
    last.add_argument("rankings", type=Path)
    last.add_argument("--out", type=Path, required=True)
    last.set_defaults(step=measure)
    return parser.parse_args()


def main() -> None:
    """Run one of the three steps."""
    options = read_options()
    options.step(options)


if __name__ == "__main__":
    main()
