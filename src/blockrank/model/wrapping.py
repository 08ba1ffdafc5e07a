"""What data-parallel wrappers ask of a forward: it runs to its end, and every weight has a gradient.

DistributedDataParallel waits for the gradient of each weight. FSDP2 gathers the weights of a layer for the backward
when a gradient reaches the layer's *output*, which queries and keys captured inside do not pass through. So under
either the forward does not stop at the scoring layer, and the captured queries are tied to the model's outputs, which
then receive a gradient of zeros before anything inside a layer receives its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2 holds the weights of a module, a part of them in each process."""
    return isinstance(module, FSDPModule)


def runs_whole(module: nn.Module) -> bool:
    """Whether a forward of the module must not end half-way."""
    return isinstance(module, DistributedDataParallel) or is_sharded(module)


class _Tied(torch.autograd.Function):
    """The first argument as it is; the others receive zeros in the backward."""

    @staticmethod
    def forward(ctx: Any, kept: Tensor, *others: Tensor) -> Tensor:
        ctx.others = [(other.shape, other.dtype, other.device) for other in others]
        return kept.view_as(kept)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        zeros = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.others)
        return gradient, *zeros


def tied(q_GNH: Tensor, outputs: Iterable[Any]) -> Tensor:
    """The same queries, in whose backward all differentiable outputs of the model take part with zeros."""
    others = [item for item in outputs if isinstance(item, Tensor) and item.requires_grad]
    return _Tied.apply(q_GNH, *others) if others else q_GNH  # type: ignore[no-untyped-call]
