"""CUDA in half precision: segments as variable-length sequences of one flash-attention call each for the causal and
the bidirectional ones. No padding, no mask, no key repeated for grouped query heads.

`torch.nn.attention.varlen.varlen_attn` aligns causal attention at the bottom right, which is the rows' own order.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from blockrank.layout import Ints, PackedLayout, ranges_flat


@dataclass(frozen=True, slots=True)
class Group:
    """Segments of one kind. token_Q, row_R: stream positions and rows, segment after segment, None where they are the
    whole stream in order (nothing to gather); cu_q, cu_k: their cumulative lengths (int32); max_q, max_k: the longest.
    """

    token_Q: Tensor | None
    row_R: Tensor | None
    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int
    causal: bool


@dataclass(frozen=True, slots=True)
class VarlenPlan:
    """The groups of a layout; inverse_T puts their outputs back into stream order, None where they are in it."""

    groups: list[Group]
    inverse_T: Tensor | None


@cache
def _varlen_arguments() -> frozenset[str]:
    """Argument names of the installed `varlen_attn`; they changed between releases."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


class VarlenBackend:
    """Flash attention over ragged sequences, gathered by row."""

    name: ClassVar[str] = "varlen"
    differentiates: ClassVar[bool] = True

    @staticmethod
    def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
        """CUDA (compute capability 8.0 or later) in float16 or bfloat16 only."""
        if device.type != "cuda":
            return "it needs a CUDA device."
        if dtype not in (torch.float16, torch.bfloat16):
            return f"it needs float16 or bfloat16, not {dtype}."
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "it needs compute capability 8.0 or later."
        return None

    def plan(self, layout: PackedLayout, device: torch.device) -> VarlenPlan:
        """One group of causal segments, one of bidirectional ones; empty segments and groups are left out."""
        layout = layout.joined()
        filled = layout.ends_S > layout.starts_S
        groups = []
        for causal in (True, False):
            segments = np.flatnonzero(filled & (layout.causal_S == causal))
            if len(segments):
                groups.append(_group(layout, segments, causal, device))
        if len(groups) == 1:  # it holds every segment, in stream order
            return VarlenPlan(groups, None)
        order_T = torch.cat([group.token_Q for group in groups if group.token_Q is not None])
        return VarlenPlan(groups, order_T.argsort())

    def attend(self, q_TNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, plan: VarlenPlan, scale: float) -> Tensor:
        """Gather, attend and scatter each group."""
        parts = [_attend_group(q_TNH, k_PKH, v_PKH, group, scale) for group in plan.groups]
        return parts[0] if plan.inverse_T is None else torch.cat(parts).index_select(0, plan.inverse_T)


def _group(layout: PackedLayout, segments: Ints, causal: bool, device: torch.device) -> Group:
    starts, ends = layout.starts_S[segments], layout.ends_S[segments]
    rows, counts = layout.key_rows(segments)
    lengths = ends - starts

    def cumulative(sizes: Ints) -> Tensor:
        return torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)).to(device, non_blocking=True)

    def gather(index: Ints, size: int) -> Tensor | None:
        whole = len(index) == size and bool((index == np.arange(size)).all())
        return None if whole else torch.from_numpy(index).to(device, non_blocking=True)

    return Group(
        gather(ranges_flat(starts, ends), layout.tokens),
        gather(rows, layout.rows),
        cumulative(lengths),
        cumulative(counts),
        int(lengths.max()),
        int(counts.max()),
        causal,
    )


def _attend_group(q_TNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, group: Group, scale: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    known = _varlen_arguments()
    extras: dict[str, Any] = {"scale": scale}
    if "window_size" in known:
        extras["window_size"] = (-1, 0) if group.causal else (-1, -1)
    else:
        extras["is_causal"] = group.causal
    if "enable_gqa" in known:
        extras["enable_gqa"] = q_TNH.shape[1] != k_PKH.shape[1]
    q = q_TNH if group.token_Q is None else q_TNH.index_select(0, group.token_Q)
    k = k_PKH if group.row_R is None else k_PKH.index_select(0, group.row_R)
    v = v_PKH if group.row_R is None else v_PKH.index_select(0, group.row_R)
    out = varlen_attn(q, k, v, group.cu_q, group.cu_k, group.max_q, group.max_k, **extras)
    assert isinstance(out, Tensor), "auxiliary outputs come only where they are asked for"
    return out
