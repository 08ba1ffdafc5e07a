"""The loss of a training step: which parts apply, found by their names in the tables of `losses`, and their sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from blockrank.engine.capture import Capture, Wanted
from blockrank.layout import Ints
from blockrank.model import RankModel
from blockrank.scorers import SCORERS, Scorer
from blockrank.spec import RankSpec
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
    scorer: Scorer | None = None,
) -> dict[str, Tensor]:
    """All parts of the loss of one packed step, and their weighted sum under "loss".

    scorer: its logits are what is trained, those of the spec's own if left out. They are computed in float32 outside
    autocast, like everywhere else. Raises `InputError` where no part applies.
    """
    wants_lm = config.lm > 0 and len(batch.label_A) > 0
    scorer = scorer if scorer is not None else trained_scorer(model.spec)
    wanted = scorer.wanted(model, batch.layout)
    capture = model.forward(
        batch.layout,
        _with_answers(wanted, batch.context_A.numpy()) if wants_lm else wanted,
        whole=is_checkpointing(model.module),
        module=module,
    )
    capture, answer_AV = _apart(capture, wanted) if wants_lm else (capture, None)
    with torch.autocast(model.device.type, enabled=False):
        logits_BM = score_table(scorer.logits(model, capture), batch)
        parts = _parts(logits_BM, batch, config, teacher, are_shares=scorer.kind == "share")
        if config.orthogonality:
            parts["orthogonality"] = losses.orthogonality(capture.only.q_GNH, batch.layout.signal_request_G)
        if answer_AV is not None:
            form = losses.LM_LOSSES[config.lm_loss]
            labels_A, rank_A = batch.label_A.to(model.device), batch.rank_A.to(model.device)
            parts["lm"] = form(answer_AV, labels_A, rank_A, config.lm_separator_weight)
    if not parts:
        raise InputError("a batch holds no answers for loss.lm, and every other part of [loss] has weight 0.")
    weights = {"contrastive": config.contrastive_weight, "distil": config.distil, "lm": config.lm}
    weights["orthogonality"] = config.orthogonality
    parts["loss"] = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    return parts


def trained_scorer(spec: RankSpec) -> Scorer:
    """The scorer that a spec names. Raises `InputError` where it cannot be trained."""
    scorer = SCORERS.make(spec.scorer)
    if scorer.has_logits:
        return scorer
    raise InputError(f"[model]: the scorer {scorer.name!r} cannot be trained: it has no scores to learn by.")


def _with_answers(wanted: Wanted, context_A: Ints) -> Wanted:
    """What the scorer wants, and behind its own rows those that predict the tokens of answers."""
    own = wanted.logits_R if wanted.logits_R is not None else context_A[:0]
    return replace(wanted, logits_R=np.concatenate([own, context_A]))


def _apart(capture: Capture, wanted: Wanted) -> tuple[Capture, Tensor]:
    """What the scorer wanted, and the logits (A, V) of answers."""
    assert capture.logits_RV is not None, "asked for"
    count = len(wanted.logits_R) if wanted.logits_R is not None else 0
    return replace(capture, logits_RV=capture.logits_RV[:count]), capture.logits_RV[count:]


def is_checkpointing(module: nn.Module) -> bool:
    """Whether any layer recomputes its activations: then a forward must run through all layers."""
    return any(getattr(part, "gradient_checkpointing", False) for part in module.modules())


def _parts(
    logits_BM: Tensor, batch: Batch, config: LossConfig, teacher: TeacherEnsemble | None, *, are_shares: bool
) -> dict[str, Tensor]:
    """The losses of a scorer's logits whose weight is not 0. Those of lists and pairs see shares: of scores that are
    none, their softmax."""
    parts, positives_BM = {}, batch.positives_BM.to(logits_BM.device)
    table_BM = logits_BM if are_shares else logits_BM.log_softmax(1)
    if config.contrastive_weight:
        form = losses.CONTRASTIVE_LOSSES[config.contrastive]
        seen_BM = logits_BM if config.contrastive in losses.POINTWISE_LOSSES else table_BM
        parts["contrastive"] = form(seen_BM, positives_BM, config.temperature)
    if config.distil and teacher is not None:
        scores_BM = teacher.scores(batch, table_BM.device) / config.teacher_temperature
        distil = losses.DISTIL_LOSSES[config.distil_loss]
        seen_BM = logits_BM if config.distil_loss in losses.POINTWISE_LOSSES else table_BM
        parts["distil"] = distil(seen_BM / config.distil_temperature, scores_BM, positives_BM)
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
