"""The backend seam: plan once a forward, attend once a layer. Scores, labels, templates and caches stay outside."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from blockrank.layout import PackedLayout
from blockrank.types import InputError

# Name -> module and class. Modules are imported when a backend is asked for.
_BACKENDS = {
    "reference": ("blockrank.attention.reference", "ReferenceBackend"),
    "sdpa": ("blockrank.attention.sdpa", "SdpaBackend"),
    "varlen": ("blockrank.attention.varlen", "VarlenBackend"),
}


class AttentionPlan(Protocol):
    """What a backend prepares once for a layout on a device; opaque to everyone else."""


class AttentionBackend(Protocol):
    """Attention over a packed layout.

    name: how it is asked for. honours: attention extras of a model it can serve (beyond causality and scaling);
    anything else a model passes is refused by the seam. differentiates: whether gradients flow through `attend`.
    """

    name: str
    honours: frozenset[str]
    differentiates: bool

    @staticmethod
    def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
        """Why the backend cannot run there, as a sentence; None when it can."""

    def plan(self, layout: PackedLayout, device: torch.device) -> Any:
        """Prepare index tensors for one forward."""

    def attend(self, q_TNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, plan: Any, scale: float) -> Tensor:
        """Attention output (T, N, H). N is a multiple of K (grouped query heads); `scale` multiplies the logits."""


@dataclass(frozen=True, slots=True)
class Availability:
    """One line of the backend table."""

    name: str
    reason: str | None


def _load(name: str) -> Any:
    module, attribute = _BACKENDS[name]
    return getattr(importlib.import_module(module), attribute)


def available_backends(device: torch.device, dtype: torch.dtype) -> list[Availability]:
    """Every backend with the reason it cannot run on `device` with `dtype` (None: it can)."""
    return [Availability(name, _load(name).unavailable(device, dtype)) for name in _BACKENDS]


def get_backend(name: str | None, device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """The named backend, or for None the default of the device: `varlen` on CUDA in half precision, else `sdpa`.

    Raises `InputError` for an unknown name or one that cannot run there.
    """
    if name is None:
        half = dtype in (torch.bfloat16, torch.float16)
        name = "varlen" if half and _load("varlen").unavailable(device, dtype) is None else "sdpa"
    if name not in _BACKENDS:
        raise InputError(f"backend {name!r} is unknown; there are {sorted(_BACKENDS)}.")
    backend = _load(name)
    if reason := backend.unavailable(device, dtype):
        raise InputError(f"backend {name!r} cannot run here: {reason}")
    built: AttentionBackend = backend()
    return built
