"""`[trainer]` as the library's training arguments, with blockrank's own defaults."""

from __future__ import annotations

import importlib.util
import logging
import sys
from typing import Any, get_type_hints

import torch
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from blockrank.configfile import checked
from blockrank.train.config import TrainConfig
from blockrank.types import InputError, MissingExtraError

_REPORTERS = {"tensorboard": "tensorboard", "wandb": "wandb"}  # package by name in `report_to`; the extra is called so
_ELSEWHERE = {"output_dir": "output", "seed": "seed", "data_seed": "seed"}
_log = logging.getLogger(__name__)


def requests_in_forward(config: TrainConfig) -> int:
    """Requests packed into one forward; under a token budget, the most. Raises `InputError` where it is not a positive
    integer."""
    count = config.trainer.get("per_device_train_batch_size", 16)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"[trainer]: per_device_train_batch_size must be a positive integer, not {count!r}.")
    return count


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """The library's arguments. Checkpointing is always non-reentrant.

    Raises `InputError` for what the library refuses, `MissingExtraError` where a package that is asked for is missing.
    """
    _check_values(config.trainer)
    values = _values(config)
    _check_packages(values)
    try:
        arguments = TrainingArguments(**values)
        get_reporting_integration_callbacks(arguments.report_to)
    except (TypeError, ValueError, ImportError) as error:
        raise InputError(f"[trainer]: {error}") from error
    if arguments.max_steps < 1:
        raise InputError("[trainer]: max_steps must be positive; the data stream has no natural end.")
    if arguments.fsdp and arguments.device.type != "cuda":
        raise InputError("[trainer]: fsdp needs GPUs; on processors accelerate replaces it by DDP, silently.")
    if arguments.device.type == "cuda" and arguments.n_gpu > 1:
        _log.info("one of %d GPUs is used: torchrun --nproc-per-node %d uses all.", arguments.n_gpu, arguments.n_gpu)
        arguments._n_gpu = 1  # the library would split batches over threads, which packed ones do not allow
    return arguments


def _check_values(values: dict[str, Any]) -> None:
    """Raise `InputError` for values on which the library would fail later or which it would reinterpret: an unknown
    name, a value of the wrong type or out of range, and a setting that has its own key elsewhere."""
    hints = {**get_type_hints(TrainingArguments), "fsdp": bool | str}  # as its documentation has it
    for name, value in values.items():
        if name not in hints:
            raise InputError(f"[trainer]: unknown key {name!r}; there is what transformers.TrainingArguments has.")
        if name in _ELSEWHERE:
            raise InputError(f"[trainer]: {name} is said by {_ELSEWHERE[name]}, at the top of the file.")
        checked(hints[name], value, f"[trainer]: {name}")
        least = 1 if name == "gradient_accumulation_steps" else 0
        if isinstance(value, int | float) and value < least and name != "max_steps":
            raise InputError(f"[trainer]: {name} must be at least {least}, not {value}.")
        if name in ("adam_beta1", "adam_beta2") and value >= 1:
            raise InputError(f"[trainer]: {name} must be below 1, not {value}.")


def _values(config: TrainConfig) -> dict[str, Any]:
    values: dict[str, Any] = {
        "max_steps": 1000, "learning_rate": 3e-6, "lr_scheduler_type": "cosine", "warmup_steps": 50,
        "max_grad_norm": 1.0, "weight_decay": 0.0, "logging_steps": 50, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": not sys.stderr.isatty(), "dataloader_pin_memory": torch.cuda.is_available(),
        # Every weight has a gradient, of zeros where a step does not use it: see `blockrank.model.wrapping`.
        "ddp_find_unused_parameters": False,
    }  # fmt: skip
    if config.dev is not None:
        values |= {
            "eval_strategy": "steps", "eval_steps": config.dev.every, "metric_for_best_model": config.dev.measure,
            "greater_is_better": True, "load_best_model_at_end": True, "save_strategy": "best", "save_total_limit": 1,
            "restore_callback_states_from_checkpoint": True,
        }  # fmt: skip
    values |= config.trainer
    values |= {"output_dir": config.output, "seed": config.seed, "data_seed": config.seed}
    values["per_device_train_batch_size"] = 1  # an item of the stream is a whole forward
    if values.get("fsdp"):
        values |= _fsdp2(values)
    # Reentrant checkpointing gives a right loss and a wrong gradient for captured queries and keys, silently.
    newer = "activation_checkpointing_kwargs" in TrainingArguments.__dataclass_fields__
    values[("activation" if newer else "gradient") + "_checkpointing_kwargs"] = {"use_reentrant": False}
    if newer and "gradient_checkpointing" in values:
        values["activation_checkpointing"] = values.pop("gradient_checkpointing")
    values["remove_unused_columns"] = False
    return values


def _fsdp2(values: dict[str, Any]) -> dict[str, Any]:
    """FSDP2, sharded by layer. Raises `InputError` for FSDP1, which does not go through `blockrank.model.wrapping`."""
    config = values.get("fsdp_config") or {}
    if not isinstance(config, dict):
        raise InputError("[trainer]: fsdp_config must be a table.")
    config = {key.removeprefix("fsdp_"): value for key, value in config.items()}
    if (version := config.get("version", 2)) != 2:
        raise InputError(f"[trainer]: fsdp_config has version {version!r}; FSDP2 is what is supported.")
    config = {"version": 2, "reshard_after_forward": True, **config}
    return {"fsdp_config": config}


def _check_packages(values: dict[str, Any]) -> None:
    """Raise `MissingExtraError` where a reporter or an optimiser needs a package that is not there."""
    reporters = values["report_to"]
    for name in [reporters] if isinstance(reporters, str) else reporters:
        if name in _REPORTERS and importlib.util.find_spec(_REPORTERS[name]) is None:
            raise MissingExtraError(f"report_to = {name!r} needs {name}: pip install 'blockrank[{name}]'.")
    optimiser = str(values.get("optim", ""))
    quantised = optimiser.endswith("8bit") or "bnb" in optimiser or optimiser.startswith("paged_")
    if quantised and not optimiser.startswith("adamw_torch") and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(f"optim = {optimiser!r} needs bitsandbytes: pip install 'blockrank[bitsandbytes]'.")
