"""The kernels of the `triton` backend. Imported only where they run."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from blockrank.attention.tiles import Tiles

# Fastest of those tried on an H100 for heads of 128: many warps at work on short loops beat large blocks.
_WARPS, _BLOCK_N, _STAGES = 4, 32, 3
_MOST_PROGRAMS = 65_535  # along the second axis of a grid: CUDA's limit
_LOG2E = math.log2(math.e)
LN2 = tl.constexpr(math.log(2))


def attend(
    q_TNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, tiles: Tiles, scale: float, *, with_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """(T, N, H) attention output over the tiles of a layout, and if asked for (T, N) the log-sum-exps."""
    with torch.cuda.device(q_TNH.device):  # kernels are launched on the current one
        return _attend(q_TNH, k_PKH, v_PKH, tiles, scale, with_lse)


def _attend(
    q_TNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, tiles: Tiles, scale: float, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    q_TNH, k_PKH, v_PKH = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_TNH, k_PKH, v_PKH))
    tokens, heads, width = q_TNH.shape
    kv_heads = k_PKH.shape[1]
    group = heads // kv_heads
    out_TNH = torch.empty((tokens, heads, width), dtype=q_TNH.dtype, device=q_TNH.device)
    part = torch.empty((tiles.slots, tiles.tokens, heads, width), dtype=torch.float32, device=q_TNH.device)
    part_lse = torch.empty((tiles.slots, tiles.tokens, heads), dtype=torch.float32, device=q_TNH.device)
    lse_TN = torch.empty((tokens, heads), dtype=torch.float32, device=q_TNH.device) if with_lse else None
    block_h = max(triton.next_power_of_2(width), 16)
    wide = q_TNH.dtype.itemsize * block_h > 256
    for items in tiles.items_I8.split(_MOST_PROGRAMS):
        _attend_kernel[(kv_heads, len(items))](
            q_TNH, k_PKH, v_PKH, out_TNH, lse_TN, part, part_lse, items, tiles.ranges_R2, len(k_PKH) - 1,
            scale * _LOG2E,
            *q_TNH.stride()[:2], *k_PKH.stride()[:2], *v_PKH.stride()[:2], *out_TNH.stride()[:2],
            GROUP=group, WIDTH=width, BLOCK_H=block_h, TILE_TOKENS=tiles.tokens,
            BLOCK_M=max(triton.next_power_of_2(tiles.tokens * group), 16), BLOCK_N=_BLOCK_N,
            PRECISION="ieee" if q_TNH.dtype == torch.float32 else "tf32",
            num_warps=_WARPS, num_stages=1 if wide else _STAGES,
        )  # fmt: skip
    for merges in tiles.merges_M4.split(_MOST_PROGRAMS) if len(tiles.merges_M4) else ():
        _merge_kernel[(heads, len(merges))](
            part, part_lse, out_TNH, lse_TN, merges, *out_TNH.stride()[:2],
            TILE_TOKENS=tiles.tokens, HEADS=heads, WIDTH=width, BLOCK_H=block_h, num_warps=1,
        )  # fmt: skip
    return out_TNH, lse_TN


# One compilation for layouts of any size: nothing about the number of rows is specialised.
@triton.jit(do_not_specialize=["last_row"])
def _attend_kernel(
    q, k, v, out, lse, part, part_lse, items, ranges, last_row, scale,
    q_token, q_head, k_row, k_head, v_row, v_head, out_token, out_head,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, BLOCK_H: tl.constexpr, TILE_TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile and one key head. Matrix row m is token m // GROUP and query head m % GROUP of the key head's group."""
    kv = tl.program_id(0)
    item = items + tl.program_id(1) * 8
    first, tokens = tl.load(item), tl.load(item + 1)
    range_first, range_last = tl.load(item + 2), tl.load(item + 3)
    own_first, own_last, causal = tl.load(item + 4), tl.load(item + 5), tl.load(item + 6)
    slot = tl.load(item + 7)

    m = tl.arange(0, BLOCK_M)
    h = tl.arange(0, BLOCK_H)
    at = tl.minimum(m // GROUP, tokens - 1)  # padding repeats the last token
    head = kv * GROUP + m % GROUP
    real = (m // GROUP < tokens) & (m < TILE_TOKENS * GROUP)
    width = h < WIDTH
    q_MH = tl.load(
        q + first.to(tl.int64) * q_token + (at * q_token + head * q_head)[:, None] + h[None, :],
        mask=width[None, :], other=0.0,
    )  # fmt: skip

    # A token of a causal segment reads its own rows up to itself.
    reach_M = tl.where(causal != 0, own_last - tokens + at + 1, own_last)
    own_blocks = tl.cdiv(own_last - own_first, BLOCK_N)
    k, v = k + kv * k_head, v + kv * v_head
    n = tl.arange(0, BLOCK_N)
    top_M = tl.full([BLOCK_M], -float("inf"), tl.float32)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    acc_MH = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    ranges_read = tl.maximum(range_last - range_first, 1)  # a tile that reads none before its own has one empty range
    for index in range(ranges_read):
        at_range = ranges + 2 * (range_first + index)
        exists = range_first + index < range_last
        start, end = tl.load(at_range, mask=exists, other=0), tl.load(at_range + 1, mask=exists, other=0)
        blocks = tl.cdiv(end - start, BLOCK_N)
        # The last range and the own rows in one loop: most tiles read one short range, and loops take time to fill.
        for block in range(blocks + tl.where(index == ranges_read - 1, own_blocks, 0)):
            is_own = block >= blocks
            row = tl.where(is_own, own_first + (block - blocks) * BLOCK_N, start + block * BLOCK_N)
            # Rows past the end exist or are the last one; their weight is zero.
            n_at = tl.minimum(n, last_row - row)
            k_at = k + row.to(tl.int64) * k_row + n_at[None, :] * k_row + h[:, None]
            v_at = v + row.to(tl.int64) * v_row + n_at[:, None] * v_row + h[None, :]
            if WIDTH == BLOCK_H:
                k_HN, v_NH = tl.load(k_at), tl.load(v_at)
            else:
                k_HN = tl.load(k_at, mask=width[:, None], other=0.0)
                v_NH = tl.load(v_at, mask=width[None, :], other=0.0)
            z_MN = tl.dot(q_MH, k_HN, input_precision=PRECISION)
            limit_M = tl.where(is_own, reach_M, end)
            z_MN = tl.where((row + n)[None, :] < limit_M[:, None], z_MN * scale, -float("inf"))
            new_M = tl.maximum(top_M, tl.max(z_MN, 1))
            w_MN = tl.exp2(z_MN - new_M[:, None])
            keep_M = tl.exp2(top_M - new_M)
            sum_M = sum_M * keep_M + tl.sum(w_MN, 1)
            acc_MH = acc_MH * keep_M[:, None]
            acc_MH = tl.dot(w_MN.to(v_NH.dtype), v_NH, acc_MH, input_precision=PRECISION)
            top_M = new_M

    # A token that reads nothing here has nothing to add: zeros and a log-sum-exp of -inf.
    acc_MH = acc_MH / tl.where(sum_M > 0, sum_M, 1.0)[:, None]
    lse_M = tl.where(sum_M > 0, top_M + tl.log2(sum_M), -float("inf"))
    heads = tl.num_programs(0) * GROUP
    stored = real[:, None] & width[None, :]
    if slot < 0:
        out_at = out + first.to(tl.int64) * out_token + (at * out_token + head * out_head)[:, None] + h[None, :]
        tl.store(out_at, acc_MH.to(out.dtype.element_ty), mask=stored)
        if lse is not None:
            tl.store(lse + (first + at) * heads + head, lse_M * LN2, mask=real)
    else:
        place = (slot.to(tl.int64) * TILE_TOKENS + at) * heads + head
        tl.store(part + place[:, None] * WIDTH + h[None, :], acc_MH, mask=stored)
        tl.store(part_lse + place, lse_M, mask=real)


@triton.jit
def _merge_kernel(
    part, part_lse, out, lse, merges, out_token, out_head,
    TILE_TOKENS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Parts of one token and head into its output: their mean weighted by the exponent of their log-sum-exps."""
    head = tl.program_id(0)
    merge = merges + tl.program_id(1) * 4
    token, slot, at, count = tl.load(merge), tl.load(merge + 1), tl.load(merge + 2), tl.load(merge + 3)
    h = tl.arange(0, BLOCK_H)
    top, total = tl.full([], -float("inf"), tl.float32), tl.zeros([], tl.float32)
    acc_H = tl.zeros([BLOCK_H], tl.float32)
    for index in range(count):
        place = ((slot.to(tl.int64) + index) * TILE_TOKENS + at) * HEADS + head
        part_top = tl.load(part_lse + place)
        new = tl.maximum(top, part_top)
        keep, weight = tl.exp2(top - new), tl.exp2(part_top - new)
        acc_H = acc_H * keep + weight * tl.load(part + place * WIDTH + h, mask=h < WIDTH, other=0.0)
        total, top = total * keep + weight, new
    tl.store(
        out + token.to(tl.int64) * out_token + head * out_head + h,
        (acc_H / total).to(out.dtype.element_ty),
        mask=h < WIDTH,
    )
    if lse is not None:
        tl.store(lse + token * HEADS + head, (top + tl.log2(total)) * LN2)
