"""CPU latency of the embedded model against the same backbone as a cross-encoder, on the same pairs in the same run.

    python benchmarks/cpu_latency.py [--documents 100] [--words 75] [--repeats 7] [--encoder FOLDER] [--out FILE.json]

The peer is `sentence_transformers.CrossEncoder` over all-MiniLM-L6-v2 with an untrained scoring head: its speed is that
of any cross-encoder of this backbone, its order is not looked at. It runs in float32, the model in three types, all
with the same threads; they take turns within a repeat and start from text.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from peers import cross_encoder, packaged_encoder
from record import environment, write_record

from blockrank import Ranker

_log = logging.getLogger("cpu_latency")
_DEMO = Path(__file__).parent.parent / "examples" / "demo.jsonl"
_QUERY = "How much of my money do I get back if my bank fails?"


def passages(count: int, words: int) -> list[str]:
    """`count` texts of `words` words each, cut from the demo's passages, no two the same."""
    requests = [json.loads(line) for line in _DEMO.read_text(encoding="utf-8").splitlines()]
    text = " ".join(document["text"] for request in requests for document in request["documents"]).split()
    step = max(1, (len(text) - words) // count)
    return [" ".join(text[i * step : i * step + words]) for i in range(count)]


def time_in_turns(systems: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each repeat; one warm-up each, then all systems in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for repeat in range(repeats + 1):
        for name, run in systems.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Measure, print a table, write a dated record where asked."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    _log.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--words", type=int, default=75)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--encoder", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    texts = passages(options.documents, options.words)
    rankers = {dtype: Ranker.from_pretrained(device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16", "int8")}
    predict = cross_encoder(options.encoder or packaged_encoder())
    systems: dict[str, Callable[[], object]] = {
        f"blockrank {dtype}": partial(ranker.rank, _QUERY, texts) for dtype, ranker in rankers.items()
    }
    systems["cross-encoder float32"] = partial(predict, _QUERY, texts)
    seconds = time_in_turns(systems, options.repeats)
    tokens = sum(entry.tokens for entry in rankers["float32"].rank(_QUERY, texts)) / len(texts)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    # Machines are shared: a ratio within one turn is steadier than the ratio of medians over all of them.
    peer = seconds["cross-encoder float32"]
    ratio = {n: statistics.median(p / v for p, v in zip(peer, values, strict=True)) for n, values in seconds.items()}
    _log.info("%d documents of %.0f tokens, %d threads", len(texts), tokens, torch.get_num_threads())
    for name, value in median.items():
        _log.info("%-24s %7.0f ms   %.2f x the cross-encoder's speed", name, 1e3 * value, ratio[name])
    if options.out:
        record = {"documents": len(texts), "tokens": tokens, "seconds": seconds, "median": median, "speed_ratio": ratio}
        write_record(options.out, {**environment(), **record})


if __name__ == "__main__":
    main()
