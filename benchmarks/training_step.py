"""One training step of a 7B: BlockRank's against full fine-tuning in transformers, same batch, same run.

    python benchmarks/training_step.py [--documents 30] [--length 160] [--out FILE]

Random weights of Mistral-7B's shape in bfloat16, gradients and an optimiser with next to no state (Adafactor), so that
all of it fits one card. `full attention` is `AutoModelForCausalLM` with sdpa over the same tokens, the language-model
loss on the answer; `both losses` the attention loss and the language-model loss under the block mask, all layers and
the head; `attention loss` what the ranking is learnt by: the layers above the scoring layer are not there. Each also
with gradient checkpointing. Time is forward, backward and optimiser; memory the peak over a step.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import environment, write_record
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from blockrank.attention import get_backend
from blockrank.bench.requests import random_request
from blockrank.bench.settings import Shape
from blockrank.bench.shapes import KNOWN_SHAPES
from blockrank.layout import Segment, TokenisedRequest
from blockrank.model import SEAM, RankModel
from blockrank.train.batch import Batch, collate
from blockrank.train.config import LossConfig
from blockrank.train.objective import training_loss
from blockrank.train.sets import Example

INSTRUCTION, QUERY, ANSWER = 60, 40, 4  # tokens


def example(options: argparse.Namespace, vocabulary: int, seed: int) -> Example:
    """A request of random tokens whose query segment ends in an answer."""
    shape = Shape(options.documents, options.length)
    request = random_request(shape, instruction=INSTRUCTION, query=QUERY, vocabulary=vocabulary, seed=seed)
    *others, query = request.segments
    answer = np.random.default_rng(seed).integers(3, vocabulary, ANSWER)
    query = Segment("query", np.r_[query.ids, answer], len(query.ids), signal_end=len(query.ids))
    positives = np.zeros(options.documents, dtype=bool)
    positives[seed % options.documents] = True
    return Example(TokenisedRequest((*others, query)), positives)


def build(kind: Any, layers: int, attention: str, device: torch.device, shape: Any) -> Any:
    """A model of random weights with so many layers."""
    config = copy.deepcopy(AutoConfig.for_model(shape.family, **shape.values))
    config.num_hidden_layers = layers
    config.use_cache = False
    torch.manual_seed(0)
    with torch.device(device):
        return kind.from_config(config, attn_implementation=attention, dtype=torch.bfloat16).train()


def checkpointed(module: Any) -> None:
    """Turn on gradient checkpointing, non-reentrant as everywhere here."""
    name = "activation" if hasattr(module, "activation_checkpointing_enable") else "gradient"
    keyword = f"{name}_checkpointing_kwargs"
    getattr(module, f"{name}_checkpointing_enable")(**{keyword: {"use_reentrant": False}})


def full_loss(module: Any, batch: Batch) -> Callable[[], torch.Tensor]:
    """The peer's loss: next tokens of the answer, every logit computed as the library does."""
    ids = torch.from_numpy(batch.layout.ids_T)[None].to(module.device)
    labels = torch.full_like(ids, -100)
    at = batch.context_A.to(module.device) + 1
    labels[0, at] = ids[0, at]
    return lambda: module(input_ids=ids, labels=labels, use_cache=False).loss


def rank_loss(module: Any, spec: Any, batch: Batch, lm: float) -> Callable[[], torch.Tensor]:
    """The loss of `blockrank train`."""
    device = module.device
    model = RankModel(module, None, spec, get_backend(None, device, torch.bfloat16, training=True), "random")
    return lambda: training_loss(model, batch, LossConfig(lm=lm))["loss"]


def timed(loss: Callable[[], torch.Tensor], module: Any, repeats: int) -> dict[str, float]:
    """Median seconds of a step, and its peak memory."""
    optimizer = torch.optim.Adafactor(module.parameters(), lr=1e-6)
    times = []
    cuda = module.device.type == "cuda"
    for turn in range(repeats + 2):
        if turn == 2 and cuda:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")
    return {"ms": round(1000 * statistics.median(times[2:]), 1), "peak_gib": round(peak, 2)}


def main() -> None:
    """Measure and write a dated record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mistral-7b", choices=sorted(KNOWN_SHAPES))
    parser.add_argument("--documents", type=int, default=30)
    parser.add_argument("--length", type=int, default=160)
    parser.add_argument("--requests", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = KNOWN_SHAPES[options.model]
    spec, layers = shape.spec, int(shape.values["num_hidden_layers"] or 0)
    vocabulary = int(shape.values["vocab_size"] or 0)
    batch = collate([example(options, vocabulary, seed) for seed in range(options.requests)], spec)
    rows = []
    for name, kind, count, attention, lm in (
        ("full attention", AutoModelForCausalLM, layers, "sdpa", 1.0),
        ("both losses", AutoModelForCausalLM, layers, SEAM, 1.0),
        ("attention loss", AutoModel, spec.layer + 1, SEAM, 0.0),
    ):
        for recompute in (False, True):
            module = build(kind, count, attention, device, shape)
            if recompute:
                checkpointed(module)
            loss = full_loss(module, batch) if attention == "sdpa" else rank_loss(module, spec, batch, lm)
            row: dict[str, Any] = {"step": name, "checkpointing": recompute}
            try:
                row |= timed(loss, module, options.repeats)
            except torch.OutOfMemoryError:
                row |= {"ms": None, "peak_gib": None}
            del module, loss
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            peer = next((r for r in rows if r["step"] == "full attention" and r["checkpointing"] == recompute), None)
            if peer and peer["ms"] and row["ms"]:
                row |= {
                    "throughput": round(peer["ms"] / row["ms"], 3),
                    "memory": round(row["peak_gib"] / peer["peak_gib"], 3),
                }
            rows.append(row)
            sys.stdout.write(f"{row}\n")
            sys.stdout.flush()
    if options.out:
        settings = {name: getattr(options, name) for name in ("model", "documents", "length", "requests", "repeats")}
        write_record(options.out, {**environment(), **settings, "tokens": batch.layout.tokens, "rows": rows})


if __name__ == "__main__":
    main()
