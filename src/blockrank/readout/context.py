"""How much attention tokens of documents receive from query segments, over several layers and heads.

Here the softmax is the model's own: over all rows that a token reads. What a row receives of a query segment is the
mean over its tokens, summed over layers and heads (In-Context Re-ranking, arXiv 2410.02642). All in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blockrank.attention.indices import moved
from blockrank.layout import PackedLayout

HeadWeights = Mapping[int, float]  # head -> its weight
_CHUNK_WEIGHTS, _NEAR_WEIGHTS = 1 << 25, 1 << 22  # weights of attention held at once, and on a processor
_OUTLIER = 2  # standard deviations below the mean of its document


@dataclass(frozen=True, slots=True)
class _Reading:
    """What is read of one request, on the device.

    start, first, end: its rows; query segments begin at `first`. signal_G: places among the captured queries.
    hidden_GO: which of the rows from `first` on a token does not read. mean_QG: takes the mean over the tokens of each
    of its Q query segments.
    """

    start: int
    first: int
    end: int
    signal_G: Tensor
    hidden_GO: Tensor
    mean_QG: Tensor


class ContextAttention:
    """Sums the attention that rows before the query segments receive from them, layer by layer.

    For layouts whose requests have the same number Q of query segments each, which read all before them.
    sums_QT: what each token received of the first, second, ... query segment of its request; the query segments' own
    tokens have 0. skipped: how many first tokens of a query segment do not count.
    """

    def __init__(self, layout: PackedLayout, device: torch.device, skipped: int = 0) -> None:
        assert not layout.cached_rows, "all rows are of this forward"
        self._readings = [_reading(layout, request, skipped, device) for request in range(layout.requests)]
        self.sums_QT = torch.zeros(len(self._readings[0].mean_QG), layout.tokens, device=device)

    def add(self, q_GNH: Tensor, k_PKH: Tensor, scale: float, heads: HeadWeights | None = None) -> None:
        """Add a layer: queries of the layout's signal tokens, keys of all rows, and the model's factor on logits.

        heads: which heads are added, with their weights; None adds all as they are.
        """
        count = q_GNH.shape[1]
        weights = heads if heads is not None else dict.fromkeys(range(count), 1.0)
        numbers = torch.tensor(list(weights), device=q_GNH.device)
        weight_N = torch.tensor(list(weights.values()), device=q_GNH.device, dtype=torch.float32)
        keys = numbers // (count // k_PKH.shape[1])
        for reading in self._readings:
            q_GnH = q_GNH.index_select(0, reading.signal_G)
            k_RKH = k_PKH[reading.start : reading.end]
            rows = slice(reading.start, reading.first)
            for tokens, some in _chunks(len(q_GnH), len(weights), len(k_RKH), q_GNH.device):
                q_nGH = q_GnH[tokens].index_select(1, numbers[some]).transpose(0, 1).float()
                k_nRH = k_RKH.index_select(1, keys[some]).transpose(0, 1).float()
                z_nGR = torch.matmul(q_nGH, k_nRH.transpose(1, 2)).mul_(scale)
                own_nGO = z_nGR[:, :, reading.first - reading.start :]
                own_nGO.masked_fill_(reading.hidden_GO[tokens], -math.inf)
                received_nGC = z_nGR.softmax(-1)[:, :, : reading.first - reading.start]
                received_GC = torch.einsum("n,ngc->gc", weight_N[some], received_nGC)
                self.sums_QT[:, rows] += reading.mean_QG[:, tokens] @ received_GC


def document_sums(values_T: Tensor, layout: PackedLayout, skipped: int = 0, *, without_outliers: bool) -> Tensor:
    """(C,) sums of values over the tokens of each document.

    skipped: how many first tokens of a document segment do not count. without_outliers: leave out tokens whose value
    does not exceed the mean of their document less two standard deviations (with n - 1 in the denominator); none where
    the deviation is zero, or of one token, where it has no meaning.
    """
    segments = layout.document_segment_C
    lengths = layout.ends_S[segments] - layout.starts_S[segments] - skipped
    at = np.arange(lengths.max())
    real = at < lengths[:, None]
    rows = np.where(real, layout.starts_S[segments][:, None] + skipped + at, 0)
    rows_CL, real_CL, lengths_C = moved(values_T.device, rows, real, lengths)
    real_CL = real_CL.bool()
    values_CL = values_T[rows_CL].masked_fill(~real_CL, 0.0)
    if not without_outliers:
        return values_CL.sum(1)
    mean_C1 = values_CL.sum(1, keepdim=True) / lengths_C[:, None]
    squares_C1 = (values_CL - mean_C1).masked_fill(~real_CL, 0.0).square().sum(1, keepdim=True)
    deviation_C1 = (squares_C1 / (lengths_C[:, None] - 1).clamp(min=1)).sqrt()
    kept_CL = (values_CL > mean_C1 - _OUTLIER * deviation_C1) | (deviation_C1 == 0)
    return values_CL.masked_fill(~kept_CL, 0.0).sum(1)


def _reading(layout: PackedLayout, request: int, skipped: int, device: torch.device) -> _Reading:
    own_S = np.flatnonzero(layout.request_S == request)
    queries_Q = own_S[layout.is_query_S[own_S]]
    first, end = int(layout.starts_S[queries_Q[0]]), int(layout.ends_S[own_S[-1]])
    signals = np.flatnonzero(layout.signal_request_G == request)
    place_G = np.searchsorted(layout.ends_S, layout.signal_G[signals], side="right")
    counts = layout.signal_G[signals] >= layout.starts_S[place_G] + skipped
    signals, place_G = signals[counts], place_G[counts]
    row_G, row_O = layout.signal_G[signals][:, None], np.arange(first, end)
    is_own_GO = (row_O >= layout.starts_S[place_G][:, None]) & (row_O < layout.ends_S[place_G][:, None])
    hidden_GO = ~is_own_GO | (layout.causal_S[place_G][:, None] & (row_O > row_G))
    of_QG = place_G == queries_Q[:, None]
    signal_G, hidden, of = moved(device, signals, hidden_GO, of_QG)
    mean_QG = of.float() / of.sum(1, keepdim=True)
    return _Reading(int(layout.starts_S[own_S[0]]), first, end, signal_G, hidden.bool(), mean_QG)


def _chunks(tokens: int, heads: int, rows: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Tokens and heads whose attention is computed at once."""
    most = _NEAR_WEIGHTS if device.type == "cpu" else _CHUNK_WEIGHTS
    some_tokens = min(max(most // rows, 1), tokens)
    some_heads = max(most // (rows * some_tokens), 1)
    for token in range(0, tokens, some_tokens):
        for head in range(0, heads, some_heads):
            yield slice(token, token + some_tokens), slice(head, head + some_heads)
