"""Keys and values of rows that later forwards read: buffers over all layers, made once."""

from __future__ import annotations

from torch import Tensor

from blockrank.attention.indices import moved
from blockrank.layout import Ints


class RowBuffers:
    """Keys and values (P, K, H) of up to `capacity` rows at every layer.

    A layer's buffers are made when it is first written, of zeros: rows that nobody has written are finite.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def put(self, layer: int, first: int, k_TKH: Tensor, v_TKH: Tensor) -> tuple[Tensor, Tensor]:
        """Write T rows from row `first` on; keys and values of all rows up to the last of them, as views."""
        end = first + len(k_TKH)
        assert end <= self.capacity, "the buffers hold every row of the search"
        if layer not in self._layers:
            self._layers[layer] = self._empty(k_TKH), self._empty(v_TKH)
        keys, values = self._layers[layer]
        keys[first:end], values[first:end] = k_TKH, v_TKH
        return keys[:end], values[:end]

    def _empty(self, x_TKH: Tensor) -> Tensor:
        return x_TKH.new_zeros(self.capacity, *x_TKH.shape[1:])

    def copy(self, sources: Ints, targets: Ints) -> None:
        """Copy rows to other places at every layer; all are read before any is written."""
        for buffers in self._layers.values() if len(sources) else ():
            source_R, target_R = moved(buffers[0].device, sources, targets)
            for buffer in buffers:
                buffer.index_copy_(0, target_R, buffer.index_select(0, source_R))
