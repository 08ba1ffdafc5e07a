"""A decoder layer as its matrix products and what lies between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blockrank.attention import has_kernels
from blockrank.engine import kernels
from blockrank.engine.kernels import Kernels, Norm, Quantised
from blockrank.engine.linear import Linear

# Rows in one product, by type of device: large enough to fill it, small enough that an MLP's inner states stay bounded
# (and, on a processor, cached); and such that only few different row counts occur (see `onednn`).
CHUNK_ROWS = {"cuda": 32768, "cpu": 512}
_ELSEWHERE = 8192

Rotation = tuple[Tensor, Tensor]  # cosine and sine, (T, H)


def kernels_for(tensor: Tensor) -> Kernels:
    """Fused kernels where Triton runs in the tensor's type, plain torch elsewhere."""
    if has_kernels(tensor):
        from blockrank.engine import kernels_triton

        return kernels_triton
    return kernels


@dataclass(slots=True)
class Stream:
    """The states of T tokens between two layers.

    x_TD: the residual stream. delta_TD: what still has to be added to it (through delta_norm, where there is one): the
    next norm does so on its way. rotations: cosine and sine by kind of layer.
    """

    x_TD: Tensor
    rotations: dict[str, Rotation]
    delta_TD: Tensor | None = None
    delta_norm: Norm | None = None

    def select(self, rows_R: Tensor) -> Stream:
        """Some of the tokens."""
        return Stream(
            self.x_TD.index_select(0, rows_R),
            {kind: (c.index_select(0, rows_R), s.index_select(0, rows_R)) for kind, (c, s) in self.rotations.items()},
            None if self.delta_TD is None else self.delta_TD.index_select(0, rows_R),
            self.delta_norm,
        )


@dataclass(slots=True)
class FusedLayer:
    """One layer.

    entry, middle: the norms before attention and before the MLP; a post-norm model's are those after what precedes
    (keeps_norm: the stream becomes the norm), and its first layer has no entry. qkv: queries, keys and values in one
    product. out_norm, down_norm: norms of what attention and MLP add, where a model has them. up: gate and up in one
    product where `gated`. scale: on logits. rotation: which of the stream's. window: a sliding window, if any.
    """

    entry: Norm | None
    qkv: Linear
    head_norms: tuple[Norm, Norm] | None
    out: Linear
    out_norm: Norm | None
    middle: Norm
    up: Linear
    activation: str
    gated: bool
    down: Linear
    down_norm: Norm | None
    heads: int
    kv_heads: int
    width: int
    scale: float
    rotation: str | None
    window: int | None
    keeps_norm: bool

    @property
    def linears(self) -> tuple[Linear, ...]:
        """All products."""
        return self.qkv, self.out, self.up, self.down

    def quantise(self, dtype: torch.dtype) -> None:
        """All products in an 8-bit type."""
        self.qkv, self.out, self.up, self.down = (linear.quantise(dtype) for linear in self.linears)

    def project(self, stream: Stream) -> Tensor:
        """(T, N + 2K, H) rotated queries and keys, and values; brings the stream up to date."""
        tokens = len(stream.x_TD)
        qkv = self._rows(self.qkv, stream, self._entered).view(tokens, self.heads + 2 * self.kv_heads, self.width)
        stream.delta_TD = stream.delta_norm = None
        self._rotate(qkv[:, : self.heads + self.kv_heads], self.heads, stream)
        return qkv

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (T, N, H), keys and values (T, K, H) of what was projected, as views."""
        queries, keys, values = torch.split(qkv, [self.heads, self.kv_heads, self.kv_heads], dim=1)
        return queries, keys, values

    def finish(self, stream: Stream, attended_TNH: Tensor) -> None:
        """Attention's output projection and the MLP; leaves the stream with what the MLP adds."""
        kernels = kernels_for(stream.x_TD)
        x, tokens = stream.x_TD, len(stream.x_TD)
        attended = attended_TNH.flatten(1)
        joins = self.down.accumulates and self.down_norm is None
        delta_TD = None if joins else torch.empty_like(x)
        stream.delta_TD, stream.delta_norm = delta_TD, None if joins else self.down_norm
        for start, end in chunks(tokens, stream.x_TD.device):
            rows = x[start:end]
            inner = (
                kernels.quantise_rows(attended[start:end], self.out.takes) if self.out.takes else attended[start:end]
            )
            delta = self._add(self.out, rows, inner, self.out_norm)
            normed = kernels.add_norm(
                rows,
                delta,
                self.middle,
                delta_norm=self.out_norm,
                keep_norm=self.keeps_norm,
                quantise=self.up.takes,
            )
            inner = self._widen(normed)
            self._add(self.down, rows, inner, self.down_norm, None if delta_TD is None else delta_TD[start:end])

    def _widen(self, normed: Tensor | Quantised) -> Tensor | Quantised:
        """The inner states of the MLP."""
        if not (self.gated or isinstance(normed, Quantised)) and self.up.activates(self.activation):
            return self.up.activated(normed, self.activation)
        up = self.up(normed)
        return kernels_for(up).activate(up, self.activation, self.gated, self.down.takes)

    def read(self, stream: Stream, signal_G: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (G, N, H) of the signal tokens and keys (T, K, H) of all, and nothing else of this layer."""
        return self._queries_and_keys(stream, signal_G, self._entered)

    def look(self, stream: Stream, signal_G: Tensor) -> tuple[Tensor, Tensor]:
        """The same from the states of a layer below, which stay as they are (they are up to date)."""
        return self._queries_and_keys(stream, signal_G, self._normed)

    def _queries_and_keys(
        self, stream: Stream, signal_G: Tensor, enter: Callable[[Stream, int, int], Tensor | Quantised]
    ) -> tuple[Tensor, Tensor]:
        tokens, inner = len(stream.x_TD), self.heads * self.width
        keys = self.qkv.outputs(inner, inner + self.kv_heads * self.width)
        k_TKH = self._rows(keys, stream, enter).view(tokens, self.kv_heads, self.width)
        stream.delta_TD = stream.delta_norm = None
        signals = stream.select(signal_G)
        q_GNH = self.qkv.outputs(0, inner)(self._normed(signals, 0, len(signal_G)))
        q_GNH = q_GNH.view(len(signal_G), self.heads, self.width)
        self._rotate(k_TKH, 0, stream)
        self._rotate(q_GNH, self.heads, signals)
        return q_GNH, k_TKH

    @staticmethod
    def _rows(linear: Linear, stream: Stream, enter: Callable[[Stream, int, int], Tensor | Quantised]) -> Tensor:
        """(T, outputs) a product for all rows of the stream."""
        tokens = len(stream.x_TD)
        bounds = chunks(tokens, stream.x_TD.device)
        if len(bounds) == 1:
            return linear(enter(stream, 0, tokens))
        out = stream.x_TD.new_empty(tokens, len(linear.weight_ND))
        for start, end in bounds:
            linear(enter(stream, start, end), out=out[start:end])
        return out

    def _entered(self, stream: Stream, start: int, end: int) -> Tensor | Quantised:
        """What the first product of the layer takes, for some rows; adds what is pending to them."""
        rows, kernels = stream.x_TD[start:end], kernels_for(stream.x_TD)
        if self.entry is None:
            return kernels.quantise_rows(rows, self.qkv.takes) if self.qkv.takes else rows
        delta = None if stream.delta_TD is None else stream.delta_TD[start:end]
        return kernels.add_norm(
            rows, delta, self.entry, delta_norm=stream.delta_norm, keep_norm=self.keeps_norm,
            quantise=self.qkv.takes,
        )  # fmt: skip

    def _normed(self, stream: Stream, start: int, end: int) -> Tensor | Quantised:
        """What the first product takes for rows that are up to date (of a post-norm model: they are the norm)."""
        rows, kernels = stream.x_TD[start:end], kernels_for(stream.x_TD)
        if self.entry is None or self.keeps_norm:
            return kernels.quantise_rows(rows, self.qkv.takes) if self.qkv.takes else rows
        return kernels.add_norm(rows, None, self.entry, quantise=self.qkv.takes)

    @staticmethod
    def _add(
        linear: Linear, rows_TD: Tensor, inner: Tensor | Quantised, norm: Norm | None, out: Tensor | None = None
    ) -> Tensor | None:
        """A product added to the stream's rows; or, where a norm comes first or it cannot, returned (in `out`)."""
        if norm is None and linear.accumulates and not isinstance(inner, Quantised):
            linear.add_to(rows_TD, inner)
            return None
        return linear(inner, out=out)

    def _rotate(self, heads_TNH: Tensor, query_heads: int, stream: Stream) -> None:
        cos, sin = stream.rotations[self.rotation] if self.rotation is not None else (None, None)
        kernels_for(heads_TNH).rotate_heads(heads_TNH, query_heads, cos, sin, self.head_norms)


def chunks(tokens: int, device: torch.device) -> list[tuple[int, int]]:
    """Bounds of consecutive rows, of nearly equal number and a multiple of 128, at most about `CHUNK_ROWS` each."""
    count = max(-(-tokens // CHUNK_ROWS.get(device.type, _ELSEWHERE)), 1)
    step = -(-tokens // count // 128) * 128 if count > 1 else tokens
    return [(start, min(start + step, tokens)) for start in range(0, tokens, max(step, 1))]


Embed = Callable[[Tensor, Tensor], Tensor]
Head = Callable[[Tensor], Tensor]
Rotate = Callable[[Tensor, Tensor], dict[str, Rotation]]


@dataclass(slots=True, eq=False)
class Decoder:
    """A whole model: embed (ids_T, positions_T) -> x_TD, rotations (x_TD, positions_T), its layers, the norm after the
    last of them, and its family.

    head: from normed states (R, D) to next-token logits (R, V), the model's own and in its own type, where it was
    loaded with one. capturable: whether a forward does nothing on the host but launch. quantised: whether products are
    in int8 or fp8.
    """

    embed: Embed
    rotate: Rotate
    blocks: list[FusedLayer]
    norm: Norm
    family: str
    head: Head | None = None
    capturable: bool = True
    quantised: bool = False

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.blocks[0].qkv.weight_ND.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the stream."""
        return self.blocks[0].middle.weight_D.dtype

    def start(self, ids_T: Tensor, positions_T: Tensor) -> Stream:
        """The stream before the first layer."""
        x_TD = self.embed(ids_T, positions_T)
        return Stream(x_TD, self.rotate(x_TD, positions_T))

    def end(self, stream: Stream) -> Tensor:
        """(T, D) the last hidden states: what is pending added, and normed."""
        return kernels_for(stream.x_TD).add_norm(  # type: ignore[return-value]  # nothing is quantised
            stream.x_TD, stream.delta_TD, self.norm, delta_norm=stream.delta_norm
        )
