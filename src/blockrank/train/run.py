"""Training on `transformers.Trainer`: LM loss on the answer + contrastive attention loss + distillation."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from blockrank.types import InputError, MissingExtraError

try:  # first: importing the library's trainer without accelerate fails with an unclear error
    from accelerate.utils import gather_object
except ImportError as error:
    raise MissingExtraError("training needs accelerate: pip install 'blockrank[train]'.") from error

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import SequentialSampler
from transformers import EarlyStoppingCallback

from blockrank.model import ADAPTER_CONFIG, Needs, RankModel, load_model, load_tokenizer
from blockrank.ranker import Ranker
from blockrank.scorers import AttentionScorer, Scorer, resolve_scorer
from blockrank.spec import RankSpec
from blockrank.train.adapters import merge_saved, with_adapters
from blockrank.train.arguments import requests_in_forward, training_arguments
from blockrank.train.batch import Batch, ExampleStream, collate
from blockrank.train.config import LossConfig, TrainConfig
from blockrank.train.dev import DevSet, LastEvaluation, open_dev_set
from blockrank.train.divergence import FiniteTrainer
from blockrank.train.forwards import ForwardStream
from blockrank.train.losses import POINTWISE_LOSSES
from blockrank.train.objective import check_answers, trained_scorer, training_loss
from blockrank.train.progress import use_log_lines
from blockrank.train.sets import ExampleSource, open_sources
from blockrank.train.teacher import TeacherEnsemble


class RankTrainer(FiniteTrainer):
    """`transformers.Trainer` whose step is `training_loss` and whose checkpoints rank: weights, tokenizer, spec."""

    def __init__(
        self,
        rank_model: RankModel,
        loss_config: LossConfig,
        teacher: TeacherEnsemble | None,
        dev: DevSet | None = None,
        adapted: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        self.rank_model, self.loss_config, self.teacher = rank_model, loss_config, teacher
        self.scorer = trained_scorer(rank_model.spec)
        self.is_adapted = adapted is not None
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        super().__init__(model=rank_model.module if adapted is None else adapted, eval_dataset=dev, **kwargs)
        use_log_lines(self)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Batch], *_: Any, **__: Any) -> Tensor:
        """The weighted sum; parts are averaged until the next log line."""
        parts = training_loss(self.rank_model, inputs["batch"], self.loss_config, self.teacher, model, self.scorer)
        for name, part in parts.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=part.device)) + part.detach()
        self._steps += 1
        return parts["loss"]

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Rank the dev set with the current weights; returns its measure as `eval_...`, the name that the library's
        callbacks expect.

        The requests are divided over the processes. Under FSDP all processes gather each layer's weights together, so
        each of them ranks all requests.
        """
        dev, start = self.eval_dataset, time.perf_counter()
        assert isinstance(dev, DevSet)
        self.check_weights()
        ranker = Ranker(self.rank_model.through(self.model), self.scorer)
        self.model.eval()
        if isinstance(self.model, FSDPModule):
            run = dev.run(ranker)
            self.model.reshard()  # the root module's weights stay gathered until a backward, and none follows
        elif self.args.world_size == 1:
            run = dev.run(ranker)
        else:
            parts = gather_object([dev.run(ranker, slice(self.args.process_index, None, self.args.world_size))])
            run = {query_id: scores for part in parts for query_id, scores in part.items()}
        self.model.train()
        metrics = {f"eval_{dev.measure}": dev.score(run), "eval_seconds": time.perf_counter() - start}
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the parts of the loss, means over all forwards of all processes, to the trainer's own log line."""
        if self._steps and "loss" in logs:
            sums = [({name: float(total) for name, total in self._sums.items()}, self._steps)]
            sums = gather_object(sums) if self.args.world_size > 1 else sums
            forwards = sum(count for _, count in sums)
            for name in dict.fromkeys(name for part, _ in sums for name in part if name != "loss"):
                logs[f"loss_{name}"] = sum(part.get(name, 0.0) for part, _ in sums) / forwards
            self._sums, self._steps = {}, 0
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        """Sequential: the stream is already in random order, and a function of the index."""
        return SequentialSampler(self.train_dataset)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        if not self.is_adapted:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:  # "auto" would look up the base on the hub, for changes to its vocabulary
            self.model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)
        if not self.args.should_save:
            return
        # Remove files that would change the meaning of the folder: adapters of an earlier run; a model card without
        # content.
        (folder / ("README.md" if self.is_adapted else ADAPTER_CONFIG)).unlink(missing_ok=True)
        self.rank_model.spec.save(folder)
        self.rank_model.weights.hf_tokenizer.save_pretrained(folder)


def _collate_for_trainer(examples: list[Any], spec: RankSpec) -> dict[str, Batch]:
    """The trainer wants a mapping."""
    [forward] = examples
    return {"batch": collate(forward, spec)}


def build_trainer(config: TrainConfig) -> RankTrainer:
    """Model, data and trainer of a configuration, ready to run."""
    arguments = training_arguments(config)
    spec = student_spec(config)
    dev = open_dev_set(config.dev) if config.dev is not None else None
    model = load_model(
        config.model.base,
        spec=spec,
        device=arguments.device,
        dtype=torch.float32,  # master weights; bf16=true in [trainer] computes in bfloat16
        backend=None,
        needs=student_needs(config, spec),
        omit_dropout=True,
        layers="library",  # fused layers have no gradients, and their weights are shared views
    )
    trained_scorer(spec).check(model)
    computing = torch.bfloat16 if arguments.bf16 else torch.float32
    if config.model.backend or arguments.bf16:
        model.use_backend(config.model.backend, computing)
    adapted = (
        with_adapters(model.module, config.lora, config.model.base, config.seed) if config.lora is not None else None
    )
    model.module.train()
    assert model.tokenizer is not None
    sources = open_sources(config.data, model.tokenizer, spec, config.loss)
    check_answers(config.loss, sources)
    trainer = RankTrainer(
        model,
        config.loss,
        _teacher(config, model, computing),
        dev,
        adapted,
        args=arguments,
        train_dataset=forward_stream(config, sources, arguments.max_steps, forwards_in_step(arguments)),
        data_collator=partial(_collate_for_trainer, spec=spec),
    )
    if config.dev is not None:
        trainer.add_callback(LastEvaluation())
        trainer.add_callback(EarlyStoppingCallback(config.dev.patience))
    return trainer


def student_spec(config: TrainConfig) -> RankSpec:
    """The `RankSpec` of the model in training, by which it is read afterwards without an option.

    Raises `InputError` where its scorer cannot be trained, or by such a loss, or where there is nothing to learn.
    """
    named = dict(config.model.spec) | ({} if config.model.scorer is None else {"scorer": config.model.scorer})
    scorer, spec = resolve_scorer(config.model.base, named.get("scorer"))
    try:
        spec = scorer.adapted(spec.changed(**named))
    except InputError as error:
        raise InputError(f"[model]: spec: {error}") from None
    _check_scorer(trained_scorer(spec), config.loss)
    spec = scorer.worded(spec, load_tokenizer(config.model.base)[0])
    if not wants_head(config, spec) and not config.loss.contrastive_weight and not config.loss.distil:
        raise InputError("every part of [loss] that this template allows has weight 0: there is nothing to learn.")
    return spec


def _check_scorer(scorer: Scorer, loss: LossConfig) -> None:
    """Raise `InputError` where a scorer cannot be trained by these losses."""
    named = (("contrastive", loss.contrastive_weight), ("distil_loss", loss.distil))
    for key in (key for key, weight in named if weight and getattr(loss, key) in POINTWISE_LOSSES):
        if scorer.kind not in ("logit", "probability"):
            raise InputError(
                f"loss.{key} {getattr(loss, key)!r} is for scorers that score each document by itself; the scorer "
                f"{scorer.name!r} compares those of one request."
            )
    if loss.orthogonality and not isinstance(scorer, AttentionScorer):
        raise InputError(f"loss.orthogonality is of signal tokens, and the scorer {scorer.name!r} reads none.")


def wants_head(config: TrainConfig, spec: RankSpec) -> bool:
    """Whether the run needs the language-model head and all layers below it."""
    return config.loss.lm > 0 and bool(spec.prompt.answer)


def forwards_in_step(arguments: Any) -> int:
    """Forwards of all processes together in one step of the optimiser."""
    return int(arguments.gradient_accumulation_steps * arguments.world_size)


def forward_stream(config: TrainConfig, sources: Sequence[ExampleSource], steps: int, lanes: int) -> ForwardStream:
    """The requests of each forward of a run of `steps` steps."""
    requests = requests_in_forward(config)
    examples = ExampleStream(sources, steps * lanes * requests, config.seed, config.data.weights)
    return ForwardStream(examples, steps, lanes, requests, config.data)


def student_needs(config: TrainConfig, spec: RankSpec) -> Needs:
    """What of the base is loaded, trained and saved."""
    needs = trained_scorer(spec).needs(spec)
    return replace(needs, logits=needs.logits or wants_head(config, spec))


def _teacher(config: TrainConfig, model: RankModel, dtype: torch.dtype) -> TeacherEnsemble | None:
    """The ensemble a configuration asks for; a frozen checkpoint, in `dtype`, reads the same prompt as the student."""
    if not config.loss.distil:
        return None
    if not config.loss.teachers:
        raise InputError("loss.distil is set, but loss.teachers names no teacher.")
    if config.loss.teacher_checkpoint is None:
        return TeacherEnsemble(config.loss.teachers)
    teacher = config.loss.teacher_checkpoint
    scorer, spec = resolve_scorer(teacher, trained_scorer(model.spec))
    spec = scorer.worded(spec, load_tokenizer(teacher)[0])
    frozen = load_model(teacher, spec=spec, device=model.device, dtype=dtype, needs=scorer.needs(spec))
    if frozen.spec.prompt != model.spec.prompt:
        raise InputError(f"{teacher} reads another prompt than the student: it cannot teach it.")
    frozen.module.requires_grad_(False)
    return TeacherEnsemble(config.loss.teachers, (frozen, scorer))


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The newest complete checkpoint of a run. The trainer state is written last: a checkpoint without it is
    incomplete."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return path
    return None


def train_from_config(path: str | Path, resume: bool = False) -> Path:
    """Run a configuration and return the folder of the trained checkpoint, which `Ranker.from_pretrained` reads.

    resume: go on from the newest checkpoint in the output folder; the result equals an uninterrupted run. Raises
    `InputError` where there is none.
    """
    config = TrainConfig.load(path)
    newest = newest_checkpoint(config.output) if resume else None
    if resume and newest is None:
        raise InputError(f"there is no checkpoint to resume from in {config.output}; set save_steps in [trainer].")
    trainer = build_trainer(config)
    trainer.train(resume_from_checkpoint=str(newest) if newest is not None else None)
    if trainer.is_fsdp_enabled:  # sharded checkpoints are for resuming; the result is one file
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(config.output)
    if config.lora is not None and config.lora.merge and trainer.args.should_save:
        merge_saved(Path(config.output), student_needs(config, trainer.rank_model.spec))
    trainer.accelerator.wait_for_everyone()  # no process returns before the result is written
    return Path(config.output)
