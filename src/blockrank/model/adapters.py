"""Checkpoints that hold adapters (peft) beside a `blockrank.json`, and name the base model that they belong to."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import PreTrainedModel

from blockrank.configfile import read_json
from blockrank.model.sources import located, one_line
from blockrank.types import BlockrankError, InputError, MissingExtraError, ModelError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def import_peft() -> Any:
    """The package. Raises `MissingExtraError` where it is not there."""
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("adapters need peft: pip install 'blockrank[train]'.") from error
    return peft


def wrap(module: PreTrainedModel, settings: Any) -> Any:
    """The wrapper of peft around a model whose layers it has given adapters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it asks transformers by names that will go one day
        return import_peft().get_peft_model(module, settings)


def chain_of(source: str | Path) -> list[str | Path]:
    """A checkpoint, the base of its adapters, the base of those, and so on: the last holds the layers.

    Raises `ModelError` where a base is not named, not there, or one of those that lead to it.
    """
    chain = [source]
    while (base := _base_of(chain[-1])) is not None:
        if any(_is_same(base, item) for item in chain):
            names = " -> ".join(str(item) for item in [*chain, base])
            raise ModelError(f"adapters are their own base, so there is no model that they belong to: {names}.")
        chain.append(base)
    return chain


def root_of(source: str | Path) -> str | Path:
    """Where the layers of a checkpoint are: adapters may have been trained on adapters. Raises as `chain_of`."""
    return chain_of(source)[-1]


def _base_of(source: str | Path) -> str | Path | None:
    """The base model of a folder of adapters, None for anything else. A path that begins with a point is one from that
    folder, where there is one, else from the working directory."""
    path = Path(source) / ADAPTER_CONFIG
    if not path.is_file():
        return None
    try:
        base = read_json(path).get("base_model_name_or_path")
    except InputError as error:
        raise ModelError(str(error)) from None
    if not isinstance(base, str) or not base:
        raise ModelError(f"{path} names no base model.")
    if base.startswith(".") and (beside := Path(source) / base).is_dir():
        return beside
    if (Path(base).is_absolute() or base.startswith(".")) and not Path(base).is_dir():
        raise ModelError(f"the base model of the adapters in {str(source)!r} is not there any more: {base}.")
    return located(base)


def _is_same(one: str | Path, other: str | Path) -> bool:
    """Whether two names are of one checkpoint."""
    if Path(one).is_dir() and Path(other).is_dir():
        return Path(one).resolve() == Path(other).resolve()
    return str(one) == str(other)


def with_adapter(module: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """The model with the adapters of a folder added to its weights; those of layers that it lacks are left out.

    Raises `ModelError` where they cannot be read or do not fit, `MissingExtraError` without peft.
    """
    peft = import_peft()
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        config.task_type = None  # another task's wrapper would want a head
        config.base_model_name_or_path = None  # what the base is called does not matter here
        state = load_file(Path(folder) / ADAPTER_WEIGHTS)
        adapted = wrap(module, config)
        wanted = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
        fitting = {_place(name, module, wanted): tensor for name, tensor in state.items()}
        if missing := sorted(set(wanted) - set(fitting)):
            raise ModelError(f"the adapters in {str(folder)!r} lack {len(missing)} tensors, such as {missing[0]}.")
        peft.set_peft_model_state_dict(adapted, {name: fitting[name] for name in wanted})
        merged: PreTrainedModel = adapted.merge_and_unload()
    except BlockrankError:
        raise
    except Exception as error:  # the package lets through whatever its many parts raise
        raise ModelError(f"the adapters in {str(folder)!r} cannot be added: {one_line(error)}") from error
    return merged


def _place(name: str, module: PreTrainedModel, wanted: dict[str, Any]) -> str:
    """What a tensor is called in this model: one with a head has its layers under another name than one without."""
    start, inner = "base_model.model.", f"{module.base_model_prefix}."
    path = name.removeprefix(start)
    others = (name, f"{start}{inner}{path}", f"{start}{path.removeprefix(inner)}")
    return next((other for other in others if other in wanted), name)
