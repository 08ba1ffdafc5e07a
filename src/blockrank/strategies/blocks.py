"""Overlapping blocks that are ranked apart, and one ranking of who was before whom: JointRank (arXiv:2506.22262)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from blockrank.errors import InputError
from blockrank.strategies.base import Ask, Steps, Strategy, merged, part, placed, randomness
from blockrank.types import RankedDocument, RankRequest

_DAMPING, _ROUNDS = 0.85, 100  # of PageRank, as it is common
_DIGITS = 12  # of a score: what differs by rounding alone is equal


@dataclass
class Blocks(Strategy):
    """Ranks blocks of at most `size` candidates, all at once, and merges by the pairs of which one is before the other.

    Each candidate is in `repeats` blocks. Blocks are of equal size, or differ by one; those of one repeat hold every
    candidate, and each of them is spread evenly over those of another. merge: by the share of pairs that a document
    won, or by PageRank, where a document passes its weight on to those that were before it. seed: of the order that the
    candidates are dealt in, which depends on it, the query and their number alone.
    """

    name = "blocks"
    size: int = 20
    repeats: int = 2
    merge: Literal["win_rate", "pagerank"] = "pagerank"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 2:
            raise InputError(f"size must be at least 2, not {self.size}: a document alone is compared with nothing.")
        if self.repeats < 2:
            raise InputError(f"repeats must be at least 2, not {self.repeats}: blocks would not overlap.")

    def calls(self, count: int) -> int:
        """Requests that one of so many readable documents takes: repeats · ⌈count / size⌉."""
        return self.repeats * ceil(count / self.size)

    def steps(self, request: RankRequest) -> Steps:
        """See `Strategy.steps`."""
        blocks = self._blocks(request)
        rankings = yield Ask([part(request, block) for block in blocks])
        entries = dict[int, RankedDocument]()
        row = {index: place for place, index in enumerate(request.readable)}
        wins_CC = np.zeros((len(row), len(row)))  # of the row over the column
        for block, ranking in zip(blocks, rankings, strict=True):
            entries |= (found := dict(placed(request, block, ranking)))
            order = [row[index] for index in found]
            for place, winner in enumerate(order):
                wins_CC[winner, order[place + 1 :]] += 1
        scores_C = (win_rate if self.merge == "win_rate" else pagerank)(wins_CC).round(_DIGITS)
        ranked = sorted(row, key=lambda index: (-scores_C[row[index]], index))
        return merged(request, [(index, entries[index]) for index in ranked])

    def _blocks(self, request: RankRequest) -> list[list[int]]:
        """Indices of the candidates in each block."""
        random, indices, found = randomness(request, self.seed), list(request.readable), list[list[int]]()
        count = ceil(len(indices) / self.size)
        for repeat in range(self.repeats):
            if repeat % count == 0:  # the design has no more: another one, of other places
                random.shuffle(indices)
            blocks: list[list[int]] = [[] for _ in range(count)]
            for place, index in enumerate(indices):
                blocks[block_of(place, repeat % count, count)].append(index)
            found += blocks
        return found


def block_of(place: int, repeat: int, count: int) -> int:
    """In which of `count` blocks a place is, in a repeat below `count`.

    The digits of the place, to base `count`, are the coefficients of a polynomial, and the block is its value at
    `repeat`. So consecutive places from a multiple of `count` on are in different blocks; and where `count` is prime,
    two places share fewer blocks than they have digits.
    """
    value, power = 0, 1
    while place and count > 1:
        place, digit = divmod(place, count)
        value, power = value + digit * power, power * repeat
    return value % count


def win_rate(wins_CC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each document the share of its pairs in which it was before the other; a half where it has none. (C)"""
    pairs_C = (wins_CC + wins_CC.T).sum(1)
    shares_C = np.full(len(wins_CC), 0.5)
    np.divide(wins_CC.sum(1), pairs_C, out=shares_C, where=pairs_C > 0)
    return shares_C


def pagerank(wins_CC: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weight of each document, where each passes its own on to those that won against it, in proportion to how
    often, and one that nobody won against to all. (C), sums to one."""
    count = len(wins_CC)
    lost_C = wins_CC.sum(0)
    passed_CC = np.divide(wins_CC, lost_C, out=np.full_like(wins_CC, 1 / count), where=lost_C > 0)
    weights_C = np.full(count, 1 / count)
    for _ in range(_ROUNDS):
        weights_C = (1 - _DAMPING) / count + _DAMPING * (passed_CC @ weights_C)
    return weights_C
