"""Paired tests between systems over the same queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockrank.types import InputError, MissingExtraError

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

    systems: name -> query_id -> value, all over the same queries. Raises `InputError` where the queries differ,
    `MissingExtraError` without scipy.
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
    `seed`. Raises `MissingExtraError` without scipy.
    """
    test = permutation_test()
    if len(differences) < 2 or not differences.any():  # one pair, or no difference: every pattern is as far from zero
        return 1.0
    unit = 10.0 ** np.floor(np.log10(np.abs(differences).max()))
    result = test(
        (differences / unit,),
        lambda sample, axis: np.round(sample.sum(axis=axis), _DECIMALS),  # sums that are equal but for rounding tie
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=_BATCH,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def permutation_test() -> Any:
    """Scipy's test. Raises `MissingExtraError` without scipy."""
    try:
        from scipy.stats import permutation_test as test
    except ImportError:
        raise MissingExtraError("comparisons of systems need scipy: pip install 'blockrank[eval]'.") from None
    return test


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the order given (Holm 1979)."""
    order = sorted(range(len(p)), key=lambda place: p[place])
    corrected, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = highest
    return corrected
