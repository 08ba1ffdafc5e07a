"""The log-sum-exps of a read-out in one kernel: keys are read once, in place. Imported only where it runs."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from blockrank.readout.plan import ReadoutPlan

_COSINE = {"none": 0, "keys": 1, "both": 2}
_BLOCK_N = 32
_MOST_ROWS = 64  # matrix rows of one program


def document_lse(plan: ReadoutPlan) -> Tensor:
    """(C, N, G) log-sum-exp of scaled logits over the rows of each document, float32; N is 1 for joined heads.

    See `signals.segment_lse`, which is the same in plain torch.
    """
    q_GNH, k_PKH, read = plan.q_GNH.contiguous(), plan.k_PKH, plan.spec.readout
    if k_PKH.stride(-1) != 1:
        k_PKH = k_PKH.contiguous()
    heads, width = q_GNH.shape[1:]
    kv_heads, (documents, signals) = k_PKH.shape[1], (len(plan.start_C), plan.signal_BG.shape[1])
    joined = read.joined_heads
    scale = plan.scale / math.sqrt(width * (heads if joined else 1)) if read.cosine == "keys" else plan.scale
    rows = signals if joined else heads // kv_heads * signals
    block_m = min(max(triton.next_power_of_2(rows), 16), _MOST_ROWS)
    lse = torch.empty(documents, 1 if joined else heads, signals, dtype=torch.float32, device=q_GNH.device)
    with torch.cuda.device(q_GNH.device):
        _lse_kernel[(documents, 1 if joined else kv_heads, triton.cdiv(rows, block_m))](
            q_GNH, k_PKH, lse, plan.start_C, plan.length_C, plan.owner_C, plan.signal_BG,
            scale * math.log2(math.e), signals, *q_GNH.stride()[:2], *k_PKH.stride()[:2],
            HEADS=heads, GROUP=heads // kv_heads, WIDTH=width, BLOCK_H=max(triton.next_power_of_2(width), 16),
            JOINED=joined, COSINE=_COSINE[read.cosine], BLOCK_M=block_m, BLOCK_N=_BLOCK_N,
            PRECISION="ieee" if q_GNH.dtype == torch.float32 else "tf32", num_warps=4,
        )  # fmt: skip
    return lse


@triton.jit
def _lse_kernel(
    q, k, lse, starts, lengths, owners, places, scale, signals, q_token, q_head, k_row, k_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, BLOCK_H: tl.constexpr, JOINED: tl.constexpr,
    COSINE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One document and one key head, or all heads as one. Matrix row m is a query head of the group and a signal token
    (head by head), or a signal token."""
    document, kv = tl.program_id(0), tl.program_id(1)
    start, length, owner = tl.load(starts + document), tl.load(lengths + document), tl.load(owners + document)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    h, n = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_N)
    inside = h < WIDTH
    heads_here = 1 if JOINED else GROUP
    real = m < heads_here * signals
    token = tl.load(places + owner * signals + m % signals, mask=real, other=0)
    top_M, sum_M = tl.full([BLOCK_M], -float("inf"), tl.float32), tl.zeros([BLOCK_M], tl.float32)
    for block in range(tl.cdiv(length, BLOCK_N)):
        at = block * BLOCK_N + n
        row = start + tl.minimum(at, length - 1)
        z_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        q_square, k_square = tl.zeros([BLOCK_M], tl.float32), tl.zeros([BLOCK_N], tl.float32)
        for index in range(HEADS if JOINED else 1):
            head = index if JOINED else kv * GROUP + m // signals
            kv_head = index // GROUP if JOINED else kv
            q_MH = tl.load(q + (token * q_token + head * q_head)[:, None] + h[None, :],
                           mask=real[:, None] & inside[None, :], other=0.0)  # fmt: skip
            k_HN = tl.load(k + (row * k_row + kv_head * k_head)[None, :] + h[:, None], mask=inside[:, None], other=0.0)
            z_MN += tl.dot(q_MH, k_HN, input_precision=PRECISION)
            if COSINE > 0:
                k_square += tl.sum(k_HN.to(tl.float32) * k_HN.to(tl.float32), 0)
            if COSINE == 2:
                q_square += tl.sum(q_MH.to(tl.float32) * q_MH.to(tl.float32), 1)
        z_MN *= scale
        if COSINE > 0:
            z_MN = z_MN / tl.maximum(tl.sqrt(k_square), 1e-12)[None, :]
        if COSINE == 2:
            z_MN = z_MN / tl.maximum(tl.sqrt(q_square), 1e-12)[:, None]
        z_MN = tl.where((at < length)[None, :], z_MN, -float("inf"))
        new_M = tl.maximum(top_M, tl.max(z_MN, 1))
        sum_M = sum_M * tl.exp2(top_M - new_M) + tl.sum(tl.exp2(z_MN - new_M[:, None]), 1)
        top_M = new_M
    # Rows lie in the output as they are numbered: head by head, signal token by signal token.
    place = lse + (document * (1 if JOINED else HEADS) + (0 if JOINED else kv * GROUP)) * signals + m
    tl.store(place, (top_M + tl.log2(sum_M)) * 0.6931471805599453, mask=real)
