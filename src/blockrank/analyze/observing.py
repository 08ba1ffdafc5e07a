"""One forward seen layer by layer: the queries of some tokens and the keys of all rows, handed to an observer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blockrank.attention import AttentionBackend
from blockrank.layout import PackedLayout
from blockrank.model import RankModel

# Called with the layer, queries of the layout's signal tokens (G, N, H), keys of all rows (P, K, H) and the factor that
# the model puts on logits. It should keep none of them: they would fill the device's memory.
Observer = Callable[[int, Tensor, Tensor, float], None]


@dataclass(slots=True)
class ObservedPlan:
    """A backend's own plan, the rows to be observed, and the layer whose turn it is."""

    inner: Any
    signal_G: Tensor
    layer: int = 0


class ObservingBackend:
    """Attention by another backend; an observer sees what goes in. Layers come by in order (the probe holds that)."""

    def __init__(self, inner: AttentionBackend, observer: Observer) -> None:
        self.name, self.honours, self.differentiates = inner.name, inner.honours, inner.differentiates
        self._inner, self._observer = inner, observer

    @staticmethod
    def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
        """It runs wherever the other one does."""
        return None

    def plan(self, layout: PackedLayout, device: torch.device) -> ObservedPlan:
        """The other backend's plan, at the first layer."""
        return ObservedPlan(self._inner.plan(layout, device), torch.from_numpy(layout.signal_G).to(device))

    def attend(self, q_TNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, plan: ObservedPlan, scale: float) -> Tensor:
        """Show the observer queries and keys, then attend as the other backend does."""
        self._observer(plan.layer, q_TNH.index_select(0, plan.signal_G), k_PKH, scale)
        plan.layer += 1
        return self._inner.attend(q_TNH, k_PKH, v_PKH, plan.inner, scale)


def observe(model: RankModel, layout: PackedLayout, last: int, *observers: Observer) -> None:
    """Run a layout through the layers 0 to `last`, of which the last stops at queries and keys; show each to every
    observer."""

    def observer(layer: int, q_GNH: Tensor, k_PKH: Tensor, scale: float) -> None:
        for one in observers:
            one(layer, q_GNH, k_PKH, scale)

    spec = model.spec.changed(layer=last, heads=None)
    backend = ObservingBackend(model.backend, observer)
    # Without the tokenizer, which is not needed and costs time to set up.
    with torch.inference_mode():
        capture = RankModel(model.module, None, spec, backend, model.name).forward(layout)
        observer(last, capture.q_GNH, capture.k_PKH, capture.scale)
