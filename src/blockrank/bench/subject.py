"""The model that is measured, as the package runs it and as a plain model of transformers."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from blockrank.attention import get_backend
from blockrank.bench.flops import Arithmetic
from blockrank.bench.settings import BenchSettings
from blockrank.bench.shapes import KNOWN_SHAPES
from blockrank.model import (
    Layers,
    LoadedModel,
    Needs,
    RankModel,
    check_layers,
    load_config,
    load_model,
    resolve_types,
    runs_fused,
)
from blockrank.model.seam import SEAM
from blockrank.scorers import Scorer, resolve_scorer
from blockrank.spec import RankSpec
from blockrank.types import InputError

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is not loaded yet. config: the library's own, with every layer; spec: as the scorer reads it by;
    random: whether its weights are."""

    name: str
    config: Any
    scorer: Scorer
    spec: RankSpec
    random: bool

    @property
    def vocabulary(self) -> int:
        """V."""
        return int(self.config.vocab_size)


def find_subject(name: str, scorer: str | None = None, **spec_changes: Any) -> Subject:
    """The model of a name: a known shape, "embedded", a folder or a hub name; no weight is read.

    scorer: None for the one that the model names. spec_changes: fields of its spec that are to be other than it says.
    Raises `ModelError` where there is no such model, `InputError` where its spec refuses the changes.
    """
    if name in KNOWN_SHAPES:
        shape = KNOWN_SHAPES[name]
        made, spec = resolve_scorer(name, scorer, shape.spec.changed(**spec_changes))
        return Subject(name, AutoConfig.for_model(shape.family, **shape.values), made, spec, random=True)
    made, spec = resolve_scorer(name, scorer)  # first: its sentence for a model that is nowhere is good
    return Subject(name, load_config(name), made, made.adapted(spec.changed(**spec_changes)), random=False)


def weight_type(subject: Subject, dtype: str | None, device: torch.device) -> torch.dtype | None:
    """Type of the weights before anything is quantised; None for the checkpoint's own."""
    if dtype is None and subject.random and device.type != "cpu":
        return torch.bfloat16
    return resolve_types(dtype, [device])[1]


def rank_model(
    subject: Subject, devices: Sequence[torch.device], settings: BenchSettings, needs: Needs | None = None
) -> RankModel:
    """The model ready to rank: loaded, or built with random weights; layers up to the scoring layer, or those of needs.

    Raises `ModelError` and `InputError` as `load_model` does, and `InputError` where several devices would not share
    a request.
    """
    if subject.random:
        model, *others = (_random_rank_model(subject, device, settings, needs) for device in devices)
        model.replicas = tuple(others)
    else:
        model = load_model(
            subject.name,
            spec=subject.spec,
            device=devices,
            dtype=settings.dtype,
            backend=settings.backend,
            layers=cast("Layers | None", settings.layers),
            needs=needs,
        )
    if len(devices) > 1:
        _check_sharing(model)
    return model


def _check_sharing(model: RankModel) -> None:
    """Raise `InputError` where all but the first device would stay idle."""
    if not model.shares_documents:
        how = "the library's layers" if model.decoder is None else f"backend {model.backend.name}"
        how = "the causal pattern" if model.spec.pattern.kind == "causal" else how
        raise InputError(f"with {how} a request of {model.name} runs on one device: name one.")


def _random_rank_model(
    subject: Subject, device: torch.device, settings: BenchSettings, needs: Needs | None
) -> RankModel:
    """What `load_model` would make of random weights on one device, without its probe."""
    product_dtype, _ = resolve_types(settings.dtype, [device])
    layers = cast("Layers | None", settings.layers)
    check_layers(layers, settings.dtype)
    weights = weight_type(subject, settings.dtype, device)
    needs = needs or Needs()
    every, layer = subject.config.num_hidden_layers, subject.spec.readout.layer
    depth = every if needs.every_layer else min(every, needs.depth(layer))
    module = _random_module(subject.config, depth, SEAM, device, weights or torch.bfloat16)
    backend = get_backend(settings.backend, device, module.dtype)
    loaded = LoadedModel(module, name=subject.name)
    if runs_fused(module, layers, product_dtype):
        loaded.fuse()
    if product_dtype:
        loaded.quantise(product_dtype)
    return RankModel(loaded, subject.spec, backend)


def plain_model(subject: Subject, device: torch.device, dtype: str | None) -> PreTrainedModel:
    """The peer: the same weights as a model of transformers with full attention by `sdpa`, every layer there is.

    The layers above the scoring layer are random where the others are. No head: its prefill ends with hidden states.
    """
    layers, weights = subject.config.num_hidden_layers, weight_type(subject, dtype, device)
    if subject.random:
        return _random_module(subject.config, layers, "sdpa", device, weights or torch.bfloat16)
    spec = subject.spec.changed(layer=layers - 1)
    module = load_model(subject.name, spec=spec, device=device, dtype=weights, probe=False, layers="library").module
    parts = {type(part).__module__.split(".")[0] for part in module.modules()}
    assert parts <= {"torch", "transformers"}, f"the peer must be a plain model, not hold parts of {sorted(parts)}"
    module.set_attn_implementation("sdpa")
    return module


def _random_module(
    config: Any, layers: int, attention: str, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """A model of the first `layers` layers, built where it runs. Each weight is seeded by its own name, so that models
    of different heights share their lower layers."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    with torch.device(device):
        module = AutoModel.from_config(config, attn_implementation=attention, dtype=dtype)
    generator = torch.Generator(device)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim > 1:
                weight.normal_(
                    0.0, config.initializer_range, generator=generator.manual_seed(zlib.crc32(name.encode()))
                )
    return module.eval()


def skeleton(subject: Subject) -> RankModel:
    """The model without memory for its weights, every layer: to check shapes and count weights.

    Raises `ModelError` where the spec does not fit the config.
    """
    with torch.device("meta"):
        module = AutoModel.from_config(copy.deepcopy(subject.config))
    loaded = LoadedModel(module, name=subject.name)
    return RankModel(loaded, subject.spec, get_backend("reference", _CPU, torch.float32))


def arithmetic(model: RankModel) -> Arithmetic | None:
    """What decides the useful operations; None where they depend on the tokens: experts, or documents that leave."""
    config = model.module.config
    lists = [part for part in model.module.modules() if isinstance(part, nn.ModuleList)]
    layers = [part for part in lists if len(part) == config.num_hidden_layers]
    if getattr(config, "num_experts_per_tok", None) or model.spec.leaves_early or not layers:
        return None
    weights = [sum(weight.numel() for weight in layer.parameters() if weight.ndim == 2) for layer in layers[0]]
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Arithmetic(weights, config.hidden_size, heads, kv_heads, head_dim, model.spec.readout.layer)


def position_table(module: nn.Module) -> int | None:
    """Rows of a learned table of positions; None where positions are computed, so that any number works."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding) and ("position" in name.rsplit(".", 1)[-1] or name.endswith("wpe")):
            return part.num_embeddings
    return None
