"""The reference: one dense (T, P) mask, any device, any dtype. Slow and plain on purpose."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from blockrank.layout import PackedLayout


def dense_mask(layout: PackedLayout, device: torch.device | None = None) -> Tensor:
    """Boolean (T, P) mask of a layout: True where a new token may read a row."""
    mask = torch.zeros(layout.tokens, layout.rows, dtype=torch.bool)
    for segment, (start, end) in enumerate(zip(layout.starts_S, layout.ends_S, strict=True)):
        reads = layout.reads_R2[layout.read_offsets_S1[segment] : layout.read_offsets_S1[segment + 1]]
        for row_start, row_end in reads:
            mask[start:end, row_start:row_end] = True
        if not layout.own_S[segment]:
            continue
        own = torch.ones(end - start, end - start, dtype=torch.bool)
        rows = slice(layout.cached_rows + start, layout.cached_rows + end)
        mask[start:end, rows] = own.tril() if layout.causal_S[segment] else own
    return mask.to(device) if device is not None else mask


class ReferenceBackend:
    """Dense masked attention in at least float32."""

    name: ClassVar[str] = "reference"
    differentiates: ClassVar[bool] = True

    @staticmethod
    def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
        """It runs everywhere."""
        return None

    def plan(self, layout: PackedLayout, device: torch.device) -> Tensor:
        """The dense mask."""
        return dense_mask(layout, device)

    def attend(self, q_TNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, plan: Tensor, scale: float) -> Tensor:
        """Softmax of scaled logits under the mask, in float32 or better, returned in the dtype of `q_TNH`."""
        return self.attend_part(q_TNH, k_PKH, v_PKH, plan, scale)[0]

    def attend_part(
        self, q_TNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, plan: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Also (T, N) the log-sum-exps; a token that reads nothing gets zeros and -inf."""
        dtype = torch.promote_types(q_TNH.dtype, torch.float32)
        groups = q_TNH.shape[1] // k_PKH.shape[1]
        k_PNH = k_PKH.to(dtype).repeat_interleave(groups, dim=1)
        v_PNH = v_PKH.to(dtype).repeat_interleave(groups, dim=1)
        z_NTP = torch.einsum("tnh,pnh->ntp", q_TNH.to(dtype), k_PNH) * scale
        z_NTP = z_NTP.masked_fill(~plan, -np.inf)
        weights_NTP = z_NTP.softmax(-1).masked_fill(~plan, 0.0)
        out_TNH = torch.einsum("ntp,pnh->tnh", weights_NTP, v_PNH).to(q_TNH.dtype)
        return out_TNH, z_NTP.logsumexp(-1).t()
