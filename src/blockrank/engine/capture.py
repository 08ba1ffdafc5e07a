"""What a forward is asked for and what it yields, whichever layers it runs in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from torch import Tensor

from blockrank.layout import Ints, PackedLayout
from blockrank.readout.exits import Exit
from blockrank.spec import RankSpec
from blockrank.types import InputError


@dataclass(frozen=True, slots=True)
class LayerCapture:
    """What attention reads at one layer: queries of the layout's signal tokens (G, N, H), keys of all rows (P, K, H),
    both rotated, and the factor that the model puts on logits."""

    layer: int
    q_GNH: Tensor
    k_PKH: Tensor
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """What a forward is to hand out; it ends as soon as it can.

    layers: whose queries and keys, rising, counted from 0. logits_R: stream positions whose next-token logits are
    wanted (the model must have its head). hidden_R: stream positions whose last hidden states are wanted, after the
    final norm. observer: called with each of `layers` as it is computed, which is then not kept; it should keep none
    either, as the keys of all layers would fill a device's memory. keys: which rows' keys are read; where it is
    "documents" those of other rows may be zero in the last of `layers`, and are not computed.

    Raises `InputError` where nothing is wanted, or `layers` do not rise.
    """

    layers: tuple[int, ...] = ()
    logits_R: Ints | None = None
    hidden_R: Ints | None = None
    observer: Callable[[LayerCapture], None] | None = None
    keys: Literal["all", "documents"] = "all"

    def __post_init__(self) -> None:
        if not self.layers and not self.whole:
            raise InputError("a forward must be asked for layers, logits or hidden states.")
        if any(layer < 0 for layer in self.layers) or any(one >= two for one, two in pairwise(self.layers)):
            raise InputError(f"layers must rise and are counted from 0, not {self.layers}.")
        if self.observer is not None and not self.layers:
            raise InputError("an observer needs layers to observe.")

    @classmethod
    def read_out(cls, spec: RankSpec) -> Wanted:
        """What the read-out of a spec reads: its scoring layer."""
        return cls((spec.readout.layer,), keys="all" if spec.readout.softmax_over == "all" else "documents")

    @property
    def whole(self) -> bool:
        """Whether the forward runs through every layer."""
        return self.logits_R is not None or self.hidden_R is not None

    @property
    def one_layer(self) -> bool:
        """Whether queries and keys of one layer are all that is wanted."""
        return len(self.layers) == 1 and not self.whole and self.observer is None

    @property
    def rows_R(self) -> Ints:
        """Stream positions whose last hidden states are needed, for themselves or for logits; rising."""
        return np.unique(np.concatenate([rows for rows in (self.logits_R, self.hidden_R) if rows is not None]))

    def check(self, layout: PackedLayout, layers: int) -> None:
        """Raise `InputError` where there is no such layer of `layers`, or no such position in the layout."""
        if self.layers and self.layers[-1] >= layers:
            raise InputError(f"layer {self.layers[-1]} is wanted, but the model has {layers} layers (counted from 0).")
        for name, rows in (("logits_R", self.logits_R), ("hidden_R", self.hidden_R)):
            if rows is not None and len(rows) and not 0 <= rows.min() <= rows.max() < layout.tokens:
                raise InputError(f"{name} must lie in the {layout.tokens} tokens of the layout, counted from 0.")


@dataclass(frozen=True, slots=True)
class Capture:
    """What a forward yields.

    layers: as wanted, in their order; none where an observer took them. layout: what they belong to. logits_RV,
    hidden_RD: at the positions they were wanted for, in that order, in the model's own type. alive_C, exits: where
    documents left on the way, those still in the layout (indices among all) and the records of the others.
    """

    layers: tuple[LayerCapture, ...]
    layout: PackedLayout
    logits_RV: Tensor | None = None
    hidden_RD: Tensor | None = None
    alive_C: Ints | None = None
    exits: tuple[Exit, ...] = ()

    @property
    def only(self) -> LayerCapture:
        """The layer of a forward that was asked for one."""
        (layer,) = self.layers
        return layer
