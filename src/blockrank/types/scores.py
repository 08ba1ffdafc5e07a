"""What kind of number a score is, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from blockrank.errors import InputError

ScoreKind = Literal["share", "logit", "probability", "order", "relative"]
"""share: part of a total of one over the documents of a request; comparable within that request only.
logit: any number, on a scale that means the same for every request, such as the log-odds of relevance.
probability: of relevance, for each document on its own, in [0, 1].
order: only its order has a meaning; minus the rank where nothing better is known.
relative: any number; compares documents of one request only, such as the cosine to a vector of that request.
"""
SCORE_KINDS: tuple[ScoreKind, ...] = get_args(ScoreKind)
LEAST_SHARE = 2.0**-149  # the smallest float32: stands for shares that float32 rounds to zero


def as_logits(scores: Sequence[float], kind: ScoreKind, least: float = LEAST_SHARE) -> list[float]:
    """Logits whose softmax is the distribution over a request's documents that scores express: a student's target.

    Shares and probabilities become logarithms, with values below `least` raised to it; logits and relative
    scores stay as they are; an order becomes minus the logarithm of the rank, so that the softmax is proportional to 1/rank. Raises `InputError`
    where scores are not of their kind.
    """
    if kind in ("logit", "relative"):
        return [float(score) for score in scores]
    if kind == "order":
        return [-math.log(rank) for rank in _ranks(scores)]
    _check_in_unit_range(scores, kind)
    return [math.log(max(score, least)) for score in scores]


def in_unit_range(scores: Sequence[float], kind: ScoreKind) -> list[float]:
    """Scores in [0, 1] in the same order, as interfaces promise them: shares and probabilities as they are, the sigmoid
    of logits, the sigmoid of relative scores standardised within the request, 1/rank for an order."""
    if kind in ("logit", "relative"):
        logits = scores if kind == "logit" else _standardised(scores)
        return [0.5 * (1 + math.tanh(0.5 * logit)) for logit in logits]
    if kind == "order":
        return [1 / rank for rank in _ranks(scores)]
    return [float(score) for score in scores]


def _standardised(scores: Sequence[float]) -> Sequence[float]:
    """Distances from the mean in standard deviations; zeros where all scores are equal."""
    mean = math.fsum(scores) / max(len(scores), 1)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / max(len(scores), 1))
    return [(score - mean) / deviation if deviation else 0.0 for score in scores]


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
