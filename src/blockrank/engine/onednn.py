"""Matrix products on a processor through oneDNN, with the activation in the same pass.

Torch runs float32 products with MKL, which leaves half of the vector units of non-Intel processors idle; oneDNN uses
what the processor has. On Intel processors MKL is faster by a tenth. Nothing is rounded that torch would not round.
"""

from __future__ import annotations

import functools
import platform
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

# (rows at most, multiple that they are padded to). oneDNN compiles and keeps a kernel for every row count (0.3 ms each,
# and its memory fragments the heap): a server that sees every count should need only a few kernels.
_ROW_STEPS = ((64, 16), (128, 32), (sys.maxsize, 64))
# Our activation -> oneDNN's name and variant.
_ACTIVATIONS = {None: ("none", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}


@functools.cache
def _runs(dtype: torch.dtype) -> bool:
    """Whether products of this type are faster through oneDNN on this processor."""
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


@functools.cache
def largest_integer() -> float:
    """The largest entry of an int8 weight whose products are exact here: 127, or 64 on processors without VNNI.

    There pairs of products are added in 16 bits before they are added in 32, and an overflow is clipped silently
    (torch 2.13; oneDNN's guide calls it saturation). With inputs up to 255, as oneDNN shifts them, two products with 64
    just fit.
    """
    most = torch.full((64, 64), 127, dtype=torch.int8)
    exact = bool((torch._int_mm(most, most.t()) == 64 * 127 * 127).all())
    return 127.0 if exact else 64.0


def product(x_RD: Tensor, weight_ND: Tensor, bias_N: Tensor | None, activation: str | None = None) -> Tensor:
    """(R, N) `activation(x @ weight.T + bias)`, in the type of all three."""
    name, variant = _ACTIVATIONS[activation]
    rows = len(x_RD)
    more = -rows % next(step for most, step in _ROW_STEPS if rows <= most)
    filled = F.pad(x_RD, (0, 0, 0, more)) if more else x_RD
    out: Tensor = torch.ops.mkldnn._linear_pointwise(filled, weight_ND, bias_N, name, [], variant)
    return out[:rows]
