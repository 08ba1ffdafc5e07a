"""Load a Hugging Face model cut after the last layer needed, in the type and with the layers asked for."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as hf_logging

from blockrank import engine
from blockrank.attention import get_backend
from blockrank.layout import PromptTokenizer
from blockrank.model.adapters import chain_of, check_adapters, holds_score, root_of, tokenizer_of, with_adapter
from blockrank.model.loaded import LoadedModel
from blockrank.model.needs import Needs
from blockrank.model.probe import probe_model
from blockrank.model.rank_model import RankModel
from blockrank.model.sources import HUB_NAME, broken_file, located, one_line
from blockrank.model.vocabulary import check_files, check_prompt, check_vocabulary
from blockrank.model.weights import check_finite, class_of, load_weights
from blockrank.spec import BUILT_IN_SPECS, SPEC_FILE, RankSpec
from blockrank.types import InputError, ModelError

# Names of 8-bit types: what products run in, and what everything else is in.
QUANTISED_TYPES = {"fp8": (torch.float8_e4m3fn, torch.bfloat16), "int8": (torch.int8, torch.float32)}
_WEIGHT_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Layers = Literal["fused", "library"]
Devices = str | torch.device | Sequence[str | torch.device] | None
# Regularisers that would act inside attention or make a packed training step depend on its neighbours.
_DROPOUTS = ("attention_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob", "resid_pdrop", "embd_pdrop")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hold back the libraries' own reports (unused upper layers, retries): what fails here says so in one sentence."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hub_level = hub_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hub_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if bars:
            hf_logging.enable_progress_bar()


def resolve_spec(
    name_or_path: str | Path | None, spec: RankSpec | str | None, otherwise: RankSpec | None = None
) -> RankSpec:
    """The spec given, or by built-in name, or from `blockrank.json`, or built in for a published checkpoint.

    otherwise: where a checkpoint says nothing. Raises `InputError` on an unknown name of a spec, and `ModelError` where
    there is no such checkpoint, or it says nothing.
    """
    if isinstance(spec, RankSpec):
        return spec
    if spec is not None:
        if spec not in BUILT_IN_SPECS:
            raise InputError(f"spec {spec!r} is unknown; built in are {sorted(BUILT_IN_SPECS)}.")
        return BUILT_IN_SPECS[spec]
    folder = Path(located(name_or_path))
    if not (folder / SPEC_FILE).is_file() and str(name_or_path) in BUILT_IN_SPECS:
        return BUILT_IN_SPECS[str(name_or_path)]
    if folder.is_dir():
        return otherwise if otherwise and not (folder / SPEC_FILE).is_file() else RankSpec.load(folder)
    return _spec_from_hub(str(name_or_path), otherwise)


def _spec_from_hub(name: str, otherwise: RankSpec | None) -> RankSpec:
    """`blockrank.json` of a hub repository, or the other where it has none or cannot be reached."""
    from transformers.utils import cached_file

    if not HUB_NAME.fullmatch(name):
        raise ModelError(f"model folder {name!r} does not exist.")
    try:
        with quiet_libraries():
            path = cached_file(name, SPEC_FILE)
    except (OSError, ValueError) as error:
        if otherwise is not None:
            return otherwise
        raise ModelError(
            f"model {name!r} is neither a folder nor a reachable hub repository with a {SPEC_FILE}."
        ) from error
    return RankSpec.load(Path(path).parent)


def load_model(
    name_or_path: str | Path | None = None,
    *,
    spec: RankSpec | str | None = None,
    device: Devices = None,
    dtype: torch.dtype | str | None = None,
    backend: str | None = None,
    needs: Needs | None = None,
    omit_dropout: bool = False,
    probe: bool = True,
    layers: Layers | None = None,
) -> RankModel:
    """Load a checkpoint for ranking: layers up to the deepest that is read, nothing above, safetensors only.

    name_or_path: a folder, a hub name, or None or "embedded" for the embedded model; adapters in a folder are added to
    their base. needs: what is read beside the scoring layer, such as `Needs(logits=True)`: every layer and the
    language-model head (training with the LM loss, decoding), which stays in the type of everything else where products
    are in int8 or fp8. device None: the first CUDA device, else the CPU; several devices (a sequence, or names with
    commas between) each get the model. dtype None: float32 on a CPU, the checkpoint's own elsewhere; "fp8" (GPU) and
    "int8" (processor) are fused layers whose products are in int8 or fp8. omit_dropout: set every dropout of the config
    to 0. probe: check with a small forward that the model does what the layout says; see `blockrank.model.probe`.
    layers: "library" runs transformers' own layers, "fused" ours, which only infer; None fuses supported families.

    Raises `ModelError` where the checkpoint is unknown, incomplete, or fails the probe, `InputError` where the device,
    the dtype or the backend cannot be used.
    """
    resolved = resolve_spec(name_or_path, spec)
    source = located(name_or_path)
    places = resolve_devices(device)
    product_dtype, weight_type = resolve_types(dtype, places)
    check_layers(layers, dtype)
    needs = needs or Needs()
    if needs.encoder_decoder and backend is not None:
        raise InputError(f"backend {backend!r} is for packed prompts: an encoder-decoder attends in its own layers.")
    # Whatever mode the caller is in: weights made under inference mode could not be used outside it.
    with quiet_libraries(), torch.inference_mode(mode=False):
        config, tokenizer = _config_and_tokenizer(source, resolved)
        there = _reduce(config, resolved, needs, omit_dropout=omit_dropout)
        module, omitted = _module(source, config, needs, weight_type)
        fused = runs_fused(module, layers, product_dtype)
        # Copies first: the weights lie on the host until then.
        modules = [*(copy.deepcopy(module) for _ in places[1:]), module]
        models = []
        for part, place in zip(modules, [*places[1:], places[0]], strict=True):
            part = part.to(place).eval()
            weights = LoadedModel(part, tokenizer, str(source), omitted, there)
            if fused:
                weights.fuse()
            models.append(RankModel(weights, resolved, get_backend(backend, place, part.dtype)))
    *replicas, model = models
    check_finite(model.module, model.name)
    if probe and not needs.encoder_decoder:
        probe_model(model, whole=needs.every_layer)
    if product_dtype is not None:
        for item in models:
            item.weights.quantise(product_dtype)
    model.replicas = tuple(replicas)
    return model


def load_tokenizer(name_or_path: str | Path | None = None) -> tuple[PromptTokenizer, Any]:
    """The tokenizer of a checkpoint, for prompts and as the library's own; no weight is read.

    Raises `ModelError` where the checkpoint is unknown.
    """
    with quiet_libraries():
        _, tokenizer = _config_and_tokenizer(located(name_or_path))
    return PromptTokenizer(tokenizer), tokenizer


def load_config(name_or_path: str | Path | None = None) -> PreTrainedConfig:
    """The library's own config of a checkpoint; no weight is read. Raises `ModelError` where it is unknown."""
    with quiet_libraries():
        return _read(AutoConfig, root_of(located(name_or_path)))


def load_skeleton(name_or_path: str | Path | None, spec: RankSpec, needs: Needs) -> PreTrainedModel:
    """The model that `load_model` would give, without its weights: on the meta device, for counting."""
    config = load_config(name_or_path)
    _cut(config, None if needs.every_layer else needs.depth(spec.readout.layer))
    if needs.score and holds_score(chain_of(located(name_or_path))[:-1]):
        config.num_labels = 1
    with torch.device("meta"):
        skeleton: PreTrainedModel = class_of(needs, config, f"the checkpoint {str(name_or_path)!r}").from_config(config)
    return skeleton


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or for None the first CUDA device, else the CPU.

    Raises `InputError` where there is none of that name, or it does not answer.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        answer = torch.zeros((), device=device)
        answer.item()  # one that keeps no values does not answer
        return answer.device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {str(device)!r} cannot be used: {one_line(error)}") from None


def resolve_devices(devices: Devices) -> list[torch.device]:
    """Every device asked for, as `resolve_device` does. Raises `InputError` where one is named twice or none is."""
    named = devices.split(",") if isinstance(devices, str) else devices
    if named is None or isinstance(named, torch.device):
        return [resolve_device(named)]
    found = [resolve_device(item.strip() if isinstance(item, str) else item) for item in named]
    if not found or len(set(found)) < len(found):
        raise InputError(f"device {devices!r} must name each device once.")
    return found


def resolve_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype | None:
    """The type of the weights: as asked for, float32 on a CPU, or None for the checkpoint's own.

    Raises `InputError` for anything but the floating-point types that models compute in.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in _WEIGHT_TYPES:
        names = ", ".join([*(str(item).removeprefix("torch.") for item in _WEIGHT_TYPES), *QUANTISED_TYPES])
        raise InputError(f"dtype must be one of {names}, not {dtype!r}.")
    return found


def resolve_types(
    dtype: torch.dtype | str | None, devices: Sequence[torch.device]
) -> tuple[torch.dtype | None, torch.dtype | None]:
    """The 8-bit type that products run in, if any, and the type of everything else, as `resolve_dtype`.

    Raises `InputError` where a device cannot run them.
    """
    if not isinstance(dtype, str) or dtype not in QUANTISED_TYPES:
        return None, resolve_dtype(dtype, devices[0])
    for device in devices:
        if dtype == "fp8" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)):
            raise InputError("dtype 'fp8' needs a CUDA device of compute capability 8.9 or later.")
        if dtype == "int8" and device.type != "cpu":
            raise InputError("dtype 'int8' is for processors; on a GPU take 'fp8'.")
    return QUANTISED_TYPES[dtype]


def check_layers(layers: Layers | None, dtype: torch.dtype | str | None) -> None:
    """Raise `InputError` where 8-bit products are asked for in the library's layers."""
    if dtype in QUANTISED_TYPES and layers == "library":
        raise InputError(f"dtype {dtype!r} needs fused layers: it does not go with layers='library'.")


def runs_fused(module: PreTrainedModel, layers: Layers | None, product_dtype: torch.dtype | None) -> bool:
    """Whether a model is to be fused: as asked for, always in int8 and fp8, and by default where its family allows
    it."""
    if layers is None and product_dtype is None:
        return engine.unfusable(module) is None
    return layers == "fused" or product_dtype is not None


def _reduce(config: PreTrainedConfig, spec: RankSpec, needs: Needs, *, omit_dropout: bool) -> int:
    """Leave out of a config the layers that nobody reads and, where asked for, every dropout; returns how many layers
    there were."""
    for key in _DROPOUTS if omit_dropout else ():
        if hasattr(config, key):
            setattr(config, key, 0.0)
    return _cut(config, None if needs.every_layer else needs.depth(spec.readout.layer))


def _config_and_tokenizer(source: str | Path, spec: RankSpec | None = None) -> tuple[PreTrainedConfig, Any]:
    """The config of a checkpoint and the library's tokenizer, which belong together, and to the spec's prompt."""
    texts = tokenizer_of(source)
    config, tokenizer = _read(AutoConfig, root_of(source)), _read(AutoTokenizer, texts)
    if Path(texts).is_dir():
        check_files(Path(texts), tokenizer)
    ours = PromptTokenizer(tokenizer)
    check_vocabulary(ours, tokenizer, config, source)
    if spec is not None:  # before weights are read
        check_prompt(ours, config, spec)
    return config, tokenizer


def _read(kind: Any, source: str | Path) -> Any:
    """`kind.from_pretrained(source)`, or `ModelError` with one sentence."""
    if isinstance(source, Path) and not source.is_dir():
        raise ModelError(f"model folder {source} does not exist.")
    try:
        return kind.from_pretrained(source)
    except Exception as error:  # the library lets through whatever its many parsers raise
        if Path(source).is_dir():
            sentence = broken_file(Path(source)) or one_line(error)
            raise ModelError(f"model {str(source)!r} cannot be read: {sentence}") from error
        if isinstance(error, OSError):
            raise ModelError(f"model {str(source)!r} is neither a folder nor a reachable hub repository.") from error
        raise ModelError(f"model {str(source)!r} cannot be read: {one_line(error)}") from error


def _cut(config: PreTrainedConfig, layers: int | None) -> int:
    """Keep the first `layers` layers in a config (None: all), so that the rest is never built nor read from disk;
    returns how many there were."""
    there: int = config.num_hidden_layers
    if layers is None:
        return there
    if layers > there:
        raise ModelError(f"the spec reads layer {layers - 1}, but the model has {there} layers.")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return there


def _module(
    source: str | Path, config: PreTrainedConfig, needs: Needs, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, frozenset[str]]:
    """The model with its weights and, where `source` is a folder of adapters, those added to its base; and which of
    the parameters the checkpoint leaves out."""
    *adapters, root = chain_of(source)
    check_adapters(adapters)
    module, omitted = load_weights(root, config, needs, dtype, score_follows=needs.score and holds_score(adapters))
    for folder in reversed(adapters):
        module = with_adapter(module, folder)
    return module, omitted
