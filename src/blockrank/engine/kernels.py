"""What lies between a layer's matrix products: norms with the residual, rotary embedding, activation, quantisation.

This is the plain form in torch, for every device and type; `kernels_triton` has the same functions fused for CUDA,
which compute in float32 and round once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

# 8-bit types, with their largest entry.
LARGEST: dict[torch.dtype, float] = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}


class Quantised(NamedTuple):
    """Rows in an 8-bit type: values (T, D) of a type in `LARGEST`, and what each row is multiplied by (T, 1)
    float32."""

    values: Tensor
    scale: Tensor


class Kernels(Protocol):
    """What `kernels` and `kernels_triton` offer."""

    def add_norm(
        self,
        x_TD: Tensor,
        delta_TD: Tensor | None,
        norm: Norm,
        *,
        delta_norm: Norm | None = None,
        keep_norm: bool = False,
        quantise: torch.dtype | None = None,
    ) -> Tensor | Quantised:
        """Residual and norm."""

    def rotate_heads(
        self,
        heads_TNH: Tensor,
        query_heads: int,
        cos_TH: Tensor | None,
        sin_TH: Tensor | None,
        norms: tuple[Norm, Norm] | None,
    ) -> None:
        """Norm and rotation of heads."""

    def activate(self, x_TF: Tensor, kind: str, gated: bool, quantise: torch.dtype | None = None) -> Tensor | Quantised:
        """The activation of an MLP."""

    def quantise_rows(self, x_TD: Tensor, dtype: torch.dtype) -> Quantised:
        """Rows in an 8-bit type."""


@dataclass(frozen=True, slots=True)
class Norm:
    """RMS norm over the last dimension, or layer norm where `centred`. shift: added to the weight (Gemma: 1)."""

    weight_D: Tensor
    eps: float
    bias_D: Tensor | None = None
    centred: bool = False
    shift: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """The norm, computed in float32 at least, in the type of `x`."""
        if self.centred:
            return F.layer_norm(x, x.shape[-1:], self.weight_D.to(x), _to(self.bias_D, x), self.eps)
        wide = _wide(x)
        return F.rms_norm(wide, wide.shape[-1:], self.weight_D.to(wide) + self.shift, self.eps).to(x.dtype)


def _to(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.to(like)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def add_norm(
    x_TD: Tensor,
    delta_TD: Tensor | None,
    norm: Norm,
    *,
    delta_norm: Norm | None = None,
    keep_norm: bool = False,
    quantise: torch.dtype | None = None,
) -> Tensor | Quantised:
    """Add `delta` (normed by `delta_norm` first, where there is one) to the stream `x`, in place, and norm the sum.

    keep_norm: the stream becomes the norm instead of the sum (post-norm models). Returns the norm, in the stream's
    type, or quantised by row in the type asked for.
    """
    if delta_TD is not None:
        x_TD.add_(delta_norm(delta_TD) if delta_norm is not None else delta_TD)
    normed = norm(_wide(x_TD) if quantise else x_TD)
    if keep_norm:
        x_TD.copy_(normed)
    return quantise_rows(normed, quantise) if quantise else x_TD if keep_norm else normed


def rotate_heads(
    heads_TNH: Tensor, query_heads: int, cos_TH: Tensor | None, sin_TH: Tensor | None, norms: tuple[Norm, Norm] | None
) -> None:
    """Norm each head (the first `query_heads` by the first norm, the others by the second) and rotate it, in place."""
    wide = _wide(heads_TNH)
    if norms is not None:
        wide = torch.cat([norms[0](wide[:, :query_heads]), norms[1](wide[:, query_heads:])], dim=1)
    if cos_TH is not None and sin_TH is not None:
        half = wide.shape[-1] // 2
        turned = torch.cat([-wide[..., half:], wide[..., :half]], dim=-1)
        wide = wide * cos_TH[:, None] + turned * sin_TH[:, None]
    if norms is not None or cos_TH is not None:
        heads_TNH.copy_(wide)


def activate(x_TF: Tensor, kind: str, gated: bool, quantise: torch.dtype | None = None) -> Tensor | Quantised:
    """The activation of an MLP; where `gated`, of the first half of each row, times the second half.

    kind: "silu", "gelu" or "gelu_tanh".
    """
    gate, up = x_TF.chunk(2, dim=-1) if gated else (x_TF, None)
    if quantise:
        gate = _wide(gate)
    out = F.silu(gate) if kind == "silu" else F.gelu(gate, approximate="tanh" if kind == "gelu_tanh" else "none")
    out = out if up is None else out * up
    return quantise_rows(out, quantise) if quantise else out


def quantise_rows(x_TD: Tensor, dtype: torch.dtype, largest: float | None = None) -> Quantised:
    """Each row in an 8-bit type, scaled so that its largest entry is `largest`; None is the largest of the type."""
    wide = x_TD.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp_min(1e-12) / (largest or LARGEST[dtype])
    scaled = wide / scale
    return Quantised((scaled.round_() if dtype == torch.int8 else scaled).to(dtype), scale)
