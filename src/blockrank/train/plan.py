"""An estimate of a run before it starts: data, tokens, parameters, memory and time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blockrank.types import MissingExtraError

try:  # as in `blockrank.train.run`
    import accelerate  # noqa: F401
except ImportError as error:
    raise MissingExtraError("training needs accelerate: pip install 'blockrank[train]'.") from error

import numpy as np
import torch
from torch import nn

from blockrank.bench.flops import attention_pairs
from blockrank.model import load_skeleton, load_tokenizer
from blockrank.train.adapters import with_adapters
from blockrank.train.arguments import training_arguments
from blockrank.train.batch import collate
from blockrank.train.config import TrainConfig
from blockrank.train.dev import open_dev_set
from blockrank.train.objective import check_answers
from blockrank.train.run import forward_stream, forwards_in_step, student_needs, student_spec
from blockrank.train.sets import ExampleSource, open_sources

_SAMPLED_STEPS = 8
_PRODUCT_SIDE = {"cpu": 512, "cuda": 8192}  # of the square matrices whose product is timed


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that decide memory and time: matrix weights of the layers, L, D, N * H, K * H, MLP width."""

    linear_weights: int
    layers: int
    width: int
    query_width: int
    key_width: int
    inner: int


@dataclass(frozen=True)
class TrainingPlan:
    """The estimate of a run.

    sources: name, queries and share of the requests of each. requests_in_step, tokens_in_step: means over
    `sampled_steps` steps spread over the whole curriculum; largest_forward: tokens of the largest of their forwards,
    which decides `memory_bytes` of activations. memory_bytes: of one process. seconds_in_step: operations of a step
    divided by the measured GEMM rate of `device` for large matrices: a lower bound.
    """

    sources: tuple[dict[str, Any], ...]
    steps: int
    forwards_in_step: int
    sampled_steps: int
    requests_in_step: float
    tokens_in_step: float
    largest_forward: int
    total_tokens: int
    parameters: int
    trainable: int
    memory_bytes: dict[str, int]
    device: str
    flops_in_step: float
    flops_per_second: float
    seconds_in_step: float
    seconds: float
    dev: dict[str, Any] | None
    output: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        return asdict(self)


def plan_training(config: TrainConfig) -> TrainingPlan:
    """Plan a run: data are read and sampled, weights are not read, nothing is written. Raises as the run would."""
    arguments = training_arguments(config)
    spec = student_spec(config)
    sources = open_sources(config.data, load_tokenizer(config.model.base)[0], spec)
    check_answers(config.loss, sources)
    dev = open_dev_set(config.dev) if config.dev is not None else None
    module: nn.Module = load_skeleton(config.model.base, spec, student_needs(config, spec))
    shape = _shape(module)
    if config.lora is not None:
        module = with_adapters(module, config.lora, config.model.base, config.seed)
    lanes = forwards_in_step(arguments)
    stream = forward_stream(config, sources, _SAMPLED_STEPS, lanes)
    batches = [collate(stream[index], spec) for index in range(len(stream))]
    tokens = [batch.layout.tokens for batch in batches]
    recomputes = _recomputes(arguments)
    pairs = sum(attention_pairs(batch.layout) for batch in batches)
    flops = _flops(shape, sum(tokens), pairs, recomputes, config.lora is not None) / _SAMPLED_STEPS
    rate = matrix_rate(arguments.device, torch.bfloat16 if arguments.bf16 else torch.float32)
    seconds = flops / arguments.world_size / rate
    tokens_in_step = sum(tokens) / _SAMPLED_STEPS
    return TrainingPlan(
        sources=_shares(sources, config.data.weights),
        steps=arguments.max_steps,
        forwards_in_step=lanes,
        sampled_steps=_SAMPLED_STEPS,
        requests_in_step=sum(batch.layout.requests for batch in batches) / _SAMPLED_STEPS,
        tokens_in_step=tokens_in_step,
        largest_forward=max(tokens),
        total_tokens=round(tokens_in_step * arguments.max_steps),
        parameters=sum(weight.numel() for weight in module.parameters()),
        trainable=sum(weight.numel() for weight in module.parameters() if weight.requires_grad),
        memory_bytes=_memory(module, shape, max(tokens), arguments, recomputes),
        device=str(arguments.device),
        flops_in_step=flops,
        flops_per_second=rate,
        seconds_in_step=seconds,
        seconds=seconds * arguments.max_steps,
        dev=None if dev is None or config.dev is None else {"queries": len(dev.qrels), **asdict(config.dev)},
        output=str(Path(config.output).resolve()),
    )


def _shares(sources: Sequence[ExampleSource], weights: dict[str, float]) -> tuple[dict[str, Any], ...]:
    mass = [len(source) * weights.get(source.name, 1.0) for source in sources]
    return tuple(
        {"name": source.name, "queries": len(source), "share": part / sum(mass)}
        for source, part in zip(sources, mass, strict=True)
    )


def _shape(module: Any) -> ModelShape:
    config = module.config
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    output = module.get_output_embeddings()
    linear = (part for part in module.modules() if isinstance(part, nn.Linear) and part is not output)
    return ModelShape(
        sum(part.weight.numel() for part in linear),
        config.num_hidden_layers,
        config.hidden_size,
        heads * head_dim,
        (kv_heads or heads) * head_dim,
        config.intermediate_size,
    )


def _recomputes(arguments: Any) -> bool:
    """Whether activations are recomputed, by the trainer or by FSDP2."""
    names = ("activation_checkpointing", "gradient_checkpointing")
    by_shards = (arguments.fsdp_config or {}).get("activation_checkpointing", False) if arguments.fsdp else False
    return bool(by_shards or any(getattr(arguments, name, False) for name in names))


def _flops(shape: ModelShape, tokens: int, pairs: int, recomputes: bool, adapters: bool) -> float:
    """Operations of forward and backward: each matrix product has one more in the backward for the gradient of its
    input and, where weights are trained, one for theirs; recomputing adds a forward."""
    forward = 2 * shape.linear_weights * tokens + 4 * shape.layers * pairs * shape.query_width
    return float(forward * (1 + (1 if adapters else 2) + recomputes))


def _memory(module: nn.Module, shape: ModelShape, tokens: int, arguments: Any, recomputes: bool) -> dict[str, int]:
    """Bytes by purpose, for one process, weights in float32.

    Each layer stores for the backward: the inputs and outputs of both norms and the attention's projection (5 D),
    queries and keys before and after rotation with values and the output of attention (3 N H + 3 K H), and gate, up,
    their activation and product (4 I). With recomputing, only each layer's input is stored, plus all activations of one
    layer at a time.
    """
    processes = arguments.world_size if arguments.fsdp else 1
    weights = [4 * weight.numel() for weight in module.parameters()]
    trained = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    layer = 5 * shape.width + 3 * shape.query_width + 3 * shape.key_width + 4 * shape.inner
    values = shape.layers * shape.width + layer if recomputes else shape.layers * layer
    parts = {
        "weights": sum(weights) // processes,
        "gradients": 4 * trained // processes,
        "optimiser": _state_bytes(str(getattr(arguments.optim, "value", arguments.optim))) * trained // processes,
        "activations": tokens * values * (2 if arguments.bf16 else 4),
    }
    return parts | {"total": sum(parts.values())}


def _state_bytes(optimiser: str) -> int:
    """Bytes of optimiser state for each weight: two moments for AdamW, almost nothing for Adafactor and SGD."""
    if optimiser.startswith(("adafactor", "sgd")):
        return 0
    return 2 if "8bit" in optimiser else 8


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a product of large square matrices, the best of three."""
    side = _PRODUCT_SIDE.get(device.type, 512)
    one = torch.ones(side, side, device=device, dtype=dtype)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(one, one)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / float(np.min(times[1:]))
