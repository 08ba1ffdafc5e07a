"""Quality on judged collections: first stage, bi-encoder, and the model over its best 10, 50, 100 and 200 candidates.

    python benchmarks/quality.py --collections DIR [--work DIR] [--model FOLDER] [--dtype bfloat16] [--only NAME ...]

Each folder of DIR is a collection in BEIR layout. The first stage is BM25, or `runs/bm25.trec` where there is one, and
`full_qrels.tsv` is taken for judgements where there is one. This is `blockrank eval` over all of them: started again
with the same `--work` folder, it goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers import BiEncoder, packaged_encoder
from record import environment, write_record
from tqdm import tqdm

from blockrank import Ranker
from blockrank.data import open_collection
from blockrank.evaluate import EvaluationResult
from blockrank.evaluate.evaluation import evaluate
from blockrank.evaluate.first_stage import FirstStage
from blockrank.evaluate.plan import Plan, Reranker

DEPTHS = (10, 50, 100, 200)
PEER = "bi-encoder"
MODEL = "blockrank"
GIVEN_RUN = Path("runs") / "bm25.trec"


class Bar:
    """One progress bar for whatever is under way."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._what = ""

    def __call__(self, what: str, done: int, of: int) -> None:
        """Show how far `what` has come."""
        if self._bar is None or self._what != what:
            self.close()
            self._bar, self._what = tqdm(total=of, desc=what, disable=None), what
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """End the bar that is shown."""
        if self._bar is not None:
            self._bar.close()


def run_plan(folders: list[Path], first_stage: FirstStage, options: argparse.Namespace, work: Path) -> EvaluationResult:
    """Evaluate the collections that share a kind of first stage."""
    collections = []
    for folder in folders:
        full = folder / "full_qrels.tsv"
        collections.append(open_collection(folder, qrels=full if full.exists() else None))
    rerankers = (
        Reranker(PEER, lambda: BiEncoder(packaged_encoder(), options.device), {"model": "all-MiniLM-L6-v2"}),
        Reranker(
            MODEL,
            lambda: Ranker.from_pretrained(options.model, dtype=options.dtype, device=options.device),
            {"model": options.model or "embedded", "dtype": options.dtype},
        ),
    )
    plan = Plan(rerankers, first_stage, DEPTHS, latency_queries=0, reuse_bytes=options.reuse_gib << 30)
    bar = Bar()
    try:
        return evaluate(collections, plan, work, progress=bar)
    finally:
        bar.close()


def rows_of(result: EvaluationResult) -> dict[str, Any]:
    """What the record keeps of each collection; depths that its first stage does not reach are left out."""
    rows = {}
    for found in result.collections:
        reached = found.systems[0].depth
        systems = [s for s in found.systems if s.depth <= reached or s is found.systems[0]]
        rows[found.name] = {
            "queries": found.queries,
            "first_stage_depth": reached,
            "systems": {
                ("first_stage" if s is found.systems[0] else s.name): {k: round(v, 4) for k, v in s.measures.items()}
                for s in systems
            },
            "ceilings": {
                f"@{depth}": {k: round(v, 4) for k, v in values.items()}
                for depth, values in found.ceilings.items()
                if depth <= reached
            },
            "against_first_stage": {
                s.name: {"difference": round(c.difference, 4), "corrected_p": c.corrected_p}
                for s in systems
                if (c := found.against_first_stage(s.name))
            },
        }
    return rows


def table(rows: dict[str, Any]) -> list[str]:
    """nDCG@10 of all collections as lines of Markdown."""
    names = ["first_stage", f"{PEER}@100", *(f"{MODEL}@{depth}" for depth in DEPTHS)]
    lines = [f"| nDCG@10 | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
    columns: dict[str, list[float]] = {name: [] for name in names}
    for collection, row in rows.items():
        cells = []
        for name in names:
            value = row["systems"].get(name, {}).get("nDCG@10")
            cells.append("" if value is None else f"{value:.3f}")
            columns[name] += [] if value is None else [value]
        lines.append(f"| {collection} | {' | '.join(cells)} |")
    means = [f"{sum(c) / len(c):.3f}" if len(c) == len(rows) else "" for c in columns.values()]
    return [*lines, f"| mean | {' | '.join(means)} |"]


def main() -> None:
    """Measure and write a dated record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collections", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--model", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--device", default=None)
    parser.add_argument("--reuse-gib", type=int, default=6)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    logging.getLogger("blockrank").setLevel(logging.ERROR)  # cuts are many and counted in the results
    folders = [f for f in sorted(options.collections.iterdir()) if (f / "qrels").is_dir()]
    folders = [f for f in folders if not options.only or f.name in options.only]
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        for name, first_stage in (("searched", FirstStage()), ("given", FirstStage(str(GIVEN_RUN)))):
            if chosen := [f for f in folders if (f / GIVEN_RUN).exists() == (name == "given")]:
                rows |= rows_of(run_plan(chosen, first_stage, options, work / name))
    rows = dict(sorted(rows.items()))
    sys.stdout.write("\n".join(table(rows)) + "\n")
    if options.out:
        settings = {"model": options.model or "embedded", "dtype": options.dtype or "float32", "depths": DEPTHS}
        write_record(options.out, {**environment(), **settings, "rows": rows})


if __name__ == "__main__":
    main()
