"""False negatives: unjudged documents that a teacher scores about as high as the positive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from blockrank.types import InputError


@dataclass(frozen=True, slots=True)
class DropRule:
    """Which negatives are dropped: those over a share of the best positive's score, or within a margin of it.

    above: a negative over `above` times the score of the best positive is dropped; if that score is not above zero, a
    negative over the score itself. margin: a negative over the score less `margin` is dropped. With both, either
    suffices. Raises `InputError` where neither is given or one is out of range.
    """

    above: float | None = None
    margin: float | None = None

    def __post_init__(self) -> None:
        if self.above is None and self.margin is None:
            raise InputError("a rule needs drop_above or drop_margin.")
        if self.above is not None and not 0 < self.above <= 1:
            raise InputError(f"drop_above must be above 0 and at most 1, not {self.above}.")
        if self.margin is not None and not 0 <= self.margin < math.inf:
            raise InputError(f"drop_margin must be at least 0, not {self.margin}.")

    def limit(self, best: float, *, are_logs: bool = False) -> float:
        """The highest score a negative may have. are_logs: scores are logarithms; `above` then applies to their
        exponentials."""
        limits = []
        if self.above is not None:
            limits.append(best + math.log(self.above) if are_logs else min(self.above * best, best))
        if self.margin is not None:
            limits.append(best - self.margin)
        return min(limits)

    def too_good(self, scores: Sequence[float], positives: Sequence[int], *, are_logs: bool = False) -> list[int]:
        """Indices of the negatives to drop. scores: of all candidates; positives: indices, at least one."""
        limit = self.limit(max(scores[index] for index in positives), are_logs=are_logs)
        return [index for index, score in enumerate(scores) if score > limit and index not in positives]
