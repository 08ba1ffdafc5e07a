"""Losses as pure functions of log scores, targets and a mask; `docs/losses.md` has them in one table.

Shapes: B requests, M candidates of the largest request, A answer tokens. `log_scores_BM` is the log of the attention
shares of `blockrank.readout.signals.log_scores`, -inf where a request has fewer than M candidates; `positives_BM` is
boolean; `teacher_BM` are scores or graded labels of the same candidates, of any scale; values at absent candidates are
ignored. Losses of log scores and teacher have no temperature: divide both by theirs first.

Every loss is an average over the requests to which it applies; the others contribute nothing. In losses of the
teacher's order, equal scores share the mean of their ranks, and a pair of equal scores contributes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from blockrank.layout import Ints
from blockrank.types import InputError

# Contrastive losses on labels

ContrastiveLoss = Callable[[Tensor, Tensor, float], Tensor]


def info_nce(log_scores_BM: Tensor, positives_BM: Tensor, temperature: float = 0.05) -> Tensor:
    """Contrastive attention loss: InfoNCE over the shares themselves (method, section 2; tau = 0.05).

    -log(sum over positives of exp(S/tau) / sum over all of exp(S/tau)), averaged over requests. Several positives are
    pooled by log-sum-exp, as in the released code. A request without a positive contributes nothing.
    """
    # The share of an absent candidate is 0, not -inf: keep it out of the sum explicitly.
    logits_BM = (log_scores_BM.exp() / temperature).masked_fill(log_scores_BM == -math.inf, -math.inf)
    return _pooled_cross_entropy(logits_BM, positives_BM)


def attention_cross_entropy(log_scores_BM: Tensor, positives_BM: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy on the attention itself: -log of the total share of all positives, with a temperature.

    With temperature 1 and shares that sum to one this is -log(sum over positives of S), the CopyNet form.
    """
    return _pooled_cross_entropy(log_scores_BM / temperature, positives_BM)


def _pooled_cross_entropy(logits_BM: Tensor, positives_BM: Tensor) -> Tensor:
    """Mean over requests with a positive of logsumexp(all) - logsumexp(positives)."""
    useful_B = positives_BM.any(1)
    if not bool(useful_B.any()):
        return (logits_BM.masked_fill(logits_BM == -math.inf, 0) * 0).sum()
    logits_BM, positives_BM = logits_BM[useful_B], positives_BM[useful_B]
    positive_B = logits_BM.masked_fill(~positives_BM, -math.inf).logsumexp(1)
    return torch.mean(logits_BM.logsumexp(1) - positive_B)


def binary_cross_entropy(logits_BM: Tensor, positives_BM: Tensor, temperature: float = 1.0) -> Tensor:
    """Binary cross-entropy of each document by itself: of sigmoid(logit / temperature) against whether it is a
    positive, averaged over the candidates of a request. For logits on one scale for all requests, not for shares."""
    present_BM = logits_BM > -math.inf
    terms_BM = F.binary_cross_entropy_with_logits(
        logits_BM.masked_fill(~present_BM, 0) / temperature, positives_BM.to(logits_BM.dtype), reduction="none"
    )
    return _mean_over(terms_BM, present_BM)


CONTRASTIVE_LOSSES: dict[str, ContrastiveLoss] = {
    "info_nce": info_nce,
    "cross_entropy": attention_cross_entropy,
    "bce": binary_cross_entropy,
}
POINTWISE_LOSSES = frozenset({"bce", "bce_logits"})  # of logits as they are; all others are of shares

# Lists: the teacher's scores as a distribution


def list_kl(log_scores_BM: Tensor, teacher_BM: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(log scores)): `listnet` minus the teacher's entropy, so that the minimum is 0."""
    return _soft_cross_entropy(log_scores_BM, teacher_BM) - _soft_cross_entropy(
        teacher_BM.float().masked_fill(log_scores_BM == -math.inf, -math.inf), teacher_BM
    )


def listnet(log_scores_BM: Tensor, teacher_BM: Tensor) -> Tensor:
    """ListNet with top-one probabilities (Cao et al., 2007): the cross-entropy of softmax(log scores) under
    softmax(teacher)."""
    return _soft_cross_entropy(log_scores_BM, teacher_BM)


def _soft_cross_entropy(logits_BM: Tensor, teacher_BM: Tensor) -> Tensor:
    """Mean over requests of -sum(softmax(teacher) log softmax(logits)) over the candidates whose logit is not -inf."""
    absent_BM = logits_BM == -math.inf
    target_BM = teacher_BM.float().masked_fill(absent_BM, -math.inf).softmax(1)
    return -(target_BM * logits_BM.log_softmax(1).masked_fill(absent_BM, 0)).sum(1).mean()


def adr_mse(log_scores_BM: Tensor, teacher_BM: Tensor) -> Tensor:
    """Approximate discounted rank MSE (Rank-DistiLLM, arXiv 2405.07920): the squared difference of the teacher's rank r
    and the soft rank 1 + sum over the others of sigmoid(s_j - s_i), over log2(r + 1), averaged over the candidates."""
    scores_BM, present_BM = _present(log_scores_BM)
    rank_BM = ranks(teacher_BM, present_BM)
    others_BMM = present_BM[:, None, :] & ~torch.eye(scores_BM.shape[1], dtype=torch.bool, device=scores_BM.device)
    ahead_BMM = torch.sigmoid(scores_BM[:, None, :] - scores_BM[:, :, None])
    soft_BM = 1 + (ahead_BMM * others_BMM).sum(2)
    return _mean_over((rank_BM - soft_BM) ** 2 / torch.log2(rank_BM + 1), present_BM)


# Documents by themselves: the teacher says how likely each is relevant


def soft_binary_cross_entropy(logits_BM: Tensor, teacher_BM: Tensor) -> Tensor:
    """Binary cross-entropy of sigmoid(logit) against the teacher's probability of each document, averaged over the
    candidates of a request. Raises `InputError` where a teacher's score is no probability."""
    present_BM = logits_BM > -math.inf
    target_BM = teacher_BM.to(logits_BM.dtype).masked_fill(~present_BM, 0)
    if bool(((target_BM < 0) | (target_BM > 1)).any()):
        raise InputError(
            "loss.distil_loss 'bce' takes teachers' scores that are in [0, 1] once divided by "
            "loss.teacher_temperature; 'bce_logits' takes any."
        )
    terms_BM = F.binary_cross_entropy_with_logits(logits_BM.masked_fill(~present_BM, 0), target_BM, reduction="none")
    return _mean_over(terms_BM, present_BM)


def logit_binary_cross_entropy(logits_BM: Tensor, teacher_BM: Tensor) -> Tensor:
    """As `soft_binary_cross_entropy`, with sigmoid(teacher's score) as the probability."""
    return soft_binary_cross_entropy(logits_BM, teacher_BM.float().sigmoid())


# Pairs: i stands before j in the teacher's order


def margin_mse(log_scores_BM: Tensor, teacher_BM: Tensor, positives_BM: Tensor) -> Tensor:
    """MarginMSE (Hofstätter et al., arXiv 2010.02666): the squared difference of the margins s_i - s_j and t_i - t_j,
    with i a positive and j not, averaged over a request's pairs."""
    scores_BM, present_BM = _present(log_scores_BM)
    pairs_BMM = positives_BM[:, :, None] & (present_BM & ~positives_BM)[:, None, :]
    off_BMM = (_margins(scores_BM) - _margins(teacher_BM.masked_fill(~present_BM, 0))) ** 2
    return _mean_over(off_BMM, pairs_BMM)


def ranknet(log_scores_BM: Tensor, teacher_BM: Tensor) -> Tensor:
    """RankNet (Burges et al., 2005): log(1 + exp(s_j - s_i)), averaged over a request's pairs."""
    scores_BM, present_BM = _present(log_scores_BM)
    return _mean_over(F.softplus(-_margins(scores_BM)), _ordered(teacher_BM, present_BM))


def weighted_ranknet(log_scores_BM: Tensor, teacher_BM: Tensor) -> Tensor:
    """RankNet with each pair divided by the sum of its ranks r_i + r_j (FIRST, arXiv 2406.15657)."""
    scores_BM, present_BM = _present(log_scores_BM)
    rank_BM = ranks(teacher_BM, present_BM)
    terms_BMM = F.softplus(-_margins(scores_BM)) / (rank_BM[:, :, None] + rank_BM[:, None, :])
    return _mean_over(terms_BMM, _ordered(teacher_BM, present_BM))


def ndcg_loss2(log_scores_BM: Tensor, teacher_BM: Tensor) -> Tensor:
    """NDCG-Loss2 of LambdaLoss (Wang et al., 2018), FIRST's "lambda": pairs weighted by their gains and by the discount
    that nDCG gives to their distance.

    w_ij log2(1 + exp(s_j - s_i)), w_ij = |1/D(d) - 1/D(d + 1)| |G_i - G_j|; d the distance of i and j in the order of
    the log scores, D(x) = log2(1 + x), G the gains of `_gains`. They come from the teacher alone: the code of FIRST
    takes them from the model's own logits.
    """
    place_BM = _places(log_scores_BM)
    gap_BMM = _margins(place_BM).abs().clamp_min(1)
    return _lambda_loss(log_scores_BM, teacher_BM, 1 / torch.log2(1 + gap_BMM) - 1 / torch.log2(2 + gap_BMM))


def lambda_rank(log_scores_BM: Tensor, teacher_BM: Tensor) -> Tensor:
    """LambdaRank (Burges et al., 2006) as a loss: pairs weighted by the change in nDCG if the two were swapped.

    As `ndcg_loss2` with w_ij = |1/D(p_i) - 1/D(p_j)| |G_i - G_j|, p the places in the order of the log scores.
    """
    return _lambda_loss(log_scores_BM, teacher_BM, _margins(1 / torch.log2(1 + _places(log_scores_BM))).abs())


def _lambda_loss(log_scores_BM: Tensor, teacher_BM: Tensor, discount_BMM: Tensor) -> Tensor:
    scores_BM, present_BM = _present(log_scores_BM)
    weight_BMM = discount_BMM * _margins(_gains(teacher_BM, present_BM)).abs()
    terms_BMM = weight_BMM * F.softplus(-_margins(scores_BM)) / math.log(2)
    return _mean_over(terms_BMM, _ordered(teacher_BM, present_BM))


def _gains(teacher_BM: Tensor, present_BM: Tensor) -> Tensor:
    """(2^y - 1) / maxDCG, y the teacher's scores minus the smallest of the request, so that scores of any sign work."""
    grade_BM = teacher_BM.float().masked_fill(~present_BM, math.inf)
    grade_BM = (grade_BM - grade_BM.amin(1, keepdim=True)).masked_fill(~present_BM, 0)
    # The power over its largest, 2^(y - top) - 2^-top: a low teacher temperature would overflow the power itself.
    gain_BM = torch.exp2(grade_BM - grade_BM.amax(1, keepdim=True)) * -torch.expm1(-grade_BM * math.log(2))
    place_M = torch.arange(1, grade_BM.shape[1] + 1, device=grade_BM.device)
    most_B1 = (gain_BM.sort(1, descending=True)[0] / torch.log2(1 + place_M)).sum(1, keepdim=True)
    return gain_BM / most_B1.clamp_min(torch.finfo(most_B1.dtype).tiny)


def _places(log_scores_BM: Tensor) -> Tensor:
    """Places from 1 by log score; equal scores stand as in the request, absent candidates last. No gradient."""
    order_BM = log_scores_BM.detach().argsort(dim=1, descending=True, stable=True)
    return 1.0 + order_BM.argsort(dim=1)


def ranks(scores_BM: Tensor, present_BM: Tensor) -> Tensor:
    """Ranks from 1 by score, descending, among the candidates present; equal scores share the mean of their ranks."""
    theirs_BMM, own_BMM = scores_BM[:, None, :], scores_BM[:, :, None]
    higher_BM = ((theirs_BMM > own_BMM) & present_BM[:, None, :]).sum(2)
    equal_BM = ((theirs_BMM == own_BMM) & present_BM[:, None, :]).sum(2)  # itself among them
    return higher_BM + (equal_BM + 1) / 2


def _present(log_scores_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Log scores with 0 at absent candidates, so that differences are finite, and which candidates are present."""
    present_BM = log_scores_BM > -math.inf
    return log_scores_BM.masked_fill(~present_BM, 0), present_BM


def _margins(scores_BM: Tensor) -> Tensor:
    """Score i - score j, (B, M, M)."""
    return scores_BM[:, :, None] - scores_BM[:, None, :]


def _ordered(teacher_BM: Tensor, present_BM: Tensor) -> Tensor:
    """The pairs (i, j) of a request's candidates where the teacher scores i higher, (B, M, M)."""
    both_BMM = present_BM[:, :, None] & present_BM[:, None, :]
    return both_BMM & (teacher_BM[:, :, None] > teacher_BM[:, None, :])


def _mean_over(terms: Tensor, kept: Tensor) -> Tensor:
    """Mean of the kept terms of each request (first dimension), averaged over the requests that have such terms."""
    terms_BX, kept_BX = terms.flatten(1), kept.flatten(1)
    count_B = kept_BX.sum(1)
    mean_B = terms_BX.masked_fill(~kept_BX, 0).sum(1) / count_B.clamp_min(1)
    return mean_B.sum() / (count_B > 0).sum().clamp_min(1)


DistilLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _without_labels(loss: Callable[[Tensor, Tensor], Tensor]) -> DistilLoss:
    """Give a loss of log scores and teacher the signature with positives, which it ignores."""
    return lambda log_scores_BM, teacher_BM, _positives_BM: loss(log_scores_BM, teacher_BM)


DISTIL_LOSSES: dict[str, DistilLoss] = {
    "list_kl": _without_labels(list_kl),
    "margin_mse": margin_mse,
    "ranknet": _without_labels(ranknet),
    "weighted_ranknet": _without_labels(weighted_ranknet),
    "lambda": _without_labels(ndcg_loss2),
    "lambda_rank": _without_labels(lambda_rank),
    "listnet": _without_labels(listnet),
    "adr_mse": _without_labels(adr_mse),
    "bce": _without_labels(soft_binary_cross_entropy),
    "bce_logits": _without_labels(logit_binary_cross_entropy),
}

# Signal tokens


def orthogonality(q_GNH: Tensor, signal_request_G: Ints) -> Tensor:
    """How alike the signal tokens of a request are: ||V V^T - I||_F^2 of their queries V, each of length 1, averaged
    over heads and requests (MVP, arXiv 2509.07485, there of the views' anchors)."""
    directions_GNH = F.normalize(q_GNH.float(), dim=-1)
    parts = []
    for request in np.unique(signal_request_G):
        v_NGH = directions_GNH[torch.from_numpy(np.flatnonzero(signal_request_G == request))].transpose(0, 1)
        off_NGG = v_NGH @ v_NGH.transpose(1, 2) - torch.eye(v_NGH.shape[1], device=v_NGH.device)
        parts.append((off_NGG**2).sum((1, 2)).mean())
    return torch.stack(parts).mean()


# The answer, token by token


def lm_loss(logits_AV: Tensor, labels_A: Tensor) -> Tensor:
    """Cross-entropy of the answer's tokens. logits_AV: next-token logits at the positions before each label."""
    return F.cross_entropy(logits_AV.float(), labels_A)


def importance_lm_loss(logits_AV: Tensor, labels_A: Tensor, rank_A: Tensor, separator_weight: float = 1.0) -> Tensor:
    """Importance-aware LM loss (FullRank, arXiv 2412.14574): the first ids of an answer count more.

    The cross-entropy of a token is weighted by 1 + 1/log2(r + 1) if it is part of the id of rank r, and by
    `separator_weight` (the paper's alpha, 1 in its code) if it belongs to no id (`rank_A` 0: opening, separators, end);
    averaged over all tokens.
    """
    weight_A = torch.where(rank_A > 0, 1 + 1 / torch.log2(rank_A.clamp_min(1) + 1.0), separator_weight)
    return (weight_A * F.cross_entropy(logits_AV.float(), labels_A, reduction="none")).mean()


LmLoss = Callable[[Tensor, Tensor, Tensor, float], Tensor]

LM_LOSSES: dict[str, LmLoss] = {
    "plain": lambda logits_AV, labels_A, _rank_A, _separator_weight: lm_loss(logits_AV, labels_A),
    "importance": importance_lm_loss,
}
