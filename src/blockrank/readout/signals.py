"""From captured queries and keys to one score per document: the read-out, in float32, outside every backend.

Method, section 2: `LSE[h, t, doc]` is the log-sum-exp of the scaled logits of signal token t in head h over the tokens
of one document; the softmax of it over documents is the share of attention the document gets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from blockrank.attention import has_kernels
from blockrank.layout import Ints, PackedLayout
from blockrank.readout.plan import ReadoutPlan, plan_readout
from blockrank.spec import RankSpec

_CHUNK_ROWS = 1 << 16  # padded key rows held at once while reading out; bounds memory, not results
_NEAR_ROWS = 1 << 13  # on a processor: more would take more memory than the forward of a large request


def log_scores(q_GNH: Tensor, k_PKH: Tensor, layout: PackedLayout, spec: RankSpec, scale: float) -> Tensor:
    """Log of every document's score, (C,), differentiable, float32.

    q_GNH: signal queries at the scoring layer (layout.signal_G); k_PKH: keys of all rows there; scale: the model's
    own factor on logits, usually 1/sqrt(head_dim). Scores of a request sum to one when the softmax is over documents.
    """
    plan = plan_readout(q_GNH, k_PKH, layout, spec, scale)
    lse_CNG = document_lse(plan)
    if spec.readout.signal_pooling == "geometric":
        real_C1G, normed_CNG = _real_signals(plan), _length_normed(lse_CNG, plan)
        mean_C = normed_CNG.masked_fill(~real_C1G, 0.0).sum((1, 2)) / (real_C1G.sum((1, 2)) * normed_CNG.shape[1])
        return _by_request(mean_C, plan).log_softmax(1).flatten().index_select(0, plan.slot_C)
    shares_CNG = _log_shares(lse_CNG, plan)
    return shares_CNG.flatten(1).logsumexp(1) - (_real_signals(plan).sum((1, 2)) * shares_CNG.shape[1]).log()


def head_shares(q_GNH: Tensor, k_PKH: Tensor, layout: PackedLayout, spec: RankSpec, scale: float) -> Tensor:
    """(C, N) score of every document by each head alone: the mean of its shares over the signal tokens.

    Arguments as in `log_scores`; signal tokens are pooled arithmetically, and heads are not joined.
    """
    plan = plan_readout(q_GNH, k_PKH, layout, spec, scale)
    shares_CNG = _log_shares(document_lse(plan), plan).exp()
    return shares_CNG.sum(2) / _real_signals(plan).sum(2)


def token_shares(q_GNH: Tensor, k_PKH: Tensor, layout: PackedLayout, spec: RankSpec, scale: float) -> Tensor:
    """(R,) part of its document's attention that each row of the documents received, document after document.

    Arguments as in `log_scores`. The parts of a document sum to one. A pair of head and signal token counts by what it
    gave to the document's score; all pairs count alike where they are pooled geometrically.
    """
    plan = plan_readout(q_GNH, k_PKH, layout, spec, scale)
    lse_CNG = document_lse(plan)
    if spec.readout.signal_pooling == "geometric":
        weight_CNG = _real_signals(plan).expand_as(lse_CNG).float()
    else:
        shares_CNG = _log_shares(lse_CNG, plan)
        weight_CNG = (shares_CNG - shares_CNG.flatten(1).amax(1)[:, None, None]).exp()
    weight_CNG = weight_CNG / weight_CNG.sum((1, 2), keepdim=True)
    parts = []
    for chunk, z_CNGL in _segment_logits(plan, plan.segments_C, plan.requests_C):
        shares_CL = torch.einsum("cng,cngl->cl", weight_CNG[chunk], (z_CNGL - lse_CNG[chunk][..., None]).exp())
        real_CL = torch.arange(z_CNGL.shape[-1], device=z_CNGL.device) < plan.length_C[chunk][:, None]
        parts.append(shares_CL[real_CL])
    return torch.cat(parts)


def document_lse(plan: ReadoutPlan) -> Tensor:
    """(C, N, G) log-sum-exp over the rows of each document."""
    if has_kernels(plan.q_GNH) and plan.spec.readout.heads is None and not torch.is_grad_enabled():
        from blockrank.readout import signals_triton

        return signals_triton.document_lse(plan)
    return segment_lse(plan, plan.segments_C, plan.requests_C)


def segment_lse(plan: ReadoutPlan, segments_C: Ints, requests_C: Ints) -> Tensor:
    """(C, N, G) log-sum-exp of scaled logits of each request's signal tokens over the rows of given segments."""
    return torch.cat([z_CNGL.logsumexp(-1) for _, z_CNGL in _segment_logits(plan, segments_C, requests_C)])


def _segment_logits(plan: ReadoutPlan, segments_C: Ints, requests_C: Ints) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of segments, each with its scaled logits (C, N, G, L), padded to its longest with -inf.

    A signal token reads rows of its own segment up to itself where the query segment is causal.
    """
    layout, device = plan.layout, plan.q_GNH.device
    most = min(_CHUNK_ROWS, _NEAR_ROWS) if device.type == "cpu" else _CHUNK_ROWS
    for chunk in _chunks(layout.ends_S[segments_C] - layout.starts_S[segments_C], most):
        segments, signal_CG = segments_C[chunk], plan.signal_BG[torch.from_numpy(requests_C[chunk]).to(device)]
        rows_CL, real_CL = _padded_rows(layout, segments)
        k_CLKH = _gather(plan.k_PKH, rows_CL.to(plan.k_PKH.device)).float()
        allowed_CGL = real_CL[:, None, :].to(device)
        if causal := _own_segments(layout, segments):
            position_CG1 = torch.from_numpy(layout.signal_G).to(device)[signal_CG][..., None]
            own_CL = rows_CL.to(device)[:, None, :] - layout.cached_rows
            is_own = torch.tensor(causal, device=device)[:, None, None]
            allowed_CGL = allowed_CGL & (~is_own | (own_CL <= position_CG1))
        yield chunk, _logits(_gather(plan.q_GNH, signal_CG).float(), k_CLKH, allowed_CGL, plan)


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    """`rows[index]` by `index_select`, whose backward adds in place instead of sorting the indices."""
    return rows.index_select(0, index.flatten()).reshape(*index.shape, *rows.shape[1:])


def _chunks(lengths: Ints, most: int) -> list[slice]:
    """Slices over consecutive segments whose padded size stays under a limit."""
    slices, start, longest = [], 0, 0
    for i, length in enumerate(lengths):
        longest = max(longest, int(length))
        if i > start and (i - start + 1) * longest > most:
            slices.append(slice(start, i))
            start, longest = i, int(length)
    return [*slices, slice(start, len(lengths))]


def _padded_rows(layout: PackedLayout, segments: Ints) -> tuple[Tensor, Tensor]:
    """(C, L) rows of segments, padded with the first, and which of them are real."""
    starts, lengths = layout.starts_S[segments], (layout.ends_S - layout.starts_S)[segments]
    at = np.arange(lengths.max())
    real = at < lengths[:, None]
    rows = np.where(real, starts[:, None] + at, starts[:, None]) + layout.cached_rows
    return torch.from_numpy(rows), torch.from_numpy(real)


def _own_segments(layout: PackedLayout, segments: Ints) -> list[bool]:
    """Which segments are causal query segments; [] when none is."""
    own = [bool(layout.is_query_S[i] and layout.causal_S[i]) for i in segments]
    return own if any(own) else []


def _logits(q_CGNH: Tensor, k_CLKH: Tensor, allowed_CGL: Tensor, plan: ReadoutPlan) -> Tensor:
    """(C, N, G, L) masked logits; grouped heads share their key head, joined heads act as one of width N*H."""
    read = plan.spec.readout
    segments, signals, heads, width = q_CGNH.shape
    length, kv_heads = k_CLKH.shape[1:3]
    if read.joined_heads:
        k_CLKH = k_CLKH.repeat_interleave(heads // kv_heads, dim=2)
        if read.heads is not None:
            q_CGNH, k_CLKH = q_CGNH[:, :, list(read.heads)], k_CLKH[:, :, list(read.heads)]
            heads = len(read.heads)
        q_CKRH = q_CGNH.reshape(segments, signals, 1, heads * width).transpose(1, 2)
        k_CKLH = k_CLKH.reshape(segments, length, 1, heads * width).transpose(1, 2)
        heads = kv_heads = 1
    else:
        q_CKRH = q_CGNH.reshape(segments, signals, kv_heads, heads // kv_heads, width).permute(0, 2, 3, 1, 4)
        q_CKRH = q_CKRH.reshape(segments, kv_heads, heads // kv_heads * signals, width)
        k_CKLH = k_CLKH.transpose(1, 2)
    if read.cosine != "none":
        k_CKLH = F.normalize(k_CKLH, dim=-1)
        q_CKRH = F.normalize(q_CKRH, dim=-1) if read.cosine == "both" else q_CKRH / math.sqrt(q_CKRH.shape[-1])
    z_CNGL = (q_CKRH @ k_CKLH.transpose(-1, -2) * plan.scale).reshape(segments, heads, signals, length)
    z_CNGL = z_CNGL.masked_fill(~allowed_CGL[:, None], -math.inf)
    return z_CNGL[:, list(read.heads)] if read.heads is not None and not read.joined_heads else z_CNGL


def _by_request(values_C: Tensor, plan: ReadoutPlan) -> Tensor:
    """(B, M, ...) table of one value per document (C, ...), -inf where a request has fewer than M."""
    requests = len(plan.signal_mask_BG)
    table = values_C.new_full((requests * plan.most_documents, *values_C.shape[1:]), -math.inf)
    return table.index_copy(0, plan.slot_C, values_C).reshape(requests, -1, *values_C.shape[1:])


def _rest(plan: ReadoutPlan) -> Tensor:
    """(B, N, G) log-sum-exp over the rows a signal token reads that belong to no document."""
    layout = plan.layout
    filled = layout.ends_S > layout.starts_S
    segments = np.flatnonzero(~layout.is_document_S & filled)
    requests = layout.request_S[segments]
    lse = segment_lse(plan, segments, requests)
    owners = torch.from_numpy(requests).to(lse.device)
    table = lse.new_full((layout.requests, *lse.shape[1:]), -math.inf)
    for request in range(layout.requests):
        table[request] = lse[owners == request].logsumexp(0)
    return table


def _real_signals(plan: ReadoutPlan) -> Tensor:
    """(C, 1, G) which places of the padded signal tokens are real, for each document's request."""
    return plan.signal_mask_BG.index_select(0, plan.owner_C)[:, None, :]


def _length_normed(lse_CNG: Tensor, plan: ReadoutPlan) -> Tensor:
    """Log-sum-exps with a document's attention divided by a power of its length."""
    norm = plan.spec.readout.length_norm
    return lse_CNG - norm * plan.length_C.log()[:, None, None] if norm else lse_CNG


def _log_shares(lse_CNG: Tensor, plan: ReadoutPlan) -> Tensor:
    """(C, N, G) log of the share of each pair's attention that a document gets, -inf for signal tokens that are
    padding."""
    normed_CNG = _length_normed(lse_CNG, plan)
    total_BNG = _by_request(normed_CNG, plan).logsumexp(1)
    if plan.spec.readout.softmax_over == "all":
        total_BNG = torch.logaddexp(total_BNG, _rest(plan))
    # Document by document, not in the padded table: a log-sum-exp over nothing but -inf has no gradient.
    return (normed_CNG - total_BNG.index_select(0, plan.owner_C)).masked_fill(~_real_signals(plan), -math.inf)
