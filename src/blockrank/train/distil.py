"""Distillation into a bi-encoder: its similarities learn a teacher's distribution over the documents of a request.

    loss = KL(softmax(teacher's scores / teacher_temperature) || softmax(similarities / temperature))

averaged over requests. The teacher's scores are stored with the requests; those of a ranker are logarithms of shares.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blockrank.types import InputError, MissingExtraError

try:  # first: importing the library's trainer without accelerate fails with an unclear error
    import accelerate  # noqa: F401
    import sentence_transformers  # noqa: F401
except ImportError as error:
    raise MissingExtraError(f"distillation needs {error.name}: pip install 'blockrank[distil]'.") from error

import torch
from torch import Tensor
from transformers import TrainingArguments

from blockrank import __version__
from blockrank.keep.files import new_folder
from blockrank.model import quiet_libraries
from blockrank.retrieve.encoder import SentenceEncoder
from blockrank.train.divergence import FiniteTrainer
from blockrank.train.lists import ListCollator, ScoredLists, list_logits, read_lists
from blockrank.train.losses import list_kl
from blockrank.train.progress import use_log_lines

RECORD = "distil.json"
_COSINE, _DOT = 0.05, 1.0  # temperatures of similarities: cosines differ by a few hundredths
_LOG_LINES = 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Distillation:
    """How a bi-encoder is trained.

    epochs: passes over the requests. steps: number of steps, instead of epochs. batch_size: requests in a step;
    accumulate: forwards into which a step is divided, with the same result in less memory. warmup: share of the steps
    over which the learning rate rises; after that it falls linearly to zero. temperature: divides the similarities;
    None means 0.05 for cosines and 1 for dot products. teacher_temperature: divides the teacher's scores. bf16: compute
    in bfloat16; None means on a GPU that supports it. seed: of order and dropout.

    Raises `InputError` naming the field.
    """

    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 2e-5
    warmup: float = 0.1
    temperature: float | None = None
    teacher_temperature: float = 1.0
    bf16: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "teacher_temperature", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be above zero, not {value}.")
        for name in ("steps", "batch_size", "accumulate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}.")
        if self.batch_size % self.accumulate:
            raise InputError(f"accumulate must divide batch_size ({self.batch_size}); {self.accumulate} does not.")
        if not 0 <= self.warmup <= 1:
            raise InputError(f"warmup must be a share of the steps, from 0 to 1, not {self.warmup}.")

    def steps_over(self, requests: int) -> int:
        """Steps of a run over so many requests."""
        return self.steps or math.ceil(self.epochs * math.ceil(requests / self.batch_size))


@dataclass(frozen=True, slots=True)
class Distilled:
    """What was trained on: requests used, requests left out for having one document, distinct documents; the steps;
    and the mean loss over the first and over the last fifth of them."""

    requests: int
    single: int
    documents: int
    steps: int
    first_loss: float
    last_loss: float


class ListTrainer(FiniteTrainer):
    """The library's trainer on lists."""

    def __init__(self, encoder: SentenceEncoder, settings: Distillation, **kwargs: Any) -> None:
        super().__init__(model=encoder.model, **kwargs)
        # The model's forward takes any keyword, which the library reads as "sums its own loss over a step".
        self.model_accepts_loss_kwargs = False
        self._cosine = encoder.score == "cosine"
        self._temperature = settings.temperature or (_COSINE if self._cosine else _DOT)
        self._teacher_temperature = settings.teacher_temperature

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        """Mean divergence of a batch."""
        logits_BM = list_logits(model, inputs, self._temperature, cosine=self._cosine)
        return list_kl(logits_BM, inputs["teacher_BM"] / self._teacher_temperature)


def train_encoder(
    encoder: SentenceEncoder, lists: ScoredLists, settings: Distillation, *, device: str | None = None
) -> Distilled:
    """Train the encoder's model in place and leave it ready to encode, in float32.

    device: `cpu`, `cuda`, or None for automatic choice. Raises `InputError` on any other device, and under torchrun;
    `ModelError` where training diverges.
    """
    steps = settings.steps_over(len(lists))
    with tempfile.TemporaryDirectory(prefix="blockrank-distil-") as folder:
        trainer = ListTrainer(
            encoder,
            settings,
            args=_arguments(settings, steps, folder, device),
            train_dataset=lists,
            data_collator=ListCollator(encoder.model, lists.texts),
        )
        use_log_lines(trainer)
        trainer.train()
        trainer.check_weights()
    # Otherwise its forward would still compute in bfloat16.
    trainer.accelerator.unwrap_model(encoder.model, keep_fp32_wrapper=False)
    encoder.model.eval()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    fifth = math.ceil(len(losses) / 5)
    first, last = (sum(part) / fifth for part in (losses[:fifth], losses[-fifth:]))
    return Distilled(len(lists), lists.single, len(lists.texts), steps, first, last)


def _check_device(device: str | None) -> None:
    if device not in (None, "cpu", "cuda"):
        raise InputError(f"device must be cpu or cuda, not {device!r}; CUDA_VISIBLE_DEVICES says which GPU.")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but torch finds no GPU here.")


def _arguments(settings: Distillation, steps: int, folder: str, device: str | None) -> TrainingArguments:
    """The library's arguments. Raises `InputError` as `train_encoder`."""
    _check_device(device)
    on_gpu = device != "cpu" and torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size // settings.accumulate,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        warmup_steps=round(settings.warmup * steps),
        lr_scheduler_type="linear",
        weight_decay=0.0,
        bf16=on_gpu and torch.cuda.is_bf16_supported() if settings.bf16 is None else settings.bf16,
        use_cpu=device == "cpu",
        seed=settings.seed,
        logging_steps=max(1, steps // _LOG_LINES),
        save_strategy="no",
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
    )
    if arguments.world_size > 1:
        raise InputError("distillation runs in one process: start it without torchrun.")
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # the library would split batches over threads
    return arguments


def distil(
    requests: str | Path,
    encoder: str | Path,
    output: str | Path,
    settings: Distillation | None = None,
    *,
    device: str | None = None,
) -> Distilled:
    """Train a bi-encoder on requests with a teacher's scores and save it as a folder of sentence-transformers.

    requests: training requests with `teacher`, as `blockrank data teach` writes them; positives are not looked at.
    encoder: a folder or a hub name. output: a folder that does not exist yet, or is empty; it appears whole or not at
    all, with a record of the run in `distil.json`.

    Raises `InputError` where requests are broken or have no scores, or the output exists; `ModelError` where the
    encoder cannot be loaded or training diverges.
    """
    settings = settings or Distillation()
    _check_device(device)
    with new_folder(Path(output)) as part:
        lists = read_lists(requests)
        torch.manual_seed(settings.seed)  # weights missing from the encoder's folder are initialised at random
        student = SentenceEncoder(encoder, device=device)
        found = train_encoder(student, lists, settings, device=device)
        with quiet_libraries():
            student.model.save_pretrained(str(part), create_model_card=False)
        record = {
            "blockrank": __version__,
            "encoder": str(encoder),
            "requests": str(requests),
            "settings": asdict(settings),
            "result": asdict(found),
        }
        (part / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return found
