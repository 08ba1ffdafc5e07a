"""One forward of a packed layout through fused blocks, on one device or several, ending with what the read-out needs.

On several devices each holds the whole model and a part of the documents; instruction and query run on all of them. In
every layer the query's attention to each part is merged by log-sum-exps, which is exact (method: as in the merge of
flash attention's splits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blockrank.attention import AttentionBackend, MergingBackend
from blockrank.attention.indices import moved
from blockrank.engine.block import Decoder, Stream
from blockrank.engine.capture import Capture
from blockrank.engine.graphs import Graphs
from blockrank.layout import Ints, PackedLayout, plan_batches
from blockrank.readout.exits import Exit, leave
from blockrank.readout.signals import log_scores
from blockrank.spec import RankSpec
from blockrank.types import ModelError

# A large request whose documents stand alone runs in pieces of about so many tokens. On a processor always: its states
# would take thirteen kilobytes a token with the embedded model, its keys take one and a half. Elsewhere where something
# else may run in between.
_PIECE_TOKENS, _PIECE_TOKENS_ELSEWHERE = 4096, 32_768
_LEAST_SAVING = 1 / 16  # part of the stream that must be spared before its rows are copied together


@dataclass(slots=True)
class _Part:
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


@dataclass(slots=True)
class _State:
    """Where a forward stands: what is left of the layout, the parts, and who has left.

    owner_C: the part of each document of the layout. alive_C: its index among all. first_B: documents that each request
    began with.
    """

    layout: PackedLayout
    parts: list[_Part]
    owner_C: Ints
    alive_C: Ints
    first_B: Ints
    exits: list[Exit]


def forward(
    decoders: Sequence[Decoder],
    layout: PackedLayout,
    spec: RankSpec,
    backend: AttentionBackend,
    graphs: Graphs | None = None,
    between: Callable[[], None] | None = None,
) -> Capture:
    """Queries and keys at the scoring layer, as the library's own layers behind the seam give them.

    decoders: the model, once a device. graphs: captured forwards of the first, for layouts that are small enough. Below
    the scoring layer every token runs, but in the last layer below only what the scoring layer reads; of the scoring
    layer itself only keys, and the queries of the signal tokens. Documents leave where `spec.exits` says so.

    between: called between the parts of the work, by the thread that does it: before each layer on a processor, and
    after each piece of a large layout whose documents stand alone. It may run other forwards; what it raises ends this
    one.
    """
    _check_windows(decoders[0], layout, spec)
    if graphs is not None and len(decoders) == 1 and (found := graphs.forward(layout, spec, backend)):
        return Capture(*found, decoders[0].blocks[spec.readout.layer].scale, layout)
    on_processor = decoders[0].device.type == "cpu"
    piece_tokens = _PIECE_TOKENS if on_processor else _PIECE_TOKENS_ELSEWHERE
    may_cut = len(decoders) == 1 and (on_processor or between is not None)
    if may_cut and _goes_in_pieces(layout, spec, piece_tokens):
        return _in_pieces(decoders[0], layout, spec, backend, piece_tokens, between)
    return _whole(decoders, layout, spec, backend, between)


def _whole(
    decoders: Sequence[Decoder],
    layout: PackedLayout,
    spec: RankSpec,
    backend: AttentionBackend,
    between: Callable[[], None] | None,
) -> Capture:
    """A layout at once."""
    # Elsewhere layers are only launched here; and memory holds the states of one forward, not of two.
    between = between if decoders[0].device.type == "cpu" else None
    state = _start(decoders, layout, spec, backend)
    keep = spec.exits.shares
    for index in range(spec.readout.layer):
        if between is not None:
            between()
        projected = [part.decoder.blocks[index].project(part.stream) for part in state.parts]
        if index in keep:
            projected = _prune(state, projected, index, keep[index], spec, backend)
        attended = _attend(state, projected, index, spec, backend)
        del projected
        for part, out_TNH in zip(state.parts, attended, strict=True):
            rows_R = _feeding_rows(part.layout, spec) if index == spec.readout.layer - 1 else None
            if rows_R is not None:
                out_TNH = _keep_rows(part, out_TNH, rows_R)
            part.decoder.blocks[index].finish(part.stream, out_TNH)
    captured = [part.decoder.blocks[spec.readout.layer].read(part.stream, part.signal_G) for part in state.parts]
    q_GNH, k_PKH = _gathered(state, captured)
    scale = decoders[0].blocks[spec.readout.layer].scale
    return Capture(q_GNH, k_PKH, scale, state.layout, alive_C=state.alive_C, exits=tuple(state.exits))


def _check_windows(decoder: Decoder, layout: PackedLayout, spec: RankSpec) -> None:
    """Raise `ModelError` where a sliding window would bind: no backend honours one."""
    longest = int(layout.positions_T.max())
    for block in decoder.blocks[: spec.readout.layer + 1]:
        if block.window is not None and block.window <= longest:
            raise ModelError(
                f"{decoder.family} attends with sliding_window={block.window}, which binds on a prompt that reaches "
                f"position {longest}: attention under a packed layout cannot honour it."
            )


# Pieces


def _goes_in_pieces(layout: PackedLayout, spec: RankSpec, piece_tokens: int) -> bool:
    """Whether a layout runs piece by piece. Pieces repeat instruction and query, so a single request's alone do."""
    alone = spec.reuses_documents and not layout.cached_rows
    large = layout.tokens > 2 * piece_tokens and len(layout.document_segment_C) > 1
    return alone and large and layout.requests == 1


def _in_pieces(
    decoder: Decoder,
    layout: PackedLayout,
    spec: RankSpec,
    backend: AttentionBackend,
    piece_tokens: int,
    between: Callable[[], None] | None,
) -> Capture:
    """One piece after the other, each some of the documents with the instruction and the query."""
    owner_C = _alike((layout.ends_S - layout.starts_S)[layout.document_segment_C], piece_tokens)
    pieces = int(owner_C.max()) + 1
    block = decoder.blocks[spec.readout.layer]
    q_GNH, k_PKH = torch.empty(0), block.middle.weight_D.new_empty(layout.tokens, block.kv_heads, block.width)
    for index in range(pieces):
        own, rows_T = _own_layout(layout, owner_C, index, pieces, spec)
        capture = _whole([decoder], own, spec, backend, between)
        q_GNH = capture.q_GNH
        (rows_R,) = moved(decoder.device, rows_T)
        k_PKH.index_copy_(0, rows_R, capture.k_PKH)
        if between is not None:
            _wait_for(decoder.device)
            between()
    return Capture(q_GNH, k_PKH, block.scale, layout)


def _wait_for(device: torch.device) -> None:
    """Until all that was launched has run, so that what comes next comes between."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _alike(sizes_C: Ints, piece_tokens: int) -> Ints:
    """(C,) the piece that each document goes to: those of similar length together, so that little is padded."""
    order = np.argsort(sizes_C, kind="stable")
    piece_C = np.empty_like(sizes_C)
    for index, members in enumerate(plan_batches(sizes_C[order].tolist(), piece_tokens)):
        piece_C[order[members]] = index
    return piece_C


# Parts


def _start(decoders: Sequence[Decoder], layout: PackedLayout, spec: RankSpec, backend: AttentionBackend) -> _State:
    sizes_C = (layout.ends_S - layout.starts_S)[layout.document_segment_C]
    owner_C = share_out(sizes_C, len(decoders))
    parts = []
    for index, decoder in enumerate(decoders):
        own, rows_T = _own_layout(layout, owner_C, index, len(decoders), spec)
        query_R = np.flatnonzero(_token_mask(own, "query"))
        device = decoder.device
        ids_T, positions_T, query, signal_G = moved(device, own.ids_T, own.positions_T, query_R, own.signal_G)
        stream = decoder.start(ids_T, positions_T)
        plan = backend.plan(own, device)
        parts.append(_Part(decoder, device, own, stream, plan, rows_T, query, signal_G))
    first_B = np.bincount(layout.document_request_C, minlength=layout.requests)
    return _State(layout, parts, owner_C, np.arange(len(owner_C)), first_B, [])


def share_out(sizes_C: Ints, parts: int) -> Ints:
    """(C,) the part that each document goes to: the longest first, each to the part that has least."""
    owner_C = np.zeros(len(sizes_C), dtype=np.int64)
    load = np.zeros(parts, dtype=np.int64)
    for index in np.argsort(-sizes_C, kind="stable") if parts > 1 else ():
        owner_C[index] = load.argmin()
        load[owner_C[index]] += sizes_C[index]
    return owner_C


def _own_layout(
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


def _token_mask(layout: PackedLayout, kind: str) -> NDArray[np.bool_]:
    """(T,) which tokens belong to segments of a kind."""
    return layout.tokens_of(np.array(layout.kinds_S) == kind)


# Attention


def _attend(
    state: _State, projected: Sequence[Tensor], index: int, spec: RankSpec, backend: AttentionBackend
) -> list[Tensor]:
    """(T, N, H) attention output of each part."""
    inputs = []
    for part, qkv in zip(state.parts, projected, strict=True):
        block = part.decoder.blocks[index]
        inputs.append((*block.split(qkv), part.plan, block.scale))
    if len(state.parts) == 1 or spec.pattern.query_reads == "own":
        return [backend.attend(*item) for item in inputs]
    assert isinstance(backend, MergingBackend), "asked for where documents are shared out"
    found = [backend.attend_part(*item) for item in inputs]
    _merge_queries(state.parts, found)
    return [out_TNH for out_TNH, _ in found]


def _merge_queries(parts: Sequence[_Part], found: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Put what query tokens get from all parts into each part's output, in place."""
    outs = [out.index_select(0, part.query_R) for part, (out, _) in zip(parts, found, strict=True)]
    lses = [lse.index_select(0, part.query_R) for part, (_, lse) in zip(parts, found, strict=True)]
    for part, (out_TNH, _) in zip(parts, found, strict=True):
        weights_DQN = torch.stack([lse.to(part.device, non_blocking=True) for lse in lses]).softmax(0)
        outs_DQNH = torch.stack([out.to(part.device, non_blocking=True) for out in outs])
        merged_QNH = (weights_DQN[..., None] * outs_DQNH).sum(0)
        out_TNH.index_copy_(0, part.query_R, merged_QNH.to(out_TNH.dtype))


# The end, and exits


def _feeding_rows(layout: PackedLayout, spec: RankSpec) -> Ints | None:
    """Stream positions that the scoring layer reads; None for all of them, or where leaving the rest out saves less
    than copying costs."""
    if spec.readout.softmax_over == "all" or layout.cached_rows:
        return None
    feeds_T = _token_mask(layout, "document")
    feeds_T[layout.signal_G] = True
    rows_R = np.flatnonzero(feeds_T)
    return rows_R if len(rows_R) < (1 - _LEAST_SAVING) * layout.tokens else None


def _keep_rows(part: _Part, attended_TNH: Tensor, rows: Ints) -> Tensor:
    """Go on with some rows of a part alone; returns their attention output."""
    rows_R, part.signal_G = moved(part.device, rows, np.searchsorted(rows, part.layout.signal_G))
    part.stream, part.rows_T = part.stream.select(rows_R), part.rows_T[rows]
    return attended_TNH.index_select(0, rows_R)


def _gathered(state: _State, captured: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Signal queries, and keys of all rows of the layout on the first device; rows that nothing reads are zero."""
    q_GNH, k_RKH = captured[0]
    tokens = state.layout.tokens
    if len(captured) == 1 and len(k_RKH) == tokens:
        return q_GNH, k_RKH
    k_PKH = k_RKH.new_zeros(tokens, *k_RKH.shape[1:])
    for part, (_, keys) in zip(state.parts, captured, strict=True):
        (rows_R,) = moved(q_GNH.device, part.rows_T)
        k_PKH.index_copy_(0, rows_R, keys.to(q_GNH.device, non_blocking=True))
    return q_GNH, k_PKH


def _prune(
    state: _State, projected: list[Tensor], index: int, share: float, spec: RankSpec, backend: AttentionBackend
) -> list[Tensor]:
    """Read out at this layer and let all but the best share of each request's documents go; returns what stays."""
    q_GNH, k_PKH = _gathered(
        state, [_seen(part, qkv, index, spec) for part, qkv in zip(state.parts, projected, strict=True)]
    )
    scale = state.parts[0].decoder.blocks[index if spec.exits.prune_by == "layer" else spec.readout.layer].scale
    logs_C = log_scores(q_GNH, k_PKH, state.layout, spec, scale).cpu().numpy()
    left = leave(logs_C, state.layout, state.alive_C, state.first_B, index, share)
    if left is None:
        return projected
    state.exits.append(left.exit)
    state.owner_C = state.owner_C[np.isin(state.alive_C, left.alive_C)]
    state.layout, state.alive_C = left.layout, left.alive_C
    place_T = np.full(int(left.rows_R.max()) + 1, -1)
    place_T[left.rows_R] = np.arange(len(left.rows_R))
    return [
        _without(state, part, qkv, i, place_T, spec, backend)
        for i, (part, qkv) in enumerate(zip(state.parts, projected, strict=True))
    ]


def _seen(part: _Part, qkv: Tensor, index: int, spec: RankSpec) -> tuple[Tensor, Tensor]:
    """Signal queries and keys that a read-out at a layer below the scoring layer reads."""
    if spec.exits.prune_by == "lens":
        return part.decoder.blocks[spec.readout.layer].look(part.stream, part.signal_G)
    q_TNH, k_TKH, _ = part.decoder.blocks[index].split(qkv)
    return q_TNH.index_select(0, part.signal_G), k_TKH


def _without(
    state: _State, part: _Part, qkv: Tensor, index: int, place_T: Ints, spec: RankSpec, backend: AttentionBackend
) -> Tensor:
    """One part without the documents that left. place_T: new places in the whole stream, -1 for rows that left."""
    new_T = np.where(part.rows_T < len(place_T), place_T[np.minimum(part.rows_T, len(place_T) - 1)], -1)
    rows = np.flatnonzero(new_T >= 0)
    part.layout, part.rows_T = _own_layout(state.layout, state.owner_C, index, len(state.parts), spec)
    assert (part.rows_T == new_T[rows]).all(), "the part's rows are those of its layout"
    query_R = np.flatnonzero(_token_mask(part.layout, "query"))
    rows_R, part.query_R, part.signal_G = moved(part.device, rows, query_R, part.layout.signal_G)
    part.stream, part.plan = part.stream.select(rows_R), backend.plan(part.layout, part.device)
    return qkv.index_select(0, rows_R)
