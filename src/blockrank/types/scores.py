"""What kind of number a score is, and what follows from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, get_args

from blockrank.errors import InputError

ScoreKind = Literal["share", "logit", "probability", "relative", "order"]
"""share: a part of one whole that the documents of a request divide; compares them with each other alone.
logit: any number, on a scale that means the same for every request, such as the log-odds of relevance.
probability: of relevance, for each document on its own, in [0, 1].
relative: any number; compares the documents of one request with each other, and means nothing beyond it.
order: says which document is before which, and nothing else; minus the rank where nothing better is at hand.
"""
SCORE_KINDS: tuple[ScoreKind, ...] = get_args(ScoreKind)
Spread = tuple[float, float]  # mean and standard deviation
LEAST_SHARE = 2.0**-149  # the smallest float32: what a share counts as that float32 rounds to zero


def as_logits(scores: Sequence[float], kind: ScoreKind, least: float = LEAST_SHARE) -> list[float]:
    """Numbers whose softmax is what scores say of the documents of a request: what a student learns from.

    Of shares and probabilities the logarithm, where nothing counts as less than `least`; logits and relative scores as
    they are; of an order minus the logarithm of the rank, so that the softmax is in proportion to 1/rank. Raises
    `InputError` where scores are not of their kind.
    """
    if kind in ("logit", "relative"):
        return [float(score) for score in scores]
    if kind == "order":
        return [-math.log(rank) for rank in _ranks(scores)]
    _check_in_unit_range(scores, kind)
    return [math.log(max(score, least)) for score in scores]


def in_unit_range(scores: Sequence[float], kind: ScoreKind, spread: Spread | None = None) -> list[float]:
    """Scores in [0, 1] in the same order, as interfaces promise them: shares and probabilities as they are, the
    logistic function of logits, and of relative scores in standard deviations from their mean (0.5 where all are
    equal), one over the rank of an order.

    spread: mean and deviation of the relative scores of the whole request, where these are some of them.
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
