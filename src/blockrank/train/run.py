"""Training on `transformers.Trainer`: LM loss on the answer + contrastive attention loss + distillation."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler

from blockrank.model import RankModel, load_model, resolve_spec
from blockrank.spec import RankSpec
from blockrank.train.batch import Batch, ExampleStream, collate
from blockrank.train.config import LossConfig, TrainConfig
from blockrank.train.objective import check_answers, training_loss
from blockrank.train.progress import use_log_lines
from blockrank.train.sets import open_sources
from blockrank.train.teacher import Teacher
from blockrank.types import InputError, MissingExtraError

try:
    import accelerate  # noqa: F401  # transformers.Trainer imports it late and fails obscurely
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise MissingExtraError("training needs accelerate: pip install 'blockrank[train]'.") from error


class RankTrainer(Trainer):  # type: ignore[misc]
    """`transformers.Trainer` whose step is `training_loss` and whose checkpoints rank: weights, tokenizer, spec."""

    def __init__(self, rank_model: RankModel, loss_config: LossConfig, teacher: Teacher | None, **kwargs: Any) -> None:
        self.rank_model, self.loss_config, self.teacher = rank_model, loss_config, teacher
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        super().__init__(model=rank_model.module, **kwargs)
        use_log_lines(self)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Batch], *_: Any, **__: Any) -> Tensor:
        """The weighted sum; parts are averaged until the next log line."""
        parts = training_loss(self.rank_model, inputs["batch"], self.loss_config, self.teacher, model)
        for name, part in parts.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=part.device)) + part.detach()
        self._steps += 1
        return parts["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the parts of the loss to the trainer's own log line."""
        if self._steps and "loss" in logs:
            logs |= {f"loss_{name}": float(total) / self._steps for name, total in self._sums.items() if name != "loss"}
            self._sums, self._steps = {}, 0
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        """The stream is already in random order, and a function of the index: walk it."""
        return SequentialSampler(self.train_dataset)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = output_dir if output_dir is not None else self.args.output_dir
        self.rank_model.spec.save(folder)
        self.rank_model.hf_tokenizer.save_pretrained(folder)


def _collate_for_trainer(examples: list[Any], spec: RankSpec) -> dict[str, Batch]:
    """The trainer wants a mapping."""
    return {"batch": collate(examples, spec)}


def build_trainer(config: TrainConfig) -> RankTrainer:
    """Model, data and trainer of a configuration, ready to run."""
    arguments = _arguments(config)
    spec = resolve_spec(config.model.base, None)
    spec = RankSpec.from_dict({**spec.to_dict(), **config.model.spec})
    wants_lm = config.loss.lm > 0 and bool(spec.prompt.answer)
    if not wants_lm and not config.loss.contrastive_weight and not config.loss.distil:
        raise InputError("every part of [loss] that this template allows has weight 0: there is nothing to learn.")
    model = load_model(
        config.model.base,
        spec=spec,
        device=arguments.device,
        dtype=torch.float32,  # master weights; bf16=true in [trainer] computes in bfloat16
        backend=None,
        head=wants_lm,
        omit_dropout=True,
        layers="library",  # fused ones do not differentiate, and their weights are shared views
    )
    computing = torch.bfloat16 if arguments.bf16 else torch.float32
    if config.model.backend or arguments.bf16:
        model.use_backend(config.model.backend, computing)
    model.module.train()
    assert model.tokenizer is not None
    sources = open_sources(config.data, model.tokenizer, spec, config.loss)
    check_answers(config.loss, sources)
    per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    stream = ExampleStream(sources, arguments.max_steps * per_step, config.seed, config.data.weights)
    return RankTrainer(
        model,
        config.loss,
        _teacher(config, model, computing),
        args=arguments,
        train_dataset=stream,
        data_collator=partial(_collate_for_trainer, spec=spec),
    )


def _teacher(config: TrainConfig, model: RankModel, dtype: torch.dtype) -> Teacher | None:
    """The ensemble a configuration asks for; a frozen checkpoint, in `dtype`, reads the same prompt as the student."""
    if not config.loss.distil:
        return None
    if not config.loss.teachers:
        raise InputError("loss.distil is set, but loss.teachers names no teacher.")
    if config.loss.teacher_checkpoint is None:
        return Teacher(config.loss.teachers)
    frozen = load_model(config.loss.teacher_checkpoint, device=model.device, dtype=dtype)
    if frozen.spec.prompt != model.spec.prompt:
        raise InputError(f"{config.loss.teacher_checkpoint} reads another prompt than the student: it cannot teach it.")
    frozen.module.requires_grad_(False)
    return Teacher(config.loss.teachers, frozen)


def _arguments(config: TrainConfig) -> TrainingArguments:
    """Training arguments with the house's own defaults; checkpointing is always non-reentrant."""
    values: dict[str, Any] = {
        "max_steps": 1000, "per_device_train_batch_size": 16, "learning_rate": 3e-6, "lr_scheduler_type": "cosine",
        "warmup_steps": 50, "max_grad_norm": 1.0, "weight_decay": 0.0, "logging_steps": 50, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": not sys.stderr.isatty(),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }  # fmt: skip
    values |= config.trainer
    values |= {"output_dir": config.output, "seed": config.seed, "data_seed": config.seed}
    # Reentrant checkpointing gives a right loss and a wrong gradient for captured queries and keys, silently.
    newer = "activation_checkpointing_kwargs" in TrainingArguments.__dataclass_fields__
    values[("activation" if newer else "gradient") + "_checkpointing_kwargs"] = {"use_reentrant": False}
    values["remove_unused_columns"] = False
    try:
        arguments = TrainingArguments(**values)
    except (TypeError, ValueError) as error:
        raise InputError(f"[trainer]: {error}") from error
    if arguments.max_steps < 1:
        raise InputError("[trainer]: max_steps must be positive; the data stream has no natural end.")
    return arguments


def train_from_config(path: str | Path, resume: bool = False) -> Path:
    """Run a configuration and return the folder of the trained checkpoint, which `Ranker.from_pretrained` reads.

    resume: go on from the newest checkpoint in the output folder; the result equals an uninterrupted run. Raises
    `InputError` where there is none.
    """
    config = TrainConfig.load(path)
    newest = get_last_checkpoint(config.output) if resume and Path(config.output).is_dir() else None
    if resume and newest is None:
        raise InputError(f"there is no checkpoint to resume from in {config.output}; set save_steps in [trainer].")
    trainer = build_trainer(config)
    trainer.train(resume_from_checkpoint=newest)
    trainer.save_model(config.output)
    return Path(config.output)
