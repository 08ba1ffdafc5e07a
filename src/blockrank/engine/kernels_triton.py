"""The functions of `kernels` as one kernel each, one row of the stream per program. Imported only where they run."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from blockrank.engine.kernels import LARGEST, Norm, Quantised

_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}


def add_norm(
    x_TD: Tensor,
    delta_TD: Tensor | None,
    norm: Norm,
    *,
    delta_norm: Norm | None = None,
    keep_norm: bool = False,
    quantise: torch.dtype | None = None,
) -> Tensor | Quantised:
    """See `kernels.add_norm`."""
    assert delta_norm is None or _alike(norm, delta_norm), "one kernel, one epsilon and shift"
    tokens, width = x_TD.shape
    writes_values = not (keep_norm and quantise is None)  # the norm kept in the stream is the result itself
    values = torch.empty_like(x_TD, dtype=quantise or x_TD.dtype) if writes_values else x_TD
    scale = torch.empty(tokens if quantise else 0, 1, dtype=torch.float32, device=x_TD.device)
    block = triton.next_power_of_2(width)
    with torch.cuda.device(x_TD.device):
        _add_norm_kernel[(tokens,)](
            x_TD, delta_TD, values, scale, norm.weight_D, norm.bias_D,
            None if delta_norm is None else delta_norm.weight_D, norm.eps,
            x_TD.stride(0), 0 if delta_TD is None else delta_TD.stride(0), norm.shift,
            WIDTH=width, BLOCK=block, CENTRED=norm.centred, KEEP_NORM=keep_norm, QUANTISE=quantise is not None,
            WRITES=writes_values, LARGEST=_largest(quantise), num_warps=_warps(block),
        )  # fmt: skip
    return Quantised(values, scale) if quantise else values


def rotate_heads(
    heads_TNH: Tensor, query_heads: int, cos_TH: Tensor | None, sin_TH: Tensor | None, norms: tuple[Norm, Norm] | None
) -> None:
    """See `kernels.rotate_heads`."""
    tokens, heads, width = heads_TNH.shape
    if norms is None and cos_TH is None:
        return
    at_once = max(min(triton.next_power_of_2(heads), 4096 // triton.next_power_of_2(width)), 1)
    assert norms is None or _alike(*norms), "one kernel, one epsilon and shift"
    weights = (None, None) if norms is None else (norms[0].weight_D, norms[1].weight_D)
    with torch.cuda.device(heads_TNH.device):
        _rotate_kernel[(tokens, triton.cdiv(heads, at_once))](
            heads_TNH, cos_TH, sin_TH, *weights, heads_TNH.stride(0), heads_TNH.stride(1), query_heads, heads,
            0.0 if norms is None else norms[0].eps, 0.0 if norms is None else norms[0].shift,
            HALF=width // 2, BLOCK=triton.next_power_of_2(width // 2), HEADS=at_once, num_warps=4,
        )  # fmt: skip


def activate(x_TF: Tensor, kind: str, gated: bool, quantise: torch.dtype | None = None) -> Tensor | Quantised:
    """See `kernels.activate`."""
    tokens, width = x_TF.shape
    out_width = width // 2 if gated else width
    values = torch.empty((tokens, out_width), dtype=quantise or x_TF.dtype, device=x_TF.device)
    scale = torch.empty(tokens if quantise else 0, 1, dtype=torch.float32, device=x_TF.device)
    # Quantising needs the largest entry of a whole row; else a row may be shared between programs.
    block = triton.next_power_of_2(out_width) if quantise else min(triton.next_power_of_2(out_width), 4096)
    with torch.cuda.device(x_TF.device):
        _activate_kernel[(tokens, triton.cdiv(out_width, block))](
            x_TF, values, scale, x_TF.stride(0), WIDTH=out_width, BLOCK=block, KIND=_ACTIVATIONS[kind], GATED=gated,
            QUANTISE=quantise is not None, LARGEST=_largest(quantise), num_warps=_warps(block),
        )  # fmt: skip
    return Quantised(values, scale) if quantise else values


def quantise_rows(x_TD: Tensor, dtype: torch.dtype) -> Quantised:
    """See `kernels.quantise_rows`."""
    tokens, width = x_TD.shape
    values = torch.empty((tokens, width), dtype=dtype, device=x_TD.device)
    scale = torch.empty(tokens, 1, dtype=torch.float32, device=x_TD.device)
    block = triton.next_power_of_2(width)
    with torch.cuda.device(x_TD.device):
        _quantise_kernel[(tokens,)](
            x_TD,
            values,
            scale,
            x_TD.stride(0),
            WIDTH=width,
            BLOCK=block,
            LARGEST=_largest(dtype),
            num_warps=_warps(block),
        )
    return Quantised(values, scale)


def _alike(one: Norm, two: Norm) -> bool:
    """Whether two norms differ in their weights alone."""
    return (one.eps, one.shift, one.centred) == (two.eps, two.shift, two.centred)


def _largest(dtype: torch.dtype | None) -> float:
    assert dtype in (None, torch.float8_e4m3fn), "integers are for processors"
    return LARGEST[dtype] if dtype else 0.0


def _warps(block: int) -> int:
    return 4 if block <= 2048 else 8 if block <= 8192 else 16


@triton.jit
def _normed(x, weight, bias, eps, shift, at, real, WIDTH: tl.constexpr, CENTRED: tl.constexpr):
    """A row normed in float32."""
    if CENTRED:
        x = tl.where(real, x - tl.sum(x, 0) / WIDTH, 0.0)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
    x = x * (tl.load(weight + at, mask=real, other=0.0).to(tl.float32) + shift)
    if bias is not None:
        x += tl.load(bias + at, mask=real, other=0.0).to(tl.float32)
    return x


@triton.jit
def _store_quantised(x, values, scale, row, at, real, WIDTH: tl.constexpr, LARGEST: tl.constexpr):
    """A row in an 8-bit type and its scale."""
    factor = tl.maximum(tl.max(tl.where(real, tl.abs(x), 0.0), 0), 1e-12) / LARGEST
    tl.store(values + row * WIDTH + at, (x / factor).to(values.dtype.element_ty), mask=real)
    tl.store(scale + row, factor)


@triton.jit
def _add_norm_kernel(
    x, delta, values, scale, weight, bias, delta_weight, eps, x_row, delta_row, shift,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, CENTRED: tl.constexpr, KEEP_NORM: tl.constexpr, QUANTISE: tl.constexpr,
    WRITES: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    real = at < WIDTH
    total = tl.load(x + row * x_row + at, mask=real, other=0.0).to(tl.float32)
    if delta is not None:
        added = tl.load(delta + row * delta_row + at, mask=real, other=0.0).to(tl.float32)
        if delta_weight is not None:
            added = _normed(added, delta_weight, None, eps, shift, at, real, WIDTH, CENTRED)
        total += added
        if not KEEP_NORM:
            tl.store(x + row * x_row + at, total.to(x.dtype.element_ty), mask=real)
    normed = _normed(total, weight, bias, eps, shift, at, real, WIDTH, CENTRED)
    if KEEP_NORM:
        tl.store(x + row * x_row + at, normed.to(x.dtype.element_ty), mask=real)
    if QUANTISE:
        _store_quantised(normed, values, scale, row, at, real, WIDTH, LARGEST)
    elif WRITES:
        tl.store(values + row * WIDTH + at, normed.to(values.dtype.element_ty), mask=real)


@triton.jit
def _rotate_kernel(
    heads, cos, sin, query_weight, key_weight, token_stride, head_stride, query_heads, all_heads, eps, shift,
    HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Some heads of one token, each as two halves."""
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    h = tl.arange(0, BLOCK)
    real = (n < all_heads)[:, None] & (h < HALF)[None, :]
    at = heads + token * token_stride + n[:, None] * head_stride + h[None, :]
    low = tl.load(at, mask=real, other=0.0).to(tl.float32)
    high = tl.load(at + HALF, mask=real, other=0.0).to(tl.float32)
    if query_weight is not None:
        factor = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / (2 * HALF) + eps)
        is_query = (n < query_heads)[:, None]
        inside = h < HALF
        q_low = tl.load(query_weight + h, mask=inside, other=0.0).to(tl.float32)
        q_high = tl.load(query_weight + HALF + h, mask=inside, other=0.0).to(tl.float32)
        k_low = tl.load(key_weight + h, mask=inside, other=0.0).to(tl.float32)
        k_high = tl.load(key_weight + HALF + h, mask=inside, other=0.0).to(tl.float32)
        low = low * factor[:, None] * (tl.where(is_query, q_low[None, :], k_low[None, :]) + shift)
        high = high * factor[:, None] * (tl.where(is_query, q_high[None, :], k_high[None, :]) + shift)
    if cos is not None:
        c_at = token * (2 * HALF) + h
        c_low = tl.load(cos + c_at, mask=h < HALF, other=0.0).to(tl.float32)[None, :]
        c_high = tl.load(cos + HALF + c_at, mask=h < HALF, other=0.0).to(tl.float32)[None, :]
        s_low = tl.load(sin + c_at, mask=h < HALF, other=0.0).to(tl.float32)[None, :]
        s_high = tl.load(sin + HALF + c_at, mask=h < HALF, other=0.0).to(tl.float32)[None, :]
        low, high = low * c_low - high * s_low, high * c_high + low * s_high
    tl.store(at, low.to(heads.dtype.element_ty), mask=real)
    tl.store(at + HALF, high.to(heads.dtype.element_ty), mask=real)


@triton.jit
def _activate_kernel(
    x, values, scale, x_row,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr, GATED: tl.constexpr, QUANTISE: tl.constexpr,
    LARGEST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = at < WIDTH
    y = tl.load(x + row * x_row + at, mask=real, other=0.0).to(tl.float32)
    if KIND == 0:
        y = y * tl.sigmoid(y)
    elif KIND == 1:
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    else:
        # tanh(z) = 2 sigmoid(2z) - 1
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    if GATED:
        y = y * tl.load(x + row * x_row + WIDTH + at, mask=real, other=0.0).to(tl.float32)
    if QUANTISE:
        _store_quantised(y, values, scale, row, at, real, WIDTH, LARGEST)
    else:
        tl.store(values + row * WIDTH + at, y.to(values.dtype.element_ty), mask=real)


@triton.jit
def _quantise_kernel(x, values, scale, x_row, WIDTH: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    real = at < WIDTH
    y = tl.load(x + row * x_row + at, mask=real, other=0.0).to(tl.float32)
    _store_quantised(y, values, scale, row, at, real, WIDTH, LARGEST)
