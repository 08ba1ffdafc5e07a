"""Paired tests between systems over the same queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockrank.types import InputError

RESAMPLES = 10_000
_DECIMALS = 9  # to which sums are compared, in units of the largest difference's power of ten
_BATCH = 1000  # sign patterns drawn at once: bounds memory over many queries


@dataclass(frozen=True, slots=True)
class Comparison:
    """System `a` against system `b` on one measure, query by query.

    difference: mean_a - mean_b. p: of the two-sided paired randomisation test; corrected_p: after Holm's correction.
    wins, losses, ties: queries where `a` is above, below and equal.
    """

    a: str
    b: str
    measure: str
    queries: int
    mean_a: float
    mean_b: float
    difference: float
    p: float
    corrected_p: float
    wins: int
    losses: int
    ties: int


def compare(
    systems: Mapping[str, Mapping[str, float]], measure: str, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Comparison, ...]:
    """Every pair of systems on one measure, each with the systems before it; p corrected over all of them (Holm).

    systems: name -> query_id -> value, all over the same queries. Raises `InputError` where the queries differ.
    """
    names = list(systems)
    queries = list(systems[names[0]]) if names else []
    for name in names:
        if systems[name].keys() != set(queries):
            raise InputError(f"{name!r} and {names[0]!r} were measured on different queries: they cannot be paired.")
    values = {name: np.array([systems[name][query_id] for query_id in queries]) for name in names}
    pairs = [(a, b) for place, a in enumerate(names) for b in names[:place]]
    p = [randomisation_p(values[a] - values[b], resamples, seed) for a, b in pairs]
    return tuple(
        _comparison(a, b, measure, values[a], values[b], raw, corrected)
        for (a, b), raw, corrected in zip(pairs, p, holm(p), strict=True)
    )


def _comparison(
    a: str, b: str, measure: str, values_a: NDArray[Any], values_b: NDArray[Any], p: float, corrected: float
) -> Comparison:
    mean_a, mean_b = float(values_a.mean()), float(values_b.mean())
    wins, losses = int((values_a > values_b).sum()), int((values_a < values_b).sum())
    count = len(values_a)
    return Comparison(
        a, b, measure, count, mean_a, mean_b, mean_a - mean_b, p, corrected, wins, losses, count - wins - losses
    )


def randomisation_p(differences: NDArray[Any], resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p of paired differences (Q,): how often random signs give a mean at least as far from zero.

    Exact over all 2^Q sign patterns where they are no more than `resamples`, else from so many random ones, drawn with
    `seed` as scipy's `permutation_test` draws them, the pattern that was observed counted in.
    """
    if len(differences) < 2 or not differences.any():  # one pair, or no difference: every pattern is as far from zero
        return 1.0
    unit = 10.0 ** np.floor(np.log10(np.abs(differences).max()))
    values_Q = differences / unit
    observed, drawn = _rounded(values_Q.sum()), 2 ** len(values_Q) > resamples
    patterns = _drawn_signs(len(values_Q), resamples, seed) if drawn else _all_signs(len(values_Q))
    sums = np.concatenate([_rounded((signs_NQ * values_Q).sum(axis=1)) for signs_NQ in patterns])
    tail = min(int((sums <= observed).sum()), int((sums >= observed).sum()))
    return float(min(1.0, 2 * (tail + drawn) / (len(sums) + drawn)))


def _rounded(sums: Any) -> Any:
    """Sums as they are compared: those that are equal but for rounding tie."""
    return np.round(sums, _DECIMALS)


def _all_signs(count: int) -> Iterator[NDArray[Any]]:
    """Every pattern of `count` signs, (N, count) at a time."""
    for first in range(0, 2**count, _BATCH):
        numbers_N1 = np.arange(first, min(first + _BATCH, 2**count))[:, None]
        yield 1 - 2 * (numbers_N1 >> np.arange(count) & 1)


def _drawn_signs(count: int, resamples: int, seed: int) -> Iterator[NDArray[Any]]:
    """Random patterns of `count` signs, (N, count) at a time."""
    generator = np.random.default_rng(seed)
    pairs_NQ2 = np.tile(np.arange(2), (min(_BATCH, resamples), count, 1))
    for first in range(0, resamples, _BATCH):
        yield 1 - 2 * generator.permuted(pairs_NQ2, axis=-1)[: resamples - first, :, 0]


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the order given (Holm 1979)."""
    order = sorted(range(len(p)), key=lambda place: p[place])
    corrected, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = highest
    return corrected
