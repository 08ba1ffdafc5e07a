"""The loss of a training step: which parts apply, found by their names in the tables of `losses`, and their sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from blockrank.engine.capture import Wanted
from blockrank.model import RankModel
from blockrank.readout.signals import log_scores
from blockrank.train import losses
from blockrank.train.batch import Batch
from blockrank.train.config import LossConfig
from blockrank.train.sets import ExampleSource, RequestFile
from blockrank.train.teacher import TeacherEnsemble, score_table
from blockrank.types import InputError


def training_loss(
    model: RankModel,
    batch: Batch,
    config: LossConfig,
    teacher: TeacherEnsemble | None = None,
    module: nn.Module | None = None,
) -> dict[str, Tensor]:
    """All parts of the loss of one packed step, and their weighted sum under "loss".

    The read-out runs in float32 outside autocast, like everywhere else. Raises `InputError` where no part applies.
    """
    wants_lm = config.lm > 0 and len(batch.label_A) > 0
    capture = model.forward(
        batch.layout,
        replace(Wanted.read_out(model.spec), logits_R=batch.context_A.numpy() if wants_lm else None),
        whole=is_checkpointing(model.module),
        module=module,
    )
    with torch.autocast(model.device.type, enabled=False):
        layer = capture.only
        scores_C = log_scores(layer.q_GNH, layer.k_PKH, batch.layout, model.spec, layer.scale)
        parts = _parts(score_table(scores_C, batch), batch, config, teacher)
        if wants_lm:
            assert capture.logits_RV is not None
            form = losses.LM_LOSSES[config.lm_loss]
            labels_A, rank_A = batch.label_A.to(model.device), batch.rank_A.to(model.device)
            parts["lm"] = form(capture.logits_RV, labels_A, rank_A, config.lm_separator_weight)
    if not parts:
        raise InputError("a batch holds no answers for loss.lm, and every other part of [loss] has weight 0.")
    weights = {"contrastive": config.contrastive_weight, "distil": config.distil, "lm": config.lm}
    parts["loss"] = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    return parts


def is_checkpointing(module: nn.Module) -> bool:
    """Whether any layer recomputes its activations: then a forward must run through all layers."""
    return any(getattr(part, "gradient_checkpointing", False) for part in module.modules())


def _parts(table_BM: Tensor, batch: Batch, config: LossConfig, teacher: TeacherEnsemble | None) -> dict[str, Tensor]:
    """The losses of the read-out whose weight is not 0."""
    parts, positives_BM = {}, batch.positives_BM.to(table_BM.device)
    if config.contrastive_weight:
        form = losses.CONTRASTIVE_LOSSES[config.contrastive]
        parts["contrastive"] = form(table_BM, positives_BM, config.temperature)
    if config.distil and teacher is not None:
        scores_BM = teacher.scores(batch, table_BM.device) / config.teacher_temperature
        distil = losses.DISTIL_LOSSES[config.distil_loss]
        parts["distil"] = distil(table_BM / config.distil_temperature, scores_BM, positives_BM)
    return parts


def check_answers(config: LossConfig, sources: Sequence[ExampleSource]) -> None:
    """Refuse sources without answers where the LM loss is the only loss: some batch would hold none."""
    if config.contrastive_weight or config.distil:
        return
    for source in sources:
        if not isinstance(source, RequestFile):
            raise InputError(
                f"the training set {source.name!r} holds no answers for loss.lm, and every other part of [loss] has "
                "weight 0."
            )
