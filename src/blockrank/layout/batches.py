"""Consecutive items grouped by their size."""

from __future__ import annotations

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], budget: int) -> list[slice]:
    """Consecutive requests grouped by tokens, not by count; one that exceeds the budget goes alone."""
    slices, start, total = [], 0, 0
    for index, length in enumerate(lengths):
        if index > start and total + length > budget:
            slices.append(slice(start, index))
            start, total = index, 0
        total += length
    return [*slices, slice(start, len(lengths))] if lengths else []
