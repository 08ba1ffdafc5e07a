"""Checkpoints that hold adapters (peft) and name the base model that they belong to: folders, or hub repositories."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

from blockrank.configfile import read_json
from blockrank.model.sources import HUB_NAME, located, one_line
from blockrank.types import BlockrankError, InputError, MissingExtraError, ModelError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SCORE = "score"  # how the library's decoders call the head of a sequence classification
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
# What is fetched of a hub repository of adapters: a tokenizer's files may be among them.
_FETCHED = ("*.json", "*.jinja", "*.model", "merges.txt", ADAPTER_WEIGHTS)


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

    Adapters of a hub repository are fetched, and their folder stands in the chain. Raises `ModelError` where a base is
    not named, not there, or one of those that lead to it.
    """
    chain = [_local(source)]
    while (base := _base_of(chain[-1])) is not None:
        if any(_is_same(base, item) for item in chain):
            names = " -> ".join(str(item) for item in [*chain, base])
            raise ModelError(f"adapters are their own base, so there is no model that they belong to: {names}.")
        chain.append(_local(base))
    return chain


def root_of(source: str | Path) -> str | Path:
    """Where the layers of a checkpoint are: adapters may have been trained on adapters. Raises as `chain_of`."""
    return chain_of(source)[-1]


def tokenizer_of(source: str | Path) -> str | Path:
    """Where the tokenizer of a checkpoint is: adapters often leave it to their base. Raises as `chain_of`."""
    *adapters, root = chain_of(source)
    if not adapters:
        return source
    there = (folder for folder in adapters if any((Path(folder) / name).is_file() for name in _TOKENIZER_FILES))
    return next(there, root)


def check_adapters(folders: Sequence[str | Path]) -> None:
    """Raise `MissingExtraError` or `ModelError` where adapters could not be added, before their base is read."""
    if folders:
        import_peft()
    for folder in folders:
        if not (Path(folder) / ADAPTER_WEIGHTS).is_file():
            raise ModelError(
                f"the adapters in {str(folder)!r} cannot be added: there is no {ADAPTER_WEIGHTS}; older files "
                "(adapter_model.bin) are not read, for they may hold code: convert them once."
            )


def holds_score(folders: Sequence[str | Path]) -> bool:
    """Whether any of some folders of adapters brings the head with one output, which their base need not have."""
    return any(_score_rows(Path(folder) / ADAPTER_WEIGHTS) == 1 for folder in folders)


def _score_rows(path: Path) -> int:
    """How many outputs the head in a file of adapters has; 0 where there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.endswith(f".{SCORE}.weight")]  # noqa: SIM118  # no mapping
            return int(file.get_slice(names[0]).get_shape()[0]) if names else 0
    except Exception:  # a broken file: the sentence about that comes when it is read
        return 0


def _local(source: str | Path) -> str | Path:
    """The folder of a hub repository of adapters, in the hub's cache; any other checkpoint as it is."""
    from huggingface_hub import snapshot_download
    from transformers.utils import cached_file

    if isinstance(source, Path) or Path(source).is_dir() or not HUB_NAME.fullmatch(source):
        return source
    try:
        if cached_file(source, ADAPTER_CONFIG, _raise_exceptions_for_missing_entries=False) is None:
            return source
        return Path(snapshot_download(source, allow_patterns=list(_FETCHED)))
    except (OSError, ValueError):  # out of reach: the sentence about that is the reader's of its config
        return source


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

    A head that the adapters bring takes the place of the model's, where that has one.
    Raises `ModelError` where they cannot be read or do not fit, `MissingExtraError` without peft.
    """
    peft = import_peft()
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        config.task_type = None  # another task's wrapper would want a head
        config.base_model_name_or_path = None  # what the base is called does not matter here
        state = load_file(Path(folder) / ADAPTER_WEIGHTS)
        if hasattr(module, SCORE) and any(f".{SCORE}." in name for name in state):
            config.modules_to_save = [SCORE]  # peft does so by the task, and need not write it down
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
