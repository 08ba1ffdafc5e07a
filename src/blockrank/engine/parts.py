"""Where a forward stands on each of its devices: what each has of a layout, and how the parts are merged.

On several devices each holds the whole model and a part of the documents; instruction and query run on all of them. In
every layer the query's attention to each part is merged by log-sum-exps, which is exact (method: as in the merge of
flash attention's splits).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blockrank.attention import AttentionBackend, MergingBackend
from blockrank.attention.indices import moved
from blockrank.engine.block import Decoder, Stream
from blockrank.engine.rows import RowBuffers
from blockrank.layout import Ints, PackedLayout
from blockrank.readout.exits import Exit
from blockrank.spec import RankSpec

Heads = tuple[Tensor, Tensor, Tensor]  # queries (T, N, H) of a part's tokens, keys and values (P, K, H) of its rows


@dataclass(slots=True)
class Part:
    """One device's part of a forward: its documents' layout, stream and plan.

    rows_T: its tokens' places in the whole stream. query_R, signal_G: places of query and signal tokens in its own.
    """

    decoder: Decoder
    device: torch.device
    layout: PackedLayout
    stream: Stream
    plan: object
    rows_T: Ints
    query_R: Tensor
    signal_G: Tensor

    def keep(self, attended_TNH: Tensor, rows: Ints) -> Tensor:
        """Go on with some rows alone; returns their attention output. Signal tokens that are not among them are not
        read any more."""
        rows_R, self.signal_G = moved(self.device, rows, np.searchsorted(rows, self.layout.signal_G))
        self.stream, self.rows_T = self.stream.select(rows_R), self.rows_T[rows]
        return attended_TNH.index_select(0, rows_R)


@dataclass(slots=True)
class State:
    """Where a forward stands: what is left of the layout, the parts, and who has left.

    owner_C: the part of each document of the layout. alive_C: its index among all. first_B: documents that each request
    began with.
    """

    layout: PackedLayout
    parts: list[Part]
    owner_C: Ints
    alive_C: Ints
    first_B: Ints
    exits: list[Exit]


def start(decoders: Sequence[Decoder], layout: PackedLayout, spec: RankSpec, backend: AttentionBackend) -> State:
    """A layout shared out over decoders, before the first layer."""
    sizes_C = (layout.ends_S - layout.starts_S)[layout.document_segment_C]
    owner_C = share_out(sizes_C, len(decoders))
    parts = []
    for index, decoder in enumerate(decoders):
        own, rows_T = own_layout(layout, owner_C, index, len(decoders), spec)
        query_R = np.flatnonzero(token_mask(own, "query"))
        device = decoder.device
        ids_T, positions_T, query, signal_G = moved(device, own.ids_T, own.positions_T, query_R, own.signal_G)
        stream = decoder.start(ids_T, positions_T)
        plan = backend.plan(own, device)
        parts.append(Part(decoder, device, own, stream, plan, rows_T, query, signal_G))
    first_B = np.bincount(layout.document_request_C, minlength=layout.requests)
    return State(layout, parts, owner_C, np.arange(len(owner_C)), first_B, [])


def share_out(sizes_C: Ints, parts: int) -> Ints:
    """(C,) the part that each document goes to: the longest first, each to the part that has least."""
    owner_C = np.zeros(len(sizes_C), dtype=np.int64)
    load = np.zeros(parts, dtype=np.int64)
    for index in np.argsort(-sizes_C, kind="stable") if parts > 1 else ():
        owner_C[index] = load.argmin()
        load[owner_C[index]] += sizes_C[index]
    return owner_C


def own_layout(
    layout: PackedLayout, owner_C: Ints, index: int, parts: int, spec: RankSpec
) -> tuple[PackedLayout, Ints]:
    """The layout of one part, and the places of its tokens in the whole stream.

    A query that reads its own alone does so in every part, and nothing is merged.
    """
    if parts == 1:
        return layout, np.arange(layout.tokens)
    assert not layout.cached_rows, "cached rows lie on one device"
    mine_C = owner_C == index
    mine_S = np.ones(len(layout.starts_S), dtype=bool)
    mine_S[layout.document_segment_C[~mine_C]] = False
    rows_T = np.flatnonzero(layout.tokens_of(mine_S))
    return layout.part(mine_C, whole=index == 0 or spec.pattern.query_reads == "own"), rows_T


def token_mask(layout: PackedLayout, kind: str) -> NDArray[np.bool_]:
    """(T,) which tokens belong to segments of a kind."""
    return layout.tokens_of(np.array(layout.kinds_S) == kind)


def heads_of(state: State, projected: Sequence[Tensor], index: int, rows: RowBuffers | None) -> list[Heads]:
    """What attention takes in a layer, of each part. rows: where keys and values of the new tokens are written, and
    those of the rows before them are read."""
    found = []
    for part, qkv in zip(state.parts, projected, strict=True):
        q_TNH, k_PKH, v_PKH = part.decoder.blocks[index].split(qkv)
        if rows is not None:
            k_PKH, v_PKH = rows.put(index, part.layout.cached_rows, k_PKH, v_PKH)
        found.append((q_TNH, k_PKH, v_PKH))
    return found


def attend(state: State, heads: Sequence[Heads], index: int, spec: RankSpec, backend: AttentionBackend) -> list[Tensor]:
    """(T, N, H) attention output of each part in a layer."""
    scale = state.parts[0].decoder.blocks[index].scale
    inputs = [(*own, part.plan, scale) for part, own in zip(state.parts, heads, strict=True)]
    if len(state.parts) == 1 or spec.pattern.query_reads == "own":
        return [backend.attend(*item) for item in inputs]
    assert isinstance(backend, MergingBackend), "asked for where documents are shared out"
    found = [backend.attend_part(*item) for item in inputs]
    _merge_queries(state.parts, found)
    return [out_TNH for out_TNH, _ in found]


def _merge_queries(parts: Sequence[Part], found: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Put what query tokens get from all parts into each part's output, in place."""
    outs = [out.index_select(0, part.query_R) for part, (out, _) in zip(parts, found, strict=True)]
    lses = [lse.index_select(0, part.query_R) for part, (_, lse) in zip(parts, found, strict=True)]
    for part, (out_TNH, _) in zip(parts, found, strict=True):
        weights_DQN = torch.stack([lse.to(part.device, non_blocking=True) for lse in lses]).softmax(0)
        outs_DQNH = torch.stack([out.to(part.device, non_blocking=True) for out in outs])
        merged_QNH = (weights_DQN[..., None] * outs_DQNH).sum(0)
        out_TNH.index_copy_(0, part.query_R, merged_QNH.to(out_TNH.dtype))


def gathered(state: State, captured: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Signal queries, and keys of all rows of the layout on the first device; rows that nothing reads are zero."""
    q_GNH, k_RKH = captured[0]
    rows = state.layout.rows
    if len(captured) == 1 and len(k_RKH) == rows:
        return q_GNH, k_RKH
    k_PKH = k_RKH.new_zeros(rows, *k_RKH.shape[1:])
    for part, (_, keys) in zip(state.parts, captured, strict=True):
        (rows_R,) = moved(q_GNH.device, part.rows_T)
        k_PKH.index_copy_(0, rows_R, keys.to(q_GNH.device, non_blocking=True))
    return q_GNH, k_PKH


def gathered_states(state: State, rows: Ints) -> Tensor:
    """(R, D) the last hidden states, after the final norm, of some stream positions (rising), on the first device; the
    parts' streams hold no others. What several parts have is the same in all."""
    first = state.parts[0].stream.x_TD
    out_RD = first.new_empty(len(rows), first.shape[1])
    for part in state.parts:
        if len(part.rows_T):
            (places_R,) = moved(first.device, np.searchsorted(rows, part.rows_T))
            out_RD.index_copy_(0, places_R, part.decoder.end(part.stream).to(first.device, non_blocking=True))
    return out_RD
