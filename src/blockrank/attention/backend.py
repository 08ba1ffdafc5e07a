"""The backend seam: plan once per forward, attend once per layer. Scores, labels, templates and caches stay outside."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from blockrank.layout import PackedLayout
from blockrank.types import InputError

# Name -> module and class. Modules are imported when a backend is asked for.
_BACKENDS = {
    "reference": ("blockrank.attention.reference", "ReferenceBackend"),
    "sdpa": ("blockrank.attention.sdpa", "SdpaBackend"),
    "varlen": ("blockrank.attention.varlen", "VarlenBackend"),
    "triton": ("blockrank.attention.triton", "TritonBackend"),
}
# What is chosen where none is asked for: of a row's backends the first that can run. (device, half precision, training)
DEFAULTS: dict[tuple[str, bool, bool], tuple[str, ...]] = {
    ("cuda", True, False): ("triton", "varlen", "sdpa"),
    ("cuda", True, True): ("varlen", "sdpa"),
}
_ELSEWHERE = ("sdpa",)


class AttentionBackend(Protocol):
    """Attention over a packed layout.

    name: how it is asked for. differentiates: whether gradients flow through `attend`. It serves causality and scaling;
    anything else that a model asks of attention is refused by the seam.
    """

    name: str
    differentiates: bool

    @staticmethod
    def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
        """Why the backend cannot run there, as a sentence; None when it can."""

    def plan(self, layout: PackedLayout, device: torch.device) -> Any:
        """What is prepared once a forward for a layout on a device; opaque to everyone else."""

    def attend(self, q_TNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, plan: Any, scale: float) -> Tensor:
        """Attention output (T, N, H). N is a multiple of K (grouped query heads); `scale` multiplies the logits."""


@runtime_checkable
class MergingBackend(AttentionBackend, Protocol):
    """A backend whose outputs over parts of the rows can be merged."""

    def attend_part(
        self, q_TNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, plan: Any, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Like `attend`, and (T, N) the log-sum-exps of the logits, natural; zeros and -inf for a token that reads
        nothing."""


@cache
def kernels_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton kernels cannot run on a device in a type, as a sentence; None when they can."""
    if device.type != "cuda":
        return "it needs a CUDA device."
    if importlib.util.find_spec("triton") is None:
        return "it needs the package triton, which torch brings along on Linux."
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0 or later."
    # Triton builds its launchers with the compiler that it finds in this way.
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "triton needs a C compiler: install gcc or clang, or set CC."
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"it needs float16, bfloat16 or float32, not {dtype}."
    return None


def has_kernels(tensor: Tensor) -> bool:
    """Whether Triton kernels can run where a tensor is, in its type."""
    return kernels_unavailable(tensor.device, tensor.dtype) is None


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


def default_backends(device: torch.device, dtype: torch.dtype, training: bool = False) -> tuple[str, ...]:
    """The row of the table of defaults, best first."""
    half = dtype in (torch.bfloat16, torch.float16)
    return DEFAULTS.get((device.type, half, training), _ELSEWHERE)


def get_backend(
    name: str | None, device: torch.device, dtype: torch.dtype, *, training: bool = False
) -> AttentionBackend:
    """The named backend, or for None the first of `default_backends` that can run.

    Raises `InputError` for an unknown name, or one that cannot run there or cannot train where it should.
    """
    if name is None:
        candidates = default_backends(device, dtype, training)
        name = next(item for item in candidates if _load(item).unavailable(device, dtype) is None)
    if name not in _BACKENDS:
        raise InputError(f"backend {name!r} is unknown; there are {sorted(_BACKENDS)}.")
    backend = _load(name)
    if reason := backend.unavailable(device, dtype):
        raise InputError(f"backend {name!r} cannot run here: {reason}")
    if training and not backend.differentiates:
        raise InputError(f"backend {name!r} does not differentiate: it cannot train.")
    built: AttentionBackend = backend()
    return built
