"""The weights of a checkpoint: read into a model, none that a forward needs missing, left over or broken."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from blockrank.model.adapters import SCORE
from blockrank.model.int8_file import is_int8, read_int8
from blockrank.model.needs import Needs
from blockrank.model.seam import SEAM
from blockrank.model.sources import one_line
from blockrank.types import BlockrankError, ModelError

_FLOATS = {"F64", "F32", "F16", "BF16"}
_LAYER = re.compile(r"(?:.*?\.)?\d+\.")
_POOLER = "pooler."  # of a BERT: no ranking reads it, and many checkpoints lack it
# Code for fusion in the decoder saves the encoder of a T5 and each of its blocks inside modules of its own.
_WRAPPED = {r"^encoder\.encoder\.block\.(\d+)\.module\.": r"encoder.block.\1.", r"^encoder\.encoder\.": "encoder."}


def load_weights(
    source: str | Path,
    config: PreTrainedConfig,
    needs: Needs,
    dtype: torch.dtype | None,
    *,
    score_follows: bool = False,
) -> tuple[PreTrainedModel, frozenset[str]]:
    """The model of a checkpoint, and the names of the parameters that it leaves out, which no ranking reads: zeros.

    score_follows: whether the head with one output comes from adapters, so that the checkpoint need not have it.
    Raises `ModelError` where weights cannot be read, are missing, of another shape, or there are some that the model
    has no place for.
    """
    if score_follows:
        config.num_labels = 1
    kind = class_of(needs, config, f"the checkpoint {str(source)!r}")
    options: dict[str, Any] = {"key_mapping": _WRAPPED} if needs.encoder_decoder else {"attn_implementation": SEAM}
    options |= {"config": config, "output_loading_info": True}
    options["ignore_mismatched_sizes"] = True  # what does not fit is refused below
    if dtype is not None:
        options["dtype"] = dtype
    omitted: frozenset[str] = frozenset()
    try:
        if Path(source).is_dir() and is_int8(source):
            state, omitted = read_int8(source)
            with torch.device("meta"):  # the auto classes read from disk only; ask which class it would be
                model_class = type(kind.from_config(config))
            module, info = model_class.from_pretrained(None, state_dict=state, **options)
        else:
            module, info = kind.from_pretrained(source, use_safetensors=True, **options)
    except BlockrankError:
        raise
    except Exception as error:  # the library lets through whatever its many parts raise
        raise ModelError(f"the weights of {str(source)!r} cannot be loaded: {one_line(error)}") from error
    named = f"the checkpoint {str(source)!r}"
    elsewhere = f"{SCORE}." if score_follows else None
    missing, unexpected, mismatched = (
        sorted(name for name in names if elsewhere is None or not name.startswith(elsewhere))
        for names in (info["missing_keys"], info["unexpected_keys"], [str(item[0]) for item in info["mismatched_keys"]])
    )
    left_out = _check_missing(module, missing, omitted, named, needs)
    if mismatched:
        raise ModelError(f"{named} holds {mismatched[0]} in another shape than its config says.")
    _check_unexpected(module, unexpected, named)
    if needs.score and not isinstance(getattr(module, SCORE, None), nn.Linear):
        raise ModelError(f"{named} is a {type(module).__name__}, whose head is not one product named 'score'.")
    if not omitted and Path(source).is_dir() and getattr(config, "quantization_config", None) is None:
        _check_types(module, Path(source), options.get("key_mapping", {}))
    _clear(module, left_out)
    return module, left_out


def class_of(needs: Needs, config: PreTrainedConfig, named: str) -> Any:
    """The library's class of models with what is needed. Raises `ModelError` where a checkpoint is of another kind,
    or its head has several outputs."""
    if needs.encoder_decoder and config.model_type != "t5":
        raise ModelError(f"{named} is of the type {config.model_type!r}; of encoder-decoders, 't5' alone can be read.")
    if config.is_encoder_decoder and not needs.encoder_decoder:
        raise ModelError(
            f"{named} is an encoder-decoder ({config.model_type!r}), which only scorers made for one can read, such as "
            "'multi_view'."
        )
    if not needs.score:
        return AutoModelForCausalLM if needs.head else AutoModel
    if config.num_labels != 1:
        raise ModelError(f"{named} has {config.num_labels} labels by its config, and a head that scores has one.")
    return AutoModelForSequenceClassification


def check_finite(module: PreTrainedModel, name: str) -> None:
    """Raise `ModelError` where a weight is not finite, also one that only some token would use."""
    for parameter, weight in module.named_parameters():
        low, high = torch.aminmax(weight.detach())
        if not bool(low.isfinite() & high.isfinite()):
            kind = str(weight.dtype).removeprefix("torch.")
            raise ModelError(f"{name!r} holds values in {parameter} that are not finite as {kind}: it cannot rank.")


def _check_missing(
    module: PreTrainedModel, missing: Iterable[str], omitted: frozenset[str], named: str, needs: Needs
) -> frozenset[str]:
    """The parameters that are missing on purpose. Raises `ModelError` where others are."""
    prefix = _prefix(module)
    absent = set(missing)
    left_out = {name for name in absent if name in omitted or prefix + name in omitted}
    left_out |= {name for name in absent if name.removeprefix(prefix).startswith(_POOLER)}
    needed = absent - left_out
    if any(not name.startswith(prefix) for name in needed):
        if needs.head:
            raise ModelError(f"{named} has no language-model head, which decoding and the LM loss need.")
        if needs.score:
            raise ModelError(f"{named} has no head that gives one score, which was asked for.")
    if needed:
        some = ", ".join(sorted(needed)[:3])
        raise ModelError(f"{named} lacks {len(needed)} of its model's weights, such as {some}.")
    return frozenset(left_out)


def _check_unexpected(module: PreTrainedModel, unexpected: Iterable[str], named: str) -> None:
    """Raise `ModelError` for weights of a layer or a head in use that the model has no place for: it would compute
    something else than it was trained to. Layers above, other heads and the like do not matter."""
    prefix = _prefix(module)
    layers = {found[0] for name, _ in module.named_parameters() if (found := _LAYER.match(name.removeprefix(prefix)))}
    for name in sorted(unexpected):
        found = _LAYER.match(name.removeprefix(prefix))
        of_head = name.startswith(f"{SCORE}.") and hasattr(module, SCORE)
        if of_head or (found is not None and found[0] in layers):
            raise ModelError(
                f"{named} holds {name}, for which its config leaves no place: they do not belong together."
            )


def _check_types(module: PreTrainedModel, folder: Path, renamed: Mapping[str, str]) -> None:
    """Raise `ModelError` where a weight is stored as integers or in 8 bits and nothing says how to read them.

    renamed: patterns of names in the file, and what the model calls those.
    """
    prefix = _prefix(module)
    names = {name.removeprefix(prefix) for name, _ in module.named_parameters()}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                kind, own = file.get_slice(name).get_dtype(), name.removeprefix(prefix)
                for pattern, to in renamed.items():
                    own = re.sub(pattern, to, own)
                if own in names and kind not in _FLOATS:
                    raise ModelError(f"{path} holds {name} as {kind}, and nothing says how to scale it.")


def _clear(module: PreTrainedModel, names: frozenset[str]) -> None:
    """Zeros where the library has put random numbers: what is saved from this model later is always the same."""
    for name, weight in module.named_parameters():
        if name in names:
            weight.data.zero_()


def _prefix(module: PreTrainedModel) -> str:
    return f"{module.base_model_prefix}." if module.base_model_prefix else ""
