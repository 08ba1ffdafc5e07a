"""One training step of a 7B: BlockRank's against full fine-tuning in transformers, same batch, same run.

    python benchmarks/training_step.py [--documents 30] [--length 160] [--out FILE]

Random weights of Mistral-7B's shape in bfloat16, gradients and an optimiser with next to no state (Adafactor), so that
all of it fits one card. `full attention` is `AutoModelForCausalLM` with sdpa over the same tokens, the language-model
loss on the answer; `full attention, both losses` the attention loss as well, as the library alone allows it: in eager
attention, which gives away its weights. `both losses` is the same under the block mask, all layers and the head;
`attention loss` what the ranking is learnt by: the layers above the scoring layer are not there. Each also with
gradient checkpointing. Time is forward, backward and optimiser; memory the peak over a step; a step that does not fit
has neither. Ratios are to `full attention`, and of `both losses` to its own peer too.
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
from blockrank.model import SEAM, LoadedModel, RankModel
from blockrank.scorers import Prompts
from blockrank.spec import RankSpec
from blockrank.train.batch import Batch, collate
from blockrank.train.config import LossConfig
from blockrank.train.losses import info_nce
from blockrank.train.objective import training_loss
from blockrank.train.sets import Example

INSTRUCTION, QUERY, ANSWER = 60, 40, 4  # tokens
PEER, SAME = "full attention", "full attention, both losses"


def example(options: argparse.Namespace, vocabulary: int, seed: int) -> Example:
    """A request of random tokens whose query segment ends in an answer."""
    shape = Shape(options.documents, options.length)
    request = random_request(shape, instruction=INSTRUCTION, query=QUERY, vocabulary=vocabulary, seed=seed)
    *others, query = request.segments
    answer = np.random.default_rng(seed).integers(3, vocabulary, ANSWER)
    query = Segment("query", np.r_[query.ids, answer], len(query.ids), signal_end=len(query.ids))
    positives = np.zeros(options.documents, dtype=bool)
    positives[seed % options.documents] = True
    return Example(Prompts((TokenisedRequest((*others, query)),)), positives)


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


def eager_loss(module: Any, spec: RankSpec, batch: Batch) -> Callable[[], torch.Tensor]:
    """The peer's loss, and the attention loss from the weights of one layer."""
    layout, lm = batch.layout, full_loss(module, batch)
    seen: list[torch.Tensor] = []
    module.model.layers[spec.readout.layer].self_attn.register_forward_hook(lambda *given: seen.append(given[2][1]))
    signal_G, positives_BM = torch.from_numpy(layout.signal_G).to(module.device), batch.positives_BM.to(module.device)
    document_T = np.full(layout.tokens, len(layout.document_segment_C))  # the last stands for all other tokens
    for index, segment in enumerate(layout.document_segment_C):
        document_T[layout.starts_S[segment] : layout.ends_S[segment]] = index
    of_T = torch.from_numpy(document_T).to(module.device)

    def loss() -> torch.Tensor:
        seen.clear()
        total = lm()
        share_T = seen[0][0, :, signal_G].float().mean((0, 1))
        share_C = share_T.new_zeros(int(of_T.max()) + 1).index_add(0, of_T, share_T)[:-1]
        return total + info_nce((share_C / share_C.sum()).log()[None], positives_BM)

    return loss


def rank_loss(module: Any, spec: Any, batch: Batch, lm: float) -> Callable[[], torch.Tensor]:
    """The loss of `blockrank train`."""
    device = module.device
    model = RankModel(
        LoadedModel(module, name="random"), spec, get_backend(None, device, torch.bfloat16, training=True)
    )
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


def measured(
    make: Callable[[], Any], loss: Callable[[Any], Callable[[], torch.Tensor]], recompute: bool, options: Any
) -> dict[str, float | None]:
    """A step's time and memory; None for both where it does not fit."""
    module = make()
    if recompute:
        checkpointed(module)
    try:
        return dict(timed(loss(module), module, options.repeats))
    except torch.OutOfMemoryError:
        return {"ms": None, "peak_gib": None}
    finally:
        del module
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def ratios(row: dict[str, Any], peers: list[dict[str, Any]], key: str) -> dict[str, float]:
    """Throughput and memory against the peer of the same kind; against its recomputing one where that alone fits."""
    fitting = [peer for peer in peers if peer["ms"]]
    alike = [peer for peer in fitting if peer["checkpointing"] == row["checkpointing"]] or fitting
    if not row["ms"] or not alike:
        return {}
    return {
        f"throughput{key}": round(alike[0]["ms"] / row["ms"], 3),
        f"memory{key}": round(row["peak_gib"] / alike[0]["peak_gib"], 3),
    }


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
    examples = [example(options, vocabulary, seed) for seed in range(options.requests)]
    batch = collate(examples, spec)
    causal = spec.changed(pattern="causal")
    steps: dict[str, tuple[Any, int, str, Callable[[Any], Callable[[], torch.Tensor]]]] = {
        PEER: (AutoModelForCausalLM, layers, "sdpa", lambda m: full_loss(m, batch)),
        SAME: (AutoModelForCausalLM, layers, "eager", lambda m: eager_loss(m, spec, batch)),
        "full attention, both losses, this engine": (
            AutoModelForCausalLM, layers, SEAM, lambda m: rank_loss(m, causal, collate(examples, causal), 1.0)
        ),
        "both losses": (AutoModelForCausalLM, layers, SEAM, lambda m: rank_loss(m, spec, batch, 1.0)),
        "attention loss": (AutoModel, spec.readout.layer + 1, SEAM, lambda m: rank_loss(m, spec, batch, 0.0)),
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for name, (kind, count, attention, loss) in steps.items():
        for recompute in (False, True):
            row = {"step": name, "checkpointing": recompute}
            row |= measured(
                lambda k=kind, n=count, a=attention: build(k, n, a, device, shape), loss, recompute, options
            )
            rows.append(row)
            sys.stdout.write(f"{row}\n")
            sys.stdout.flush()
    for row in rows:
        for key, peer in (("", PEER), ("_of_both_losses", SAME)):
            row |= ratios(row, [r for r in rows if r["step"] == peer], key)
        sys.stdout.write(f"{row}\n")
    if options.out:
        settings = {name: getattr(options, name) for name in ("model", "documents", "length", "requests", "repeats")}
        write_record(options.out, {**environment(), **settings, "tokens": batch.layout.tokens, "rows": rows})


if __name__ == "__main__":
    main()
