"""Rank the candidate passages of three questions and show the best five of each: `python examples/demo.py`."""

from __future__ import annotations

import json
import time
from pathlib import Path

from blockrank import Ranker, Ranking

SHOWN = 5
BAR_WIDTH = 20
TEXT_WIDTH = 60


def show(ranking: Ranking, expected: str) -> None:
    """Print the best passages with a bar for each score; a star marks the one that answers the question."""
    width = max(map(len, ranking.doc_ids))
    for entry in ranking.top(SHOWN):
        bar = "█" * round(BAR_WIDTH * entry.score / ranking[0].score)
        star = "*" if entry.doc_id == expected else " "
        print(
            f"{entry.rank:>3} {entry.score:.3f} {bar:<{BAR_WIDTH}} {star} {entry.doc_id:<{width}}  "
            f"{entry.text[:TEXT_WIDTH].rstrip()}…"
        )


def main() -> None:
    """Load the embedded model and rank each request of `demo.jsonl`."""
    requests = Path(__file__).with_name("demo.jsonl").read_text(encoding="utf-8").splitlines()
    started = time.perf_counter()
    ranker = Ranker.from_pretrained()
    ranker.rank("a first forward", ["is slower than those that follow"])
    print(f"model loaded in {time.perf_counter() - started:.1f} s")
    for request in map(json.loads, requests):
        started = time.perf_counter()
        ranking = ranker.rank(request["query"], request["documents"])
        milliseconds = 1000 * (time.perf_counter() - started)
        tokens = sum(entry.tokens for entry in ranking)
        print(f"\n{request['query']}")
        print(f"{len(ranking)} passages, {tokens} tokens, {milliseconds:.0f} ms")
        show(ranking, request["expected"])
    print("\n* the passage that answers the question")


if __name__ == "__main__":
    main()
