"""One forward of a packed layout through fused blocks, on one device or several, ending with what is wanted of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from blockrank.attention import AttentionBackend
from blockrank.attention.indices import moved
from blockrank.engine.block import Decoder
from blockrank.engine.capture import Capture, LayerCapture, Wanted
from blockrank.engine.graphs import Graphs
from blockrank.engine.parts import (
    DevicePart,
    ForwardState,
    Heads,
    attend,
    gathered,
    gathered_states,
    heads_of,
    own_layout,
    start,
)
from blockrank.engine.rows import RowBuffers
from blockrank.layout import Ints, PackedLayout, forward_tokens, plan_alike
from blockrank.readout.exits import leave
from blockrank.readout.signals import log_scores
from blockrank.spec import RankSpec
from blockrank.types import InputError, ModelError

_LEAST_SAVING = 1 / 16  # part of the stream that must be spared before its rows are copied together


def forward(
    decoders: Sequence[Decoder],
    layout: PackedLayout,
    wanted: Wanted,
    spec: RankSpec,
    backend: AttentionBackend,
    graphs: Graphs | None = None,
    rows: RowBuffers | None = None,
    between: Callable[[], None] | None = None,
) -> Capture:
    """What is wanted of a layout, as the library's own layers behind the seam give it.

    decoders: the model, once per device. graphs: captured forwards of the first, for one layer of layouts that are
    small enough. rows: buffers that hold keys and values of the layout's cached rows and get those of its tokens, for
    one decoder and a forward through every layer.

    Below the last wanted layer every token runs, but in the layer below it only what that layer reads; of it only keys,
    and the queries of the signal tokens. Above the last layer's attention only the positions run whose logits or hidden
    states are wanted. Documents leave where `spec.exits` says so; raises `InputError` where more than the scoring layer
    is wanted then.

    between: called between the parts of the work, by the thread that does it: before each layer on a processor, and
    after each piece of a large layout whose documents stand alone. It may run other forwards; what it raises ends this
    one.
    """
    assert rows is None or (len(decoders) == 1 and wanted.whole), "every layer of one device's rows is written"
    _check_windows(decoders[0], layout, wanted)
    _check_exits(wanted, spec)
    if graphs is not None and len(decoders) == 1 and wanted.one_layer:
        (layer,) = wanted.layers
        if (found := graphs.forward(layout, layer, spec, backend)) is not None:
            return Capture((LayerCapture(layer, *found, decoders[0].blocks[layer].scale),), layout)
    if len(decoders) == 1 and _goes_in_pieces(decoders[0], layout, wanted, spec, between):
        return _in_pieces(decoders[0], layout, wanted, spec, backend, between)
    return _at_once(decoders, layout, wanted, spec, backend, rows, between)


def _at_once(
    decoders: Sequence[Decoder],
    layout: PackedLayout,
    wanted: Wanted,
    spec: RankSpec,
    backend: AttentionBackend,
    rows: RowBuffers | None = None,
    between: Callable[[], None] | None = None,
) -> Capture:
    """A layout as a whole."""
    # Elsewhere layers are only launched here; and memory holds the states of one forward, not of two.
    between = between if decoders[0].device.type == "cpu" else None
    state = start(decoders, layout, spec, backend)
    keep = spec.exits.shares
    kept: list[LayerCapture] = []
    last = len(decoders[0].blocks) if wanted.whole else wanted.layers[-1]
    for index in range(last):
        if between is not None:
            between()
        projected = [part.decoder.blocks[index].project(part.stream) for part in state.parts]
        if index in keep:
            projected = _prune(state, projected, index, keep[index], spec, backend)
        heads = heads_of(state, projected, index, rows)
        if index in wanted.layers:
            # Kept keys are copies: they are a view of all that was projected, or of rows that are written again.
            _hand_out(state, _signals(state, heads), index, wanted, kept, copy=wanted.observer is None)
        attended = attend(state, heads, index, spec, backend)
        del projected, heads
        for part, out_TNH in zip(state.parts, attended, strict=True):
            rows_R = _rows_read_above(part, wanted) if index == last - 1 else None
            if rows_R is not None:
                out_TNH = part.keep(out_TNH, rows_R)
            if len(out_TNH):
                part.decoder.blocks[index].finish(part.stream, out_TNH)
    if not wanted.whole:
        ends = [part.decoder.blocks[last].read(part.stream, part.signal_G) for part in state.parts]
        _hand_out(state, ends, last, wanted, kept)
    logits_RV, hidden_RD = _ends(state, wanted) if wanted.whole else (None, None)
    return Capture(tuple(kept), state.layout, logits_RV, hidden_RD, alive_C=state.alive_C, exits=tuple(state.exits))


def _check_windows(decoder: Decoder, layout: PackedLayout, wanted: Wanted) -> None:
    """Raise `ModelError` where a sliding window would bind: no backend has one."""
    longest = int(layout.positions_T.max())
    for block in decoder.blocks if wanted.whole else decoder.blocks[: wanted.layers[-1] + 1]:
        if block.window is not None and block.window <= longest:
            raise ModelError(
                f"{decoder.family} attends with sliding_window={block.window}, which binds on a prompt that reaches "
                f"position {longest}: attention under a packed layout cannot honour it."
            )


def _check_exits(wanted: Wanted, spec: RankSpec) -> None:
    """Raise `InputError` where documents leave on the way to something that is wanted of all of them."""
    if spec.leaves_early and not (wanted.one_layer and wanted.layers == (spec.readout.layer,)):
        raise InputError(
            "with RankSpec.prune documents leave below the scoring layer: no other layer, logits or hidden states can "
            "be had of them."
        )


# Pieces


def _goes_in_pieces(
    decoder: Decoder, layout: PackedLayout, wanted: Wanted, spec: RankSpec, between: Callable[[], None] | None
) -> bool:
    """Whether a layout runs piece by piece: on a processor, and elsewhere where something else may run in between.
    Pieces repeat instruction and query, so a single request's alone do."""
    kind = decoder.device.type
    alone = spec.reuses_documents and not layout.cached_rows and not wanted.whole and wanted.observer is None
    large = layout.tokens > 2 * forward_tokens(kind) and len(layout.document_segment_C) > 1
    return alone and large and layout.requests == 1 and (kind == "cpu" or between is not None)


def _in_pieces(
    decoder: Decoder,
    layout: PackedLayout,
    wanted: Wanted,
    spec: RankSpec,
    backend: AttentionBackend,
    between: Callable[[], None] | None,
) -> Capture:
    """One piece after the other, each some of the documents with the instruction and the query."""
    sizes_C = (layout.ends_S - layout.starts_S)[layout.document_segment_C]
    owner_C, pieces = np.empty_like(sizes_C), plan_alike(sizes_C, forward_tokens(decoder.device.type))
    for index, members in enumerate(pieces):
        owner_C[members] = index
    blocks = [decoder.blocks[layer] for layer in wanted.layers]
    keys = [block.middle.weight_D.new_empty(layout.tokens, block.kv_heads, block.width) for block in blocks]
    layers: tuple[LayerCapture, ...] = ()
    for index in range(len(pieces)):
        own, rows_T = own_layout(layout, owner_C, index, len(pieces), spec)
        layers = _at_once([decoder], own, wanted, spec, backend, between=between).layers
        (rows_R,) = moved(decoder.device, rows_T)
        for k_PKH, layer in zip(keys, layers, strict=True):
            k_PKH.index_copy_(0, rows_R, layer.k_PKH)
        if between is not None:
            _wait_for(decoder.device)
            between()
    whole = tuple(replace(layer, k_PKH=k_PKH) for layer, k_PKH in zip(layers, keys, strict=True))
    return Capture(whole, layout)


def _wait_for(device: torch.device) -> None:
    """Wait until all launched work has run, so that what runs next runs between the parts."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


# What is handed out


def _signals(state: ForwardState, heads: Sequence[Heads]) -> list[tuple[Tensor, Tensor]]:
    """Queries of the signal tokens and keys of all rows, of each part."""
    return [(q.index_select(0, part.signal_G), k) for part, (q, k, _) in zip(state.parts, heads, strict=True)]


def _hand_out(
    state: ForwardState,
    seen: Sequence[tuple[Tensor, Tensor]],
    index: int,
    wanted: Wanted,
    kept: list[LayerCapture],
    *,
    copy: bool = False,
) -> None:
    """Show a layer to the observer, or keep it. seen: signal queries and keys of each part."""
    q_GNH, k_PKH = gathered(state, seen)
    layer = LayerCapture(index, q_GNH, k_PKH.clone() if copy else k_PKH, state.parts[0].decoder.blocks[index].scale)
    if wanted.observer is not None:
        wanted.observer(layer)
    else:
        kept.append(layer)


def _rows_read_above(part: DevicePart, wanted: Wanted) -> Ints | None:
    """Tokens of a part that are read above the last layer that runs whole; None for all of them."""
    if wanted.whole:
        return np.flatnonzero(np.isin(part.rows_T, wanted.rows_R))
    return _feeding_rows(part.layout, wanted)


def _feeding_rows(layout: PackedLayout, wanted: Wanted) -> Ints | None:
    """Stream positions that the last wanted layer reads; None for all of them, or where leaving the rest out saves less
    than copying costs."""
    if wanted.keys == "all" or layout.cached_rows:
        return None
    feeds_T = layout.tokens_of(layout.is_document_S)
    feeds_T[layout.signal_G] = True
    rows_R = np.flatnonzero(feeds_T)
    return rows_R if len(rows_R) < (1 - _LEAST_SAVING) * layout.tokens else None


def _ends(state: ForwardState, wanted: Wanted) -> tuple[Tensor | None, Tensor | None]:
    """Logits and last hidden states, each where they are wanted, in the order of their positions there."""
    rows, decoder = wanted.rows_R, state.parts[0].decoder
    states_RD = gathered_states(state, rows)

    def at(positions_R: Ints) -> Tensor:
        (places_R,) = moved(states_RD.device, np.searchsorted(rows, positions_R))
        return states_RD.index_select(0, places_R)

    logits_RV = None
    if wanted.logits_R is not None:
        assert decoder.head is not None, "asked for where there is one"
        logits_RV = decoder.head(at(wanted.logits_R))
    return logits_RV, at(wanted.hidden_R) if wanted.hidden_R is not None else None


# Exits


def _prune(
    state: ForwardState, projected: list[Tensor], index: int, share: float, spec: RankSpec, backend: AttentionBackend
) -> list[Tensor]:
    """Read out at this layer and let all but the best share of each request's documents go; returns what stays."""
    q_GNH, k_PKH = gathered(
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


def _seen(part: DevicePart, qkv: Tensor, index: int, spec: RankSpec) -> tuple[Tensor, Tensor]:
    """Signal queries and keys that a read-out at a layer below the scoring layer reads."""
    if spec.exits.prune_by == "lens":
        return part.decoder.blocks[spec.readout.layer].look(part.stream, part.signal_G)
    q_TNH, k_TKH, _ = part.decoder.blocks[index].split(qkv)
    return q_TNH.index_select(0, part.signal_G), k_TKH


def _without(
    state: ForwardState,
    part: DevicePart,
    qkv: Tensor,
    index: int,
    place_T: Ints,
    spec: RankSpec,
    backend: AttentionBackend,
) -> Tensor:
    """One part without the documents that left. place_T: new places in the whole stream, -1 for rows that left."""
    new_T = np.where(part.rows_T < len(place_T), place_T[np.minimum(part.rows_T, len(place_T) - 1)], -1)
    rows = np.flatnonzero(new_T >= 0)
    part.layout, part.rows_T = own_layout(state.layout, state.owner_C, index, len(state.parts), spec)
    assert (part.rows_T == new_T[rows]).all(), "the part's rows are those of its layout"
    query_R = np.flatnonzero(part.layout.tokens_of(part.layout.is_query_S))
    rows_R, part.query_R, part.signal_G = moved(part.device, rows, query_R, part.layout.signal_G)
    part.stream, part.plan = part.stream.select(rows_R), backend.plan(part.layout, part.device)
    return qkv.index_select(0, rows_R)
