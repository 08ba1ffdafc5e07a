"""Batching: items grouped by their size, and the best batch size on a device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Tokens of a forward, by type of device: on a processor larger forwards are slower per token, and hidden states take
# memory, 13 kB per token with the embedded model.
_FORWARD_TOKENS, _FORWARD_TOKENS_ELSEWHERE = {"cpu": 4096}, 32_768


def forward_tokens(device_type: str) -> int:
    """The best number of tokens for a forward, where that can be chosen."""
    return _FORWARD_TOKENS.get(device_type, _FORWARD_TOKENS_ELSEWHERE)


def plan_batches(lengths: Sequence[int], budget: int) -> list[slice]:
    """Consecutive items grouped by tokens, not by count; one that exceeds the budget goes alone."""
    slices, start, total = [], 0, 0
    for index, length in enumerate(lengths):
        if index > start and total + length > budget:
            slices.append(slice(start, index))
            start, total = index, 0
        total += length
    return [*slices, slice(start, len(lengths))] if lengths else []


def plan_alike(lengths: Sequence[int] | NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Items grouped by tokens without keeping their order: similar lengths together, to reduce padding. Returns the
    indices of each group; items of equal length stay in order."""
    lengths = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(lengths, kind="stable")
    return [order[group] for group in plan_batches(lengths[order].tolist(), budget)]
