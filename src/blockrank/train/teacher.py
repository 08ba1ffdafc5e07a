"""Teachers: the targets of a student's attention, one score for each candidate."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from blockrank.model import RankModel
from blockrank.scorers import Scorer
from blockrank.train.batch import Batch
from blockrank.types import InputError


class TeacherEnsemble:
    """A weighted ensemble of score tables; see `LossConfig.teachers`."""

    def __init__(self, weights: Mapping[str, float], frozen: tuple[RankModel, Scorer] | None = None) -> None:
        if "model" in weights and frozen is None:
            raise InputError("loss.teachers names 'model', but loss.teacher_checkpoint is not set.")
        self._weights, self._frozen = dict(weights), frozen

    def scores(self, batch: Batch, device: torch.device) -> Tensor:
        """(B, M) teacher scores. Raises `InputError` where the data lacks a teacher that is asked for."""
        tables = []
        for name, weight in self._weights.items():
            if name == "model":
                table = self._frozen_scores(batch)
            elif name == "labels":
                table = batch.positives_BM.to(device, non_blocking=True).float()
            elif name in batch.teachers:
                table = batch.teachers[name].to(device, non_blocking=True)
            else:
                raise InputError(f"loss.teachers names {name!r}, but the data holds only {sorted(batch.teachers)}.")
            tables.append((weight, table))
        if len(tables) == 1:
            return tables[0][1]
        present_BM = batch.present_BM.to(device, non_blocking=True)
        return torch.stack([weight * standardised(table, present_BM) for weight, table in tables]).sum(0)

    def _frozen_scores(self, batch: Batch) -> Tensor:
        assert self._frozen is not None
        model, scorer = self._frozen
        with torch.no_grad():
            capture = model.forward(batch.layout, scorer.wanted(model, batch.layout))
            with torch.autocast(model.device.type, enabled=False):
                logits_C = scorer.logits(model, capture)
        return score_table(logits_C, batch, 0.0)


def score_table(scores_C: Tensor, batch: Batch, absent: float = -math.inf) -> Tensor:
    """(B, M) table of a batch's scores, `absent` where a request has fewer candidates."""
    assert len(scores_C) == int(batch.present_BM.sum()), "a score for each candidate"
    present_BM = batch.present_BM.to(scores_C.device, non_blocking=True)
    return scores_C.new_full(present_BM.shape, absent).masked_scatter(present_BM, scores_C)


def standardised(table_BM: Tensor, present_BM: Tensor) -> Tensor:
    """Zero mean and unit variance within each request, over the candidates present."""
    count_B1 = present_BM.sum(1, keepdim=True)
    kept = table_BM.float().masked_fill(~present_BM, 0.0)
    centred = (kept - kept.sum(1, keepdim=True) / count_B1).masked_fill(~present_BM, 0.0)
    return centred / ((centred**2).sum(1, keepdim=True) / count_B1).sqrt().clamp_min(1e-6)
