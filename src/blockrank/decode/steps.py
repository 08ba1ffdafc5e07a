"""Forwards of generation: a prompt leaves keys and values as rows, and steps of a few tokens read them.

A step is a packed layout of one short segment for each text that goes on. It reads the rows of its prompt, those of its
own text so far, and itself; all texts of a batch go through the model together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from blockrank.attention import get_backend
from blockrank.engine.capture import Wanted
from blockrank.engine.rows import RowBuffers
from blockrank.layout import Ints, PackedLayout
from blockrank.model import RankModel
from blockrank.spec import RankSpec
from blockrank.types import InputError, ModelError

Range = tuple[int, int]


def segments_layout(
    tokens: Sequence[Sequence[int]],
    reads: Sequence[tuple[Range, Range]],
    positions: Sequence[int],
    *,
    requests: int,
    cached_rows: int,
) -> PackedLayout:
    """One causal segment for each of `tokens`, which must not be empty.

    reads: the rows that each reads before its own, as [start, end): of its prompt, and of what followed it so far.
    positions: of the first token of each. requests: how many prompts the rows are of.
    """
    lengths = np.array([len(one) for one in tokens], dtype=np.int64)
    ends = np.cumsum(lengths)
    ranges = np.array(reads, dtype=np.int64).reshape(-1, 2)
    some = ranges[:, 1] > ranges[:, 0]
    nothing = np.zeros(0, dtype=np.int64)
    return PackedLayout(
        ids_T=np.concatenate([np.array(one, dtype=np.int64) for one in tokens]),
        positions_T=np.arange(int(ends[-1])) + np.repeat(np.array(positions) - (ends - lengths), lengths),
        starts_S=ends - lengths,
        ends_S=ends,
        causal_S=np.ones(len(tokens), dtype=bool),
        own_S=np.ones(len(tokens), dtype=bool),
        reads_R2=ranges[some],
        read_offsets_S1=np.r_[0, np.cumsum(some.reshape(-1, 2).sum(1))].astype(np.int64),
        document_segment_C=nothing,
        document_request_C=nothing,
        signal_G=nothing,
        signal_request_G=nothing,
        requests=requests,
        cached_rows=cached_rows,
        kinds_S=tuple("query" for _ in tokens),
    )


def check_spec(spec: RankSpec, what: str = "decoding") -> None:
    """Raise `InputError` where a spec does not allow decoding, or something else that asks for the next token."""
    spec.check_none_leaves(f"{what} needs every document in every layer")
    for field, needed in (("query_reads", "all"), ("query_attention", "causal")):
        if (value := getattr(spec.pattern, field)) != needed:
            raise InputError(f"{what} needs RankSpec.{field} {needed!r}; it is {value!r}.")


def check_model(model: RankModel) -> None:
    """Raise where a model or its spec does not allow decoding."""
    if not model.weights.has_head:
        raise ModelError(
            f"{model.name or 'the model'} was loaded without a language-model head, which decoding needs: load it with "
            "needs=Needs(generation=True)."
        )
    check_spec(model.spec)


def next_logits(model: RankModel, layout: PackedLayout, at: Ints, rows: RowBuffers) -> Tensor:
    """(A, V) next-token logits at stream positions."""
    logits_AV = model.forward(layout, Wanted(logits_R=at), rows=rows).logits_RV
    assert logits_AV is not None, "asked for"
    return logits_AV


def inference_models(model: RankModel) -> tuple[RankModel, RankModel]:
    """The model with the backends of prompt and steps, for inference in the type that attention will see.

    Steps read many rows with few tokens. A backend that gathers rows segment by segment (`varlen`) would copy a
    prompt's for each beam, so that the first of the table takes its place.
    """
    device = model.device.type
    casts = torch.is_autocast_enabled(device) and model.decoder is None  # fused layers choose their types themselves
    dtype = torch.get_autocast_dtype(device) if casts else model.dtype
    default = get_backend(None, model.device, dtype)
    runs = model.backend.unavailable(model.device, dtype) is None
    prefill = model.with_backend(model.backend if runs else default)
    return prefill, prefill.with_backend(default) if prefill.backend.name == "varlen" else prefill


@contextmanager
def inferring(module: nn.Module) -> Iterator[None]:
    """The module as it infers: no gradients, no dropout; afterwards it is as it was."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part in training:
            part.training = True
