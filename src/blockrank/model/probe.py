"""The probe at load: a small forward that shows that a model does what the layout says.

Decoder families differ in how they call attention, and some fail silently: they never call the registered function,
leak between documents, or add a mask, a window or a soft cap of their own. Three checks, on about 40 tokens:
every layer calls the seam; no document influences another (under the causal pattern: none that stands before it);
hidden states equal the model's own eager attention given the explicit 4-D mask. Where the layers are fused, a fourth:
what they yield equals what the library's own do, and where the model has its head, last hidden states and logits too.
All of it with NaN in place of weights that the checkpoint leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from blockrank.attention.reference import dense_mask
from blockrank.engine.capture import Capture, Wanted
from blockrank.layout import PackedLayout, Segment, TokenisedRequest, pack
from blockrank.layout.prompt import Kind
from blockrank.model.seam import SEAM
from blockrank.types import ModelError

if TYPE_CHECKING:
    from blockrank.model.rank_model import RankModel

_LENGTHS = (4, 7, 5, 9, 6)  # instruction, three documents, query
_EDITED = 2  # index of the segment that the isolation check changes
# Largest difference from eager, relative to the largest hidden state, by type of the weights.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.float16: 2e-2, torch.bfloat16: 8e-2}


def probe_model(model: RankModel, *, whole: bool = False) -> None:
    """Run the checks, up to the scoring layer. whole: up to the last layer, for those who read what comes of it. Raises
    `ModelError` with one sentence that says what failed."""
    # Every document to the end, and every row's keys, also of those that no score reads.
    changes = {"layer": model.module.config.num_hidden_layers - 1} if whole else {}
    model = model.with_spec(model.spec.changed(prune=(), softmax_over="all", **changes))
    layout = _layout(model)
    with torch.inference_mode(), _spoiled(model):
        states = _states(model, layout)
        if not all(bool(state.isfinite().all()) for state in states[: model.spec.readout.layer + 1]):
            raise ModelError(f"{_name(model)} yields values that are not finite: its weights are broken.")
        _check_isolation(model, layout)
        _check_eager(model, layout, states)
        if model.decoder is not None:
            _check_fused(model, layout, whole)


def _name(model: RankModel) -> str:
    return f"{type(model.module).__name__} ({model.name})" if model.name else type(model.module).__name__


def _layout(model: RankModel) -> PackedLayout:
    """Seeded random tokens in the spec's own pattern, the query close by so that any position table holds it."""
    generator = np.random.default_rng(0)
    vocabulary = int(model.module.config.vocab_size)
    kinds: tuple[Kind, ...] = ("instruction", "document", "document", "document", "query")
    segments = tuple(
        Segment(kind, generator.integers(3, vocabulary, length), length, signal_end=length)
        for kind, length in zip(kinds, _LENGTHS, strict=True)
    )
    offset = None if model.spec.pattern.query_offset is None else min(model.spec.pattern.query_offset, 64)
    return pack([TokenisedRequest(segments)], model.spec.changed(query_offset=offset))


def _states(model: RankModel, layout: PackedLayout) -> tuple[Tensor, ...]:
    """Hidden states of every layer through the seam; checks that every layer was called."""
    current = model.start_pass(layout, Wanted.read_out(model.spec), stop=False)
    states = _hidden(model, layout, blockrank=current)
    layers = model.module.config.num_hidden_layers
    missed = sorted(set(range(layers)) - set(current.layers_seen))
    if missed:
        raise ModelError(
            f"{_name(model)} bypasses the attention seam in layers {missed[:5]} of {layers}: it cannot be ranked with."
        )
    return states


def _hidden(model: RankModel, layout: PackedLayout, **extras: object) -> tuple[Tensor, ...]:
    try:
        outputs = model.module(**model.inputs(layout), output_hidden_states=True, **extras)
    except TypeError as error:
        raise ModelError(f"{_name(model)} does not take what the attention seam needs: {error}") from error
    return tuple(state[0] for state in outputs.hidden_states)


def _check_isolation(model: RankModel, layout: PackedLayout) -> None:
    """Change one document: keys of all that does not read it must stay as they were: other documents, and under the
    causal pattern what stands before it."""
    edited = layout.ids_T.copy()
    start, end = layout.starts_S[_EDITED], layout.ends_S[_EDITED]
    edited[start:end] = (edited[start:end] + 1) % int(model.module.config.vocab_size)
    keys = [model.forward(item).only.k_PKH for item in (layout, replace(layout, ids_T=edited))]
    others = np.ones(layout.tokens, dtype=bool)
    others[start:end] = False
    causal = model.spec.pattern.kind == "causal"
    if model.spec.pattern.query_reads == "all":
        others[end if causal else layout.starts_S[-1] :] = False
    before, after = (key[torch.from_numpy(others).to(key.device)].float() for key in keys)
    limit = _TOLERANCE.get(model.dtype, 1e-4) * float(before.abs().max().clamp_min(1.0))
    if not bool(before.isfinite().all()):
        raise ModelError(f"{_name(model)} yields keys that are not finite: its weights are broken.")
    if not float((before - after).abs().max()) <= limit:
        what = "what stands before it" if causal else "another"
        raise ModelError(f"{_name(model)} lets one document influence {what}: attention is not its only path.")


def _check_eager(model: RankModel, layout: PackedLayout, states: tuple[Tensor, ...]) -> None:
    """Compare with the model's own eager attention, layer by layer up to the input of the scoring layer."""
    allowed = dense_mask(layout, model.device)[None, None]
    mask = torch.zeros(allowed.shape, dtype=model.dtype, device=model.device)
    mask = mask.masked_fill(~allowed, torch.finfo(model.dtype).min)
    with _eager(model):
        expected = _hidden(model, layout, attention_mask=mask)
    for layer in range(model.spec.readout.layer + 1):
        distance = rows_apart(states[layer], expected[layer])
        if not distance <= _TOLERANCE.get(model.dtype, 1e-4):
            raise ModelError(
                f"{_name(model)} differs from its own eager attention under the same mask before layer {layer} "
                f"(by {distance:.2g} of the size of a token's state): the layout is not all that shapes its attention."
            )


def _check_fused(model: RankModel, layout: PackedLayout, whole: bool) -> None:
    """Compare queries and keys at the scoring layer with those of the library's own layers; where every layer is read
    or there is a head, every token's last hidden states too, and with a head its logits."""
    wanted = Wanted.read_out(model.spec)
    has_head = model.weights.has_head
    if (whole or has_head) and not model.weights.omitted:
        every_T = np.arange(layout.tokens)
        wanted = replace(wanted, logits_R=every_T if has_head else None, hidden_R=every_T)
    fused, library = (_parts(item.forward(layout, wanted)) for item in (model, model.in_library_layers()))
    for one, two in zip(fused, library, strict=True):
        distance = rows_apart(one, two)
        if not distance <= _TOLERANCE.get(model.dtype, 1e-4):
            raise ModelError(
                f"the fused layers of {_name(model)} differ from its own (by {distance:.2g} of the size of a row): "
                "pass layers='library'."
            )


def _parts(capture: Capture) -> list[Tensor]:
    """All that was captured at the scoring layer and above it."""
    found = (capture.only.q_GNH, capture.only.k_PKH, capture.hidden_RD, capture.logits_RV)
    return [part for part in found if part is not None]


def rows_apart(one: Tensor, two: Tensor) -> float:
    """How far the rows (first axis) of `one` are from those of `two`, in sizes of these: no row is further, or in half
    precision no more than one of ten. Infinite where any is not finite.

    In half precision the row of a sink token depends on the order of the sums before it, in a model's own layers too:
    of SmolLM2-135M's keys, none above 13.5, bfloat16 and float32 differ by up to 1.1, all of it in one row. A layer
    that is computed wrongly differs in every row.
    """
    size = two.float().flatten(1).norm(dim=1).clamp_min(1e-6)
    distance = (one.float() - two.float()).flatten(1).norm(dim=1) / size
    if not bool(distance.isfinite().all()):
        return math.inf
    share = 0.9 if one.dtype in (torch.bfloat16, torch.float16) else 1.0
    return float(distance.sort().values[math.ceil(share * len(distance)) - 1])


@contextmanager
def _spoiled(model: RankModel) -> Iterator[None]:
    """Put NaN where the checkpoint leaves weights out: whatever reads one of them after all yields no number."""
    weights = [weight for name, weight in model.module.named_parameters() if name in model.weights.omitted]
    for weight in weights:
        weight.data.fill_(torch.nan)
    try:
        yield
    finally:
        for weight in weights:
            weight.data.zero_()


@contextmanager
def _eager(model: RankModel) -> Iterator[None]:
    model.module.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.module.set_attn_implementation(SEAM)
