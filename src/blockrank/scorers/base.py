"""The scorer seam."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

from blockrank.layout import PackedLayout
from blockrank.model import RankModel


class Scorer(Protocol):
    """Scores the documents of a packed layout.

    needs_head: whether the language-model head (and so every layer) must be loaded; a scorer that reads one layer
    needs neither the head nor the layers above.
    """

    name: ClassVar[str]
    needs_head: ClassVar[bool]

    def score(self, model: RankModel, layout: PackedLayout) -> Tensor:
        """One score a document, (C,), float32, in the order of the layout."""
