"""Latency on one GPU, from token ids to sorted scores, against the same model with full attention in transformers.

    python benchmarks/gpu_latency.py [--shapes 100x96 500x208] [--repeats 5] [--out FILE]

A Mistral-7B of random weights in bfloat16, batch 1, instruction 60 and query 40 tokens, scoring layer 20. The peer is
the prefill of all 32 layers by transformers with `sdpa`: a decoding ranker needs at least that. Both in the same run;
median of the repeats after a warm-up.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import environment, write_record
from transformers import MistralConfig, MistralModel

from blockrank import RankSpec
from blockrank.attention import get_backend
from blockrank.layout import Segment, TokenisedRequest, pack
from blockrank.model import RankModel
from blockrank.scorers import AttentionScorer
from blockrank.seam import SEAM

LAYERS, SCORING_LAYER = 32, 20
INSTRUCTION, QUERY = 60, 40
SHAPES = ("100x96", "100x160", "500x96", "500x208")
CUDA = torch.device("cuda")


def build(layers: int, attention: str) -> MistralModel:
    """Mistral-7B's shape with random weights."""
    config = MistralConfig(
        vocab_size=32768, hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=1 << 20, sliding_window=None,
        attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(0)
    with CUDA:
        torch.set_default_dtype(torch.bfloat16)
        model = MistralModel(config)
        torch.set_default_dtype(torch.float32)
    return model.eval()


def request(documents: int, length: int) -> TokenisedRequest:
    """A request of random tokens, every document of the same length."""
    generator = np.random.default_rng(0)
    sizes = [("instruction", INSTRUCTION), *[("document", length)] * documents, ("query", QUERY)]
    return TokenisedRequest(
        tuple(Segment(kind, generator.integers(3, 32768, size), size, signal_end=size) for kind, size in sizes)
    )


def ours(model: RankModel, tokens: TokenisedRequest) -> list[int]:
    """Token ids to the order of the documents."""
    scores = AttentionScorer().score(model, pack([tokens], model.spec)).scores_C
    order: list[int] = scores.argsort(descending=True).tolist()
    return order


def full(model: MistralModel, ids_T: torch.Tensor) -> None:
    """The prefill of a decoding ranker."""
    model(input_ids=ids_T[None], use_cache=False)


def times_ms(run: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each repeat, after one that warms up."""
    taken = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        taken.append(1000 * (time.perf_counter() - start))
    return taken[1:]


@torch.inference_mode()
def measure_ours(shape: str, model: RankModel, repeats: int) -> dict[str, Any]:
    """Times and peak memory of one shape."""
    tokens = request(*map(int, shape.split("x")))
    torch.cuda.reset_peak_memory_stats()
    found = times_ms(lambda: ours(model, tokens), repeats)
    peak = torch.cuda.max_memory_allocated() / 2**30
    return {"shape": shape, "tokens": tokens.length, "blockrank_ms": found, "blockrank_peak_gib": round(peak, 2)}


@torch.inference_mode()
def measure_full(shape: str, model: MistralModel, repeats: int) -> list[float]:
    """Times of the peer on the same tokens."""
    ids = np.concatenate([segment.ids for segment in request(*map(int, shape.split("x"))).segments])
    ids_T = torch.from_numpy(ids).to(CUDA)
    return times_ms(lambda: full(model, ids_T), repeats)


def measure(shapes: list[str], repeats: int, against_full: bool) -> list[dict[str, Any]]:
    """One row a shape, eager and compiled; the two models are in memory one after the other."""
    module = build(SCORING_LAYER + 1, SEAM)
    backend = get_backend(None, CUDA, torch.bfloat16)
    model = RankModel(module, None, RankSpec(layer=SCORING_LAYER), backend, "random Mistral-7B")
    rows = [measure_ours(shape, model, repeats) for shape in shapes]
    model.compile_layers()
    for row in rows:
        row["compiled_ms"] = measure_ours(row["shape"], model, repeats)["blockrank_ms"]
    del model, module
    torch.cuda.empty_cache()
    if against_full:
        peer = build(LAYERS, "sdpa")
        for row in rows:
            row["full_ms"] = measure_full(row["shape"], peer, repeats)
    return rows


def main() -> None:
    """Measure, print a table and write a dated record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=SHAPES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--against-full", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rows = measure(options.shapes, options.repeats, options.against_full)
    for row in rows:
        eager, mine = statistics.median(row["blockrank_ms"]), statistics.median(row["compiled_ms"])
        peer = statistics.median(row["full_ms"]) if "full_ms" in row else float("nan")
        sys.stdout.write(f"{row['shape']:>8}  blockrank {mine:8.1f} ms (eager {eager:8.1f})  ")
        sys.stdout.write(f"full {peer:8.1f} ms  {peer / mine:5.2f} x\n")
    if options.out:
        write_record(options.out, {**environment(), "rows": rows})


if __name__ == "__main__":
    main()
