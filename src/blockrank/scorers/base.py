"""The scorer seam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from blockrank.layout import PackedLayout
from blockrank.model import RankModel


@dataclass(frozen=True, slots=True)
class Scored:
    """What a scorer says of a packed layout, document after document.

    scores_C: one score a document, float32. shares_R: where it was asked for, the part of its document's attention
    that each token of the documents received; the parts of a document sum to one.
    """

    scores_C: Tensor
    shares_R: Tensor | None = None

    def cpu(self) -> Scored:
        """The same on the host."""
        return Scored(self.scores_C.cpu(), self.shares_R.cpu() if self.shares_R is not None else None)

    def apart(self, rows_BM: Sequence[Sequence[int]]) -> list[Scored]:
        """The parts of several requests; `rows_BM`: of each request the number of tokens of each document."""
        scores_BC = torch.split(self.scores_C, [len(rows) for rows in rows_BM])
        if self.shares_R is None:
            return [Scored(scores_C) for scores_C in scores_BC]
        return [
            Scored(*parts) for parts in zip(scores_BC, torch.split(self.shares_R, [*map(sum, rows_BM)]), strict=True)
        ]

    def then(self, other: Scored) -> Scored:
        """These documents followed by others."""
        if self.shares_R is None or other.shares_R is None:
            return Scored(torch.cat([self.scores_C, other.scores_C]))
        return Scored(torch.cat([self.scores_C, other.scores_C]), torch.cat([self.shares_R, other.shares_R]))


class Scorer(Protocol):
    """Scores the documents of a packed layout.

    needs_head: whether the language-model head (and so every layer) must be loaded; a scorer that reads one layer
    needs neither the head nor the layers above.
    """

    name: ClassVar[str]
    needs_head: ClassVar[bool]

    def score(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
        """Score the documents in the order of the layout; `evidence`: also say which of their tokens made the score."""
