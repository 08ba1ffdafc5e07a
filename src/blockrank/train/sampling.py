"""Candidate lists for training: positives first, then mined negatives, then random ones."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from blockrank.layout import Ints


def sample_candidates(
    generator: Generator,
    positives: Ints,
    hard: Ints,
    pool: int,
    count: int,
    hard_count: int,
    max_positives: int = 4,
    barred: Ints | None = None,
) -> tuple[Ints, NDArray[np.bool_]]:
    """Draw `count` distinct rows of a pool of `pool` documents in random order; returns them and which are positive.

    At most `max_positives` of the positives enter (drawn at random); none of the others ever enters as a negative.
    At most `hard_count` mined negatives are drawn, without replacement; the rest is uniform over the pool. Rows in
    `barred` never enter. A pool smaller than `count` yields a shorter list.
    """
    assert len(positives), "a training query has a positive"
    chosen = generator.permutation(positives)[: min(max_positives, max(1, count - 1))]
    wanted = min(hard_count, count - len(chosen))
    never = positives if barred is None else np.concatenate([positives, barred])
    usable = np.unique(hard[~np.isin(hard, never)])
    mined = generator.permutation(usable)[:wanted]
    taken = np.concatenate([never, mined])
    filler = _random_rows(generator, pool, taken, count - len(chosen) - len(mined))
    rows = np.concatenate([chosen, mined, filler])
    labels = np.arange(len(rows)) < len(chosen)
    order = generator.permutation(len(rows))
    return rows[order], labels[order]


def _random_rows(generator: Generator, pool: int, taken: Ints, count: int) -> Ints:
    """`count` distinct rows of range(pool) outside `taken`, or as many as there are."""
    if count <= 0:
        return np.zeros(0, dtype=np.int64)
    if pool <= 4 * (len(taken) + count):
        free = np.setdiff1d(np.arange(pool), taken)
        return generator.permutation(free)[:count]
    draw = generator.integers(0, pool, 4 * count + 8)
    unique = draw[np.sort(np.unique(draw, return_index=True)[1])]
    return unique[~np.isin(unique, taken)][:count]
