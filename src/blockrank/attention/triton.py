"""CUDA in any float type, for inference: one kernel over tiles of query tokens, each with the rows it reads.

A tile is a few tokens of one segment with all query heads of one key head as its matrix rows, so that grouped heads
share every key that is loaded. It walks over the ranges of rows that its segment reads, then over its own rows; nothing
is gathered, padded or masked densely. A tile with many rows to read (the query segment) is split over them; a second
kernel merges the parts by their log-sum-exps.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from blockrank.attention.backend import kernels_unavailable
from blockrank.attention.tiles import TilePlan, Tiles, tile_tokens
from blockrank.layout import PackedLayout


class TritonBackend:
    """Tiles over rows, one launch per layer and a second one where tiles were split."""

    name: ClassVar[str] = "triton"
    differentiates: ClassVar[bool] = False

    @staticmethod
    def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
        """CUDA where Triton kernels run, in three types."""
        return kernels_unavailable(device, dtype)

    def plan(self, layout: PackedLayout, device: torch.device) -> TilePlan:
        """Keep the layout; it is cut into tiles when the first layer shows its heads."""
        return TilePlan(layout, device)

    def attend(self, q_TNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, plan: TilePlan, scale: float) -> Tensor:
        """Attention output; queries, keys and values may be strided views whose last dimension is dense."""
        from blockrank.attention.triton_kernels import attend

        return attend(q_TNH, k_PKH, v_PKH, _tiles(plan, q_TNH, k_PKH), scale)[0]

    def attend_part(
        self, q_TNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, plan: TilePlan, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Also (T, N) the log-sum-exps."""
        from blockrank.attention.triton_kernels import attend

        out_TNH, lse_TN = attend(q_TNH, k_PKH, v_PKH, _tiles(plan, q_TNH, k_PKH), scale, with_lse=True)
        assert lse_TN is not None, "asked for"
        return out_TNH, lse_TN


def _tiles(plan: TilePlan, q_TNH: Tensor, k_PKH: Tensor) -> Tiles:
    return plan.tiles(tile_tokens(q_TNH.shape[1], k_PKH.shape[1], q_TNH.shape[2], q_TNH.dtype))
