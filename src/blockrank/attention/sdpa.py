"""The default on CPU, and everywhere in float32: segments in buckets of one padded size, one SDPA call per bucket.

Never a dense (T, T) mask: a bucket of n segments holds at most n x longest query x longest key entries. The size that a
segment is padded to depends on the segment alone. A product adds up in an order that depends on its shape, so that
else a segment would get other bits beside other segments. That is some 1e-6, but where the next product rounds its
input to 8 bits it may be another step, and steps add up. Segments that read the same cached rows first
(the beams of one prompt) count as one, so that these rows are gathered once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from blockrank.layout import Ints, PackedLayout, ranges_flat

_STEP = 16  # sizes are multiples of it, and above 128 of an eighth of the next power of two
_ALONE = 512  # from so many tokens on a causal segment that reads its own rows alone has its own call, without a mask
_MAX_BUCKET_LOGITS = 1 << 22  # logits of one head in one call; bounds the memory of a bucket


@dataclass(frozen=True, slots=True)
class Bucket:
    """Some segments of one layout.

    q_nQ, k_nR: stream positions and row indices, padded with the segment's first. mask_n1QR: what may be read (Q = 1
    where all queries of a segment read the same), None where nothing is padded. causal: a single segment that reads
    its own rows alone, each token up to itself, which takes no mask. valid_Q: flat positions of the real
    queries in q_nQ; token_Q: their places in the stream.
    """

    q_nQ: Tensor
    k_nR: Tensor
    mask_n1QR: Tensor | None
    valid_Q: Tensor
    token_Q: Tensor
    causal: bool = False


@dataclass(frozen=True, slots=True)
class SdpaPlan:
    """The buckets of a layout; inverse_T puts their outputs, one bucket after the other, back into stream order."""

    buckets: list[Bucket]
    inverse_T: Tensor


class SdpaBackend:
    """`torch.nn.functional.scaled_dot_product_attention`, bucket by bucket."""

    name: ClassVar[str] = "sdpa"
    differentiates: ClassVar[bool] = True

    @staticmethod
    def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
        """It runs everywhere."""
        return None

    def plan(self, layout: PackedLayout, device: torch.device) -> SdpaPlan:
        """Sort segments by what they read and cut them into buckets."""
        layout = layout.joined()
        shared = _shared(layout)
        segments = np.setdiff1d(np.flatnonzero(layout.ends_S > layout.starts_S), np.concatenate([[], *shared]))
        rows_flat, counts = layout.key_rows(segments)
        row_offsets = np.concatenate([[0], np.cumsum(counts)])
        lengths = (layout.ends_S - layout.starts_S)[segments]
        alone = layout.causal_S[segments] & (counts == lengths) & (lengths >= _ALONE)
        others = np.flatnonzero(~alone)
        buckets = []
        for members in [
            *np.flatnonzero(alone)[:, None],
            *(others[group] for group in _buckets(lengths[others], counts[others])),
        ]:
            rows = [rows_flat[row_offsets[i] : row_offsets[i + 1]] for i in members]
            buckets.append(_bucket(layout, segments[members], rows, bool(alone[members[0]]), device))
        buckets += _shared_buckets([_read_together(layout, group) for group in shared], device)
        return SdpaPlan(buckets, torch.cat([bucket.token_Q for bucket in buckets]).argsort())

    def attend(self, q_TNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, plan: SdpaPlan, scale: float) -> Tensor:
        """Gather each bucket, attend, put the real rows back."""
        parts = [_attend_bucket(q_TNH, k_PKH, v_PKH, bucket, scale) for bucket in plan.buckets]
        return torch.cat(parts).index_select(0, plan.inverse_T)


def _buckets(lengths: Ints, counts: Ints) -> list[Ints]:
    """Indices of segments, in groups of one padded size."""
    lengths, counts = _padded(lengths), _padded(counts)
    order = np.lexsort((lengths, counts))
    changes = np.flatnonzero((np.diff(lengths[order]) != 0) | (np.diff(counts[order]) != 0)) + 1
    groups = []
    for group in np.split(order, changes) if len(order) else ():
        most = max(_MAX_BUCKET_LOGITS // int(lengths[group[0]] * counts[group[0]]), 1)
        groups += np.split(group, range(most, len(group), most))
    return groups


def _padded(sizes: Ints) -> Ints:
    """The sizes that queries and rows are padded to: less than a quarter more from 64 on, so that there are few."""
    steps = np.maximum(2 ** np.ceil(np.log2(np.maximum(sizes, 1))).astype(np.int64) // 8, _STEP)
    return -(-sizes // steps) * steps


def _bucket(layout: PackedLayout, segments: Ints, rows: list[Ints], alone: bool, device: torch.device) -> Bucket:
    """Index tensors and mask of one bucket."""
    starts, ends = layout.starts_S[segments], layout.ends_S[segments]
    lengths, counts = ends - starts, np.array([len(item) for item in rows])
    most_Q, most_R = (sizes.max() if alone else _padded(sizes).max() for sizes in (lengths, counts))
    at_Q, at_R = np.arange(most_Q), np.arange(most_R)
    real_nQ = at_Q < lengths[:, None]
    q_nQ = np.where(real_nQ, starts[:, None] + at_Q, starts[:, None])
    k_nR = np.stack([np.pad(item, (0, most_R - len(item)), mode="edge") for item in rows])
    allowed = (at_R < counts[:, None])[:, None, :]  # (n, 1, R): one line for all queries of a segment
    causal = layout.causal_S[segments]
    if causal.any() and not alone:
        # Causal at the bottom right: own rows come last, so token t of a segment reads `counts - lengths + t` rows.
        reach = (counts - lengths)[:, None] + at_Q
        allowed = allowed & ((at_R <= reach[:, :, None]) | ~causal[:, None, None])
    mask = None if allowed.all() else torch.from_numpy(allowed[:, None].copy()).to(device)
    return Bucket(
        torch.from_numpy(q_nQ).to(device),
        torch.from_numpy(k_nR).to(device),
        mask,
        torch.from_numpy(np.flatnonzero(real_nQ)).to(device),
        torch.from_numpy(q_nQ[real_nQ]).to(device),
        alone,
    )


@dataclass(frozen=True, slots=True)
class Shared:
    """Segments as one: their tokens, all rows that any of them reads, and which token may read which of these."""

    token_Q: Ints
    row_R: Ints
    allowed_QR: NDArray[np.bool_]


def _shared(layout: PackedLayout) -> list[Ints]:
    """Groups of consecutive segments whose first rows are the same cached ones."""
    counts_S = np.diff(layout.read_offsets_S1)
    if not layout.cached_rows or not counts_S.all():
        return []
    first_S2 = layout.reads_R2[layout.read_offsets_S1[:-1]]
    changes = np.flatnonzero((first_S2[1:] != first_S2[:-1]).any(1)) + 1
    groups = np.split(np.arange(len(first_S2)), changes)
    return [group for group in groups if len(group) > 1 and first_S2[group[0], 1] <= layout.cached_rows]


def _read_together(layout: PackedLayout, segments: Ints) -> Shared:
    """A group of segments that share their first range."""
    start, end = layout.reads_R2[layout.read_offsets_S1[segments[0]]]
    rows_flat, counts = layout.key_rows(segments)
    rows = np.split(rows_flat, np.cumsum(counts)[:-1])
    lengths = layout.ends_S[segments] - layout.starts_S[segments]
    shared = int(end - start)
    allowed = np.zeros((int(lengths.sum()), int((counts - shared).sum())), dtype=bool)
    at, column = 0, 0
    for segment, length, count in zip(segments, lengths.tolist(), (counts - shared).tolist(), strict=True):
        block = np.ones((length, count), dtype=bool)
        if layout.causal_S[segment]:
            block = np.tri(length, count, count - length, dtype=bool)
        allowed[at : at + length, column : column + count] = block
        at, column = at + length, column + count
    tokens = ranges_flat(layout.starts_S[segments], layout.ends_S[segments])
    all_shared = np.ones((len(tokens), shared), dtype=bool)
    return Shared(
        tokens, np.concatenate([rows[0][:shared], *(item[shared:] for item in rows)]), np.hstack([all_shared, allowed])
    )


def _shared_buckets(groups: list[Shared], device: torch.device) -> list[Bucket]:
    """Buckets of groups of segments."""
    buckets = []
    lengths, counts = (
        np.array([len(part) for part in parts])
        for parts in ([group.token_Q for group in groups], [group.row_R for group in groups])
    )
    for members in _buckets(lengths, counts):
        chosen = [groups[i] for i in members]
        most_Q, most_R = lengths[members].max(), counts[members].max()
        q_nQ = np.stack([np.pad(item.token_Q, (0, most_Q - len(item.token_Q)), mode="edge") for item in chosen])
        k_nR = np.stack([np.pad(item.row_R, (0, most_R - len(item.row_R)), mode="edge") for item in chosen])
        allowed = np.zeros((len(chosen), 1, most_Q, most_R), dtype=bool)
        for at, item in enumerate(chosen):
            allowed[at, 0, : len(item.token_Q), : len(item.row_R)] = item.allowed_QR
            allowed[at, 0, len(item.token_Q) :] = allowed[at, 0, :1]  # padding reads something, so that nothing is NaN
        real_nQ = np.arange(most_Q) < lengths[members][:, None]
        arrays = (q_nQ, k_nR, allowed, np.flatnonzero(real_nQ), q_nQ[real_nQ])
        q, k, mask, valid, token = (torch.from_numpy(item).to(device) for item in arrays)
        buckets.append(Bucket(q, k, mask, valid, token))
    return buckets


def _attend_bucket(q_TNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, bucket: Bucket, scale: float) -> Tensor:
    """(Q, N, H) outputs of the real queries of one bucket."""
    segments, queries = bucket.q_nQ.shape
    heads, kv_heads, width = q_TNH.shape[1], k_PKH.shape[1], q_TNH.shape[2]
    q = q_TNH[bucket.q_nQ].transpose(1, 2)
    k, v = k_PKH[bucket.k_nR].transpose(1, 2), v_PKH[bucket.k_nR].transpose(1, 2)
    mask = bucket.mask_n1QR
    if bucket.causal:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=heads != kv_heads)
        return out[0].transpose(0, 1)
    if groups := heads // kv_heads - 1:
        # Grouped query heads become further query rows of their key head: no key is copied.
        q = q.reshape(segments, kv_heads, (groups + 1) * queries, width)
        mask = mask.repeat(1, 1, groups + 1, 1) if mask is not None and mask.shape[2] > 1 else mask
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    out = out.reshape(segments, heads, queries, width).transpose(1, 2).reshape(-1, heads, width)
    return out if len(out) == len(bucket.valid_Q) else out.index_select(0, bucket.valid_Q)
