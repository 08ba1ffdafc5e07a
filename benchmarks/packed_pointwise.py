"""How much faster documents are scored one by one when all of them share a forward.

    python benchmarks/packed_pointwise.py [--documents 100] [--length 160] [--repeats 5] [--out FILE]

Random weights in Qwen3-0.6B's shape with its language-model head, in bfloat16 on a GPU, from token ids to one
probability for each document on the host. In the same run, in turn, with a warm-up before each call and medians of the
repeats:

    packed           the scorer `pointwise`: instruction and query once, all documents behind them in one forward
    one pair         transformers, one prompt of instruction, query and document at a time
    batches of 32    transformers, prompts of similar length padded to the longest of each batch

The peers run with every attention of transformers that is there: `sdpa`, and on a GPU flash attention where its package
is installed. They compute logits of the last token alone, as `packed` does. All documents have one length, so that
nothing is padded, but for `--ragged 0.5`. `--model tiny --device cpu` tries the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import environment, write_record
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from blockrank.attention import get_backend
from blockrank.bench import KNOWN_SHAPES, Shape, Timing
from blockrank.bench.requests import random_request
from blockrank.bench.timing import time_call
from blockrank.engine import Wanted
from blockrank.layout import Ints, TokenisedRequest, pack
from blockrank.model import SEAM, LoadedModel, RankModel
from blockrank.scorers import PointwiseScorer
from blockrank.scorers.pointwise import last_tokens
from blockrank.spec import BARE_SPEC

PACKED = "packed"
ANSWERS = [3, 4]  # any two tokens: weights are random
_TYPES = {"cuda": torch.bfloat16}
Call = Callable[[], Tensor]


def random_model(name: str, device: torch.device) -> PreTrainedModel:
    """A model with its head, built where it runs."""
    shape = KNOWN_SHAPES[name]
    config = AutoConfig.for_model(shape.family, **shape.values, tie_word_embeddings=True)
    torch.manual_seed(0)
    with torch.device(device):
        module = AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", dtype=_TYPES.get(device.type, torch.float32)
        )
    return module.eval()


# Packed


def packed(module: PreTrainedModel, request: TokenisedRequest, backend: str | None) -> tuple[Call, str]:
    """What scores a request in one forward, and the backend that attends."""
    module.set_attn_implementation(SEAM)
    weights = LoadedModel(module)
    weights.fuse()
    chosen = get_backend(backend, module.device, module.dtype)
    model = RankModel(weights, PointwiseScorer().adapted(BARE_SPEC), chosen)

    def call() -> Tensor:
        layout = pack([request], model.spec)
        logits_CV = model.forward(layout, Wanted(logits_R=last_tokens(layout))).logits_RV
        assert logits_CV is not None, "logits were asked for"
        return probabilities(logits_CV)

    return call, chosen.name


def probabilities(logits_CV: Tensor) -> Tensor:
    """(C,) the second answer against the first, on the host."""
    return logits_CV[:, ANSWERS].float().softmax(1)[:, 1].cpu()


# Pair by pair


def pairs(request: TokenisedRequest) -> list[Ints]:
    """The whole prompt of each document."""
    return [np.concatenate([request.segments[0].ids, document.ids]) for document in request.documents]


def one_by_one(module: PreTrainedModel, prompts: Sequence[Ints]) -> Call:
    """What scores prompt by prompt."""
    return lambda: torch.cat([batch_scores(module, [ids]) for ids in prompts])


def in_batches(module: PreTrainedModel, prompts: Sequence[Ints], size: int) -> Call:
    """What scores prompts of similar length together."""
    order = np.argsort([len(ids) for ids in prompts], kind="stable")
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    back = np.argsort(order, kind="stable")
    return lambda: torch.cat([batch_scores(module, [prompts[i] for i in batch]) for batch in batches])[back]


def batch_scores(module: PreTrainedModel, prompts: Sequence[Ints]) -> Tensor:
    """Scores of a batch, padded on the left, so that every prompt ends in the last column; no mask where all are of one
    length, which lets attention take its fastest way."""
    longest = max(map(len, prompts))
    ids = torch.from_numpy(np.stack([np.pad(row, (longest - len(row), 0)) for row in prompts])).to(module.device)
    extras: dict[str, Any] = {}
    if min(map(len, prompts)) < longest:
        lengths = torch.tensor([[len(row)] for row in prompts], device=module.device)
        extras["attention_mask"] = (torch.arange(longest, device=module.device) >= longest - lengths).long()
        extras["position_ids"] = (torch.arange(longest, device=module.device) - (longest - lengths)).clamp_min(0)
    return probabilities(module(input_ids=ids, use_cache=False, logits_to_keep=1, **extras).logits[:, -1])


# The run


def attentions(device: torch.device) -> Iterator[str]:
    """The peers' attention."""
    yield "sdpa"
    if device.type == "cuda" and is_flash_attn_2_available():
        yield "flash_attention_2"


def in_turn(calls: dict[str, Call], repeats: int, device: torch.device) -> dict[str, Timing]:
    """Each call once a repeat, one after the other, so that what the machine does meanwhile falls on all of them."""
    rounds = [{name: time_call(call, 1, [device]) for name, call in calls.items()} for _ in range(repeats)]
    found = {}
    for name in calls:
        timings = [one[name] for one in rounds]
        peaks = [timing.peak_gib for timing in timings if timing.peak_gib is not None]
        errors = [timing.error for timing in timings if timing.error]
        ms = [] if errors else [value for timing in timings for value in timing.ms]
        found[name] = Timing(ms, max(peaks, default=None), next(iter(errors), None))
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All systems on one request."""
    device = torch.device(options.device)
    plain = random_model(options.model, device)
    shape = Shape(options.documents, options.length)
    request = random_request(
        shape, instruction=options.prefix, query=0, vocabulary=plain.config.vocab_size, ragged=options.ragged
    )
    ours, backend = packed(copy.deepcopy(plain), request, options.backend)
    calls, prompts = {PACKED: ours}, pairs(request)
    for name in attentions(device):
        module = copy.deepcopy(plain)
        module.set_attn_implementation(name)
        calls[f"one pair, {name}"] = one_by_one(module, prompts)
        calls[f"batches of {options.batch}, {name}"] = in_batches(module, prompts, options.batch)
    with torch.inference_mode():
        scores = {name: call() for name, call in calls.items()}
        timings = in_turn(calls, options.repeats, device)
    best = timings[PACKED].p50
    rows = [
        {
            "system": name,
            **timing.to_dict(),
            "times_packed": round(timing.p50 / best, 4) if timing.p50 and best else None,
            "largest_difference": float((scores[name] - scores[PACKED]).abs().max()),
        }
        for name, timing in timings.items()
    ]
    kept = ("documents", "length", "prefix", "ragged", "batch", "repeats")
    return {
        "model": {"shape": options.model, "dtype": str(plain.dtype).removeprefix("torch."), "backend": backend},
        "settings": {name: getattr(options, name) for name in kept},
        "tokens": {"packed": request.length, "pairs": sum(map(len, prompts))},
        "rows": rows,
    }


def table(found: dict[str, Any]) -> str:
    """A row a system, in Markdown."""
    lines = ["| system | ms | times packed | largest difference |", "| --- | ---: | ---: | ---: |"]
    for row in found["rows"]:
        ms = row["error"] or f"{row['p50_ms']:.1f}"
        times = "" if row["times_packed"] is None else f"{row['times_packed']:.2f}"
        lines.append(f"| {row['system']} | {ms} | {times} | {row['largest_difference']:.1e} |")
    return "".join(f"{line}\n" for line in lines)


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(KNOWN_SHAPES), default="qwen3-0.6b")
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--length", type=int, default=160, help="tokens of a document with what frames it")
    parser.add_argument("--prefix", type=int, default=76, help="tokens of instruction and query")
    parser.add_argument("--ragged", type=float, default=0.0, help="lengths are (1 - RAGGED) to (1 + RAGGED) x LENGTH")
    parser.add_argument("--batch", type=int, default=32, help="prompts of a padded batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default=None)
    parser.add_argument("--out", type=Path, default=None)
    return parser.parse_args()


def main() -> None:
    """Measure, write a dated record, and print the table."""
    options = read_options()
    about, found = environment(), measure(options)
    if options.out:
        write_record(options.out, {**about, **found})
    sys.stdout.write(table(found))


if __name__ == "__main__":
    main()
