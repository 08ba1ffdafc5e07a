"""What other types of numbers and early exits of documents cost in quality, against float32 with every document.

    python benchmarks/variants.py --collections DIR [--model FOLDER] [--queries 100] [--depth 100] [--out FILE]

Each folder of DIR is a collection in BEIR layout; candidates are BM25's best, or those of `runs/bm25.trec` where there
is one. Every variant ranks the same requests, tokenised once. For each: nDCG@10, its difference from float32 with the p
of a paired randomisation test over all queries, and two measures of agreement with float32's order: Kendall's tau and
the part of its best ten that are among the variant's. 8-bit types need a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import environment, write_record
from scipy.stats import kendalltau

from blockrank import Ranker, RankRequest
from blockrank.data import open_collection
from blockrank.evaluate.compare import randomisation_p
from blockrank.evaluate.first_stage import FirstStage
from blockrank.evaluate.measures import per_query
from blockrank.layout import plan_batches
from blockrank.scorers import Prompts

GIVEN_RUN = Path("runs") / "bm25.trec"
MEASURE = "nDCG@10"


@dataclass(frozen=True)
class Variant:
    """One way to run the model. exact: layers that stay in bfloat16 where dtype is fp8."""

    name: str
    dtype: str = "float32"
    exact: tuple[int, ...] = ()
    prune: tuple[tuple[int, float], ...] = ()
    prune_by: str | None = None


def variants(layer: int, cuda: bool) -> list[Variant]:
    """The reference first; schedules at the layers a third and less below the scoring layer."""
    found = [Variant("float32"), Variant("bfloat16", "bfloat16")]
    if not cuda:
        found.append(Variant("int8", "int8"))
    else:
        found.append(Variant("fp8", "fp8"))
        kept = {
            "last": (layer,),
            "last two": (layer - 1, layer),
            "first": (0,),
            "first and last two": (0, layer - 1, layer),
        }
        found += [Variant(f"fp8, {name} exact", "fp8", exact) for name, exact in kept.items()]
    late = tuple(range(layer - 3, layer))
    schedules = {
        "50/25/12.5 %": tuple(zip(late, (0.5, 0.25, 0.125), strict=True)),
        "75/50/25 %": tuple(zip(late, (0.75, 0.5, 0.25), strict=True)),
        f"50 % at {layer - 3}": ((layer - 3, 0.5),),
        f"50 % at {layer - 1}": ((layer - 1, 0.5),),
        f"25 % at {layer - 1}": ((layer - 1, 0.25),),
    }
    for by in ("layer", "lens"):
        found += [Variant(f"keep {name}, by {by}", prune=prune, prune_by=by) for name, prune in schedules.items()]
    return found


@dataclass(frozen=True)
class Judged:
    """The tokenised requests of a collection with their judgements."""

    name: str
    requests: list[RankRequest]
    tokenised: list[Prompts]
    qrels: dict[str, dict[str, int]]


def read(folder: Path, ranker: Ranker, options: argparse.Namespace) -> Judged:
    """The first queries of a collection with their candidates."""
    full = folder / "full_qrels.tsv"
    collection = open_collection(folder, qrels=full if full.exists() else None)
    judged = [query_id for query_id in collection.qrels if query_id in collection.queries]
    queries = {query_id: collection.queries[query_id] for query_id in judged[: options.queries]}
    source = FirstStage(str(GIVEN_RUN)) if (folder / GIVEN_RUN).exists() else FirstStage()
    run = source.search(collection, queries, options.depth)
    wanted = {doc_id for found in run.values() for doc_id in list(found)[: options.depth]}
    documents = collection.corpus.read(wanted)
    requests = [
        RankRequest(
            queries[query_id], [documents[doc_id] for doc_id in list(found)[: options.depth]], query_id=query_id
        )
        for query_id, found in run.items()
        if found
    ]
    qrels = {request.query_id: collection.qrels[request.query_id] for request in requests}
    return Judged(folder.name, requests, [ranker.tokenise(request) for request in requests], qrels)


def load(variant: Variant, options: argparse.Namespace) -> Ranker:
    """The model in a variant's type and with its schedule."""
    if variant.exact:
        ranker = Ranker.from_pretrained(options.model, device=options.device, dtype="bfloat16")
        ranker.model.weights.quantise(torch.float8_e4m3fn, variant.exact)
    else:
        ranker = Ranker.from_pretrained(options.model, device=options.device, dtype=variant.dtype)
    return ranker.with_spec(prune=variant.prune, prune_by=variant.prune_by)


def scores(ranker: Ranker, tokenised: list[Prompts]) -> Iterator[np.ndarray[Any, Any]]:
    """The scores of each request's documents."""
    for batch in plan_batches([item.length for item in tokenised], ranker.max_tokens):
        chunk = tokenised[batch]
        with torch.inference_mode():
            found = ranker.scorer.score(ranker.model, chunk, max_tokens=ranker.max_tokens)
        yield from (item.scores_C.float().numpy() for item in found)


def measure(ranker: Ranker, judged: list[Judged]) -> dict[str, list[np.ndarray[Any, Any]]]:
    """Scores by collection."""
    return {item.name: list(scores(ranker, item.tokenised)) for item in judged}


def row(variant: Variant, found: dict[str, Any], reference: dict[str, Any], judged: list[Judged]) -> dict[str, Any]:
    """What the record keeps of a variant."""
    values: dict[str, list[float]] = {}
    baseline: dict[str, list[float]] = {}
    taus, tops = [], []
    for item in judged:
        for table, source in ((values, found), (baseline, reference)):
            run = {
                request.query_id: {d.doc_id: float(s) for d, s in zip(request.candidates, scored, strict=True)}
                for request, scored in zip(item.requests, source[item.name], strict=True)
            }
            table[item.name] = [row[MEASURE] for row in per_query(run, item.qrels, [MEASURE]).values()]
        for one, two in zip(found[item.name], reference[item.name], strict=True):
            taus.append(float(kendalltau(one, two).statistic))
            tops.append(len(set(np.argsort(-one)[:10]) & set(np.argsort(-two)[:10])) / min(10, len(one)))
    means = {name: statistics.mean(items) for name, items in values.items()}
    differences = np.concatenate([np.array(values[name]) - np.array(baseline[name]) for name in values])
    return {
        "name": variant.name,
        MEASURE: round(statistics.mean(means.values()), 4),
        "difference": round(
            statistics.mean(means.values()) - statistics.mean(map(statistics.mean, baseline.values())), 4
        ),
        "p": round(randomisation_p(differences), 4),
        "tau": round(float(np.nanmean(taus)), 4),
        "best ten": round(statistics.mean(tops), 4),
        "collections": {name: round(value, 4) for name, value in means.items()},
    }


def main() -> None:
    """Measure and write a dated record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collections", type=Path, required=True)
    parser.add_argument("--model", default=None)
    parser.add_argument("--device", default=None)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--only", nargs="*", help="names of collections")
    parser.add_argument("--variants", nargs="*", help="names of variants")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    first = load(Variant("float32"), options)
    folders = [f for f in sorted(options.collections.iterdir()) if (f / "qrels").is_dir()]
    judged = [read(f, first, options) for f in folders if not options.only or f.name in options.only]
    reference: dict[str, Any] = {}
    rows = []
    first_variant, *others = variants(first.spec.readout.layer, first.model.device.type == "cuda")
    others = [variant for variant in others if not options.variants or variant.name in options.variants]
    for variant in (first_variant, *others):
        found = measure(load(variant, options), judged)
        reference = reference or found
        rows.append(row(variant, found, reference, judged))
        shown = rows[-1]
        sys.stdout.write(
            f"{shown['name']:<34} {shown[MEASURE]:.4f} {shown['difference']:+.4f} p {shown['p']:.3f}  "
            f"tau {shown['tau']:.4f}  best ten {shown['best ten']:.3f}\n"
        )
        sys.stdout.flush()
    if options.out:
        settings = {"model": options.model or "embedded", "queries": options.queries, "depth": options.depth}
        write_record(options.out, {**environment(), **settings, "rows": rows})


if __name__ == "__main__":
    main()
