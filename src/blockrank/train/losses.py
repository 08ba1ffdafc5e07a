"""Losses as pure functions of log scores, targets and a mask.

Shapes: B requests, M candidates of the largest request. `log_scores_BM` is the log of the attention shares of
`blockrank.signals.log_scores`, -inf where a request has fewer than M candidates; `positives_BM` is boolean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce(log_scores_BM: Tensor, positives_BM: Tensor, temperature: float = 0.05) -> Tensor:
    """Contrastive attention loss: InfoNCE over the shares themselves (method, section 2; tau = 0.05).

    -log(sum over positives of exp(S/tau) / sum over all of exp(S/tau)), averaged over requests. Several positives are
    pooled by log-sum-exp, as in the released code. A request without a positive contributes nothing.
    """
    # The share of an absent candidate is 0, not -inf: keep it out of the sum explicitly.
    logits_BM = (log_scores_BM.exp() / temperature).masked_fill(log_scores_BM == -math.inf, -math.inf)
    return _pooled_cross_entropy(logits_BM, positives_BM)


def attention_cross_entropy(log_scores_BM: Tensor, positives_BM: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy on the attention itself: -log of the share of all positives together, tempered.

    With temperature 1 and shares that sum to one this is -log(sum over positives of S), the CopyNet form.
    """
    return _pooled_cross_entropy(log_scores_BM / temperature, positives_BM)


def list_kl(
    log_scores_BM: Tensor, teacher_BM: Tensor, teacher_temperature: float = 0.05, temperature: float = 1.0
) -> Tensor:
    """KL(softmax(teacher / teacher_temperature) || softmax(log_scores / temperature)), averaged over requests.

    teacher_BM: the teacher's scores of the same candidates; values at absent candidates are ignored.
    """
    absent_BM = log_scores_BM == -math.inf
    target = (teacher_BM.float() / teacher_temperature).masked_fill(absent_BM, -math.inf).log_softmax(1)
    student = (log_scores_BM / temperature).log_softmax(1)
    terms = (target.exp() * (target.masked_fill(absent_BM, 0) - student.masked_fill(absent_BM, 0))).sum(1)
    return terms.mean()


def margin_mse(log_scores_BM: Tensor, teacher_BM: Tensor, positives_BM: Tensor, scale: float = 1.0) -> Tensor:
    """Mean squared difference of (positive - negative) margins of log scores and of `scale` times the teacher's."""
    present_BM = log_scores_BM > -math.inf
    pairs = positives_BM[:, :, None] & (present_BM & ~positives_BM)[:, None, :]
    student = log_scores_BM.masked_fill(~present_BM, 0)
    margins = student[:, :, None] - student[:, None, :]
    wanted = scale * (teacher_BM[:, :, None] - teacher_BM[:, None, :])
    return ((margins - wanted)[pairs] ** 2).mean() if bool(pairs.any()) else log_scores_BM.new_zeros(())


def lm_loss(logits_AV: Tensor, labels_A: Tensor) -> Tensor:
    """Cross-entropy of the answer's tokens. logits_AV: next-token logits at the positions before each label."""
    return F.cross_entropy(logits_AV.float(), labels_A)


def _pooled_cross_entropy(logits_BM: Tensor, positives_BM: Tensor) -> Tensor:
    """Mean over requests with a positive of logsumexp(all) - logsumexp(positives)."""
    useful_B = positives_BM.any(1)
    if not bool(useful_B.any()):
        return (logits_BM.masked_fill(logits_BM == -math.inf, 0) * 0).sum()
    logits_BM, positives_BM = logits_BM[useful_B], positives_BM[useful_B]
    positive_B = logits_BM.masked_fill(~positives_BM, -math.inf).logsumexp(1)
    return torch.mean(logits_BM.logsumexp(1) - positive_B)
