"""What kind of number a score is, and what follows from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, get_args

from blockrank.errors import InputError

ScoreKind = Literal["share", "logit", "probability", "relative", "order"]
"""share: part of a total of one over the documents of a request; comparable within that request only.
logit: any number, on a scale that means the same for every request, such as the log-odds of relevance.
probability: of relevance, for each document on its own, in [0, 1].
relative: any number; comparable within one request only, such as the cosine to a vector of that request.
order: only its order has a meaning; minus the rank where nothing better is known.
"""
SCORE_KINDS: tuple[ScoreKind, ...] = get_args(ScoreKind)
Spread = tuple[float, float]  # mean and standard deviation
LEAST_SHARE = 2.0**-149  # the smallest float32: stands for shares that float32 rounds to zero


def as_logits(scores: Sequence[float], kind: ScoreKind, least: float = LEAST_SHARE) -> list[float]:
    """Logits whose softmax is the distribution over a request's documents that scores express: a student's target.

    Shares and probabilities become logarithms, with values below `least` raised to it; logits and relative scores stay
    as they are; an order becomes minus the logarithm of the rank, so that the softmax is proportional to 1/rank. Raises
    `InputError` where scores are not of their kind.
    """
    if kind in ("logit", "relative"):
        return [float(score) for score in scores]
    if kind == "order":
        return [-math.log(rank) for rank in _ranks(scores)]
    _check_in_unit_range(scores, kind)
    return [math.log(max(score, least)) for score in scores]


def in_unit_range(scores: Sequence[float], kind: ScoreKind, spread: Spread | None = None) -> list[float]:
    """Scores in [0, 1] in the same order, as interfaces promise them: shares and probabilities as they are, the sigmoid
    of logits, the sigmoid of relative scores in standard deviations from their mean (0.5 if all are equal), 1/rank for
    an order.

    spread: mean and standard deviation of the relative scores of the whole request, where these are some of them.
    """
    if kind == "logit":
        return [_logistic(score) for score in scores]
    if kind == "relative":
        mean, deviation = spread or spread_of(scores)
        return [_logistic((score - mean) / deviation) if deviation else 0.5 for score in scores]
    if kind == "order":
        return [1 / rank for rank in _ranks(scores)]
    return [float(score) for score in scores]


def spread_of(scores: Sequence[float]) -> Spread:
    """Mean and standard deviation of the scores of a request, (0, 0) of none."""
    if not scores:
        return 0.0, 0.0
    return statistics.fmean(scores), statistics.pstdev(scores)


def _logistic(score: float) -> float:
    return 0.5 * (1 + math.tanh(0.5 * score))


def _ranks(scores: Sequence[float]) -> list[int]:
    """The rank of each score, from 1; equal ones keep their order."""
    ranks = [0] * len(scores)
    for rank, place in enumerate(sorted(range(len(scores)), key=lambda place: -scores[place]), start=1):
        ranks[place] = rank
    return ranks


def _check_in_unit_range(scores: Sequence[float], kind: ScoreKind) -> None:
    lowest, highest = min(scores, default=0.0), max(scores, default=0.0)
    if lowest < 0 or highest > 1 + 1e-3:  # sums of shares are rounded
        wrong = lowest if lowest < 0 else highest
        raise InputError(
            f"a {kind} lies between 0 and 1, and a score is {wrong:g}: it is of another kind than {kind!r}."
        )
