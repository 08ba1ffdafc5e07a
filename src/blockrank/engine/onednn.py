"""Matrix products on a processor through oneDNN, with the activation in the same pass.

Torch gives float32 products to MKL, which on processors of other makers than its own leaves half of their vector units
idle; oneDNN asks what the processor can do. On Intel's own, MKL is faster by a tenth. Nothing is rounded that torch
would not round.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

# oneDNN makes a kernel for every number of rows (about 0.3 ms) and keeps a thousand: rows are filled up to a multiple
# of this, so that a server that sees every number needs few.
_ROW_STEP = 16
# Our activation -> oneDNN's name and variant.
_ACTIVATIONS = {None: ("none", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}


@functools.cache
def _runs(dtype: torch.dtype) -> bool:
    """Whether products of a type gain by it here."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or torch.backends.cpu.get_cpu_capability() != "AVX512" or _is_intels():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_intels() -> bool:
    try:
        maker = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        maker = platform.processor()
    return "GenuineIntel" in maker


def takes(weight_ND: Tensor, activation: str | None = None) -> bool:
    """Whether a product with this weight, and this activation after it, can run here."""
    return weight_ND.device.type == "cpu" and activation in _ACTIVATIONS and _runs(weight_ND.dtype)


def product(x_RD: Tensor, weight_ND: Tensor, bias_N: Tensor | None, activation: str | None = None) -> Tensor:
    """(R, N) `activation(x @ weight.T + bias)`, in the type of all three."""
    name, variant = _ACTIVATIONS[activation]
    rows = len(x_RD)
    filled = F.pad(x_RD, (0, 0, 0, -rows % _ROW_STEP)) if rows % _ROW_STEP else x_RD
    out: Tensor = torch.ops.mkldnn._linear_pointwise(filled, weight_ND, bias_N, name, [], variant)
    return out[:rows]
