"""LoRA: low-rank adapters trained in place of the weights, by peft."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from blockrank.model import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Needs, RankModel, load_model
from blockrank.model.adapters import SCORE, import_peft, wrap
from blockrank.train.config import LoraConfig
from blockrank.types import InputError


def with_adapters(module: PreTrainedModel, config: LoraConfig, base: str, seed: int) -> nn.Module:
    """The model frozen, with adapters in its linear layers: peft's wrapper, whose forward is the model's. A head with
    one output is trained whole.

    Raises `MissingExtraError` without peft, `InputError` where no layer has a name in `targets`.
    """
    settings = import_peft().LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets) or "all-linear",
        **({"modules_to_save": [SCORE], "exclude_modules": [SCORE]} if hasattr(module, SCORE) else {}),
    )
    torch.manual_seed(seed)  # as the library does before training: adapters are initialised at random
    try:
        adapted: nn.Module = wrap(module, settings)
    except ValueError as error:
        raise InputError(f"[lora]: {error}") from error
    # Found again from any working directory.
    settings.base_model_name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else base
    return adapted


def merge_saved(folder: Path, needs: Needs) -> None:
    """Replace the adapters in a checkpoint by merged weights, as much of them as is needed. At every moment the folder
    holds one or the other."""
    model: RankModel = load_model(folder, device="cpu", dtype=torch.float32, needs=needs, probe=False, layers="library")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".merged-") as place:
        model.module.save_pretrained(place)
        (folder / ADAPTER_CONFIG).unlink()  # from here on the weights alone count
        for path in Path(place).iterdir():
            shutil.move(path, folder / path.name)
    (folder / ADAPTER_WEIGHTS).unlink()
