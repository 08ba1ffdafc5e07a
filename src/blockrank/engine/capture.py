"""What a forward yields, whichever layers it ran in."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from blockrank.layout import Ints, PackedLayout
from blockrank.readout.exits import Exit


@dataclass(frozen=True, slots=True)
class Capture:
    """What a forward yields.

    q_GNH, k_PKH: queries of the signal tokens and keys of all rows at the scoring layer; scale: the factor the model
    puts on logits; layout: what they belong to. alive_C, exits: where documents left on the way, those still in the
    layout (indices among all) and the records of the others. hidden_TD and logits: where they were asked for.
    """

    q_GNH: Tensor
    k_PKH: Tensor
    scale: float
    layout: PackedLayout
    hidden_TD: Tensor | None = None
    logits: Tensor | None = None
    alive_C: Ints | None = None
    exits: tuple[Exit, ...] = ()
