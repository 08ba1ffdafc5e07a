"""What a read-out reads, prepared once: index tensors on the device where queries and keys are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from blockrank.attention.indices import moved
from blockrank.layout import Ints, PackedLayout, ranges_flat
from blockrank.spec import RankSpec
from blockrank.types import InputError


@dataclass(frozen=True, slots=True)
class ReadoutPlan:
    """What a read-out reads: queries, keys, layout and spec, and index tensors on the queries' device.

    scale: the factor on logits, the spec's own included. signal_BG, signal_mask_BG: places in the captured signal
    rows, padded. slot_C: place of a document in a padded (B, M) table, M the largest candidate list. segments_C,
    requests_C: segment and request of each document on the host. owner_C, length_C, start_C: on the device the request,
    row count and first row of each.
    """

    q_GNH: Tensor
    k_PKH: Tensor
    layout: PackedLayout
    spec: RankSpec
    scale: float
    signal_BG: Tensor
    signal_mask_BG: Tensor
    slot_C: Tensor
    most_documents: int
    segments_C: Ints
    requests_C: Ints
    owner_C: Tensor
    length_C: Tensor
    start_C: Tensor


def plan_readout(q_GNH: Tensor, k_PKH: Tensor, layout: PackedLayout, spec: RankSpec, scale: float) -> ReadoutPlan:
    """Prepare a read-out; arguments as in `log_scores`. Raises `InputError` where a request has no signal tokens."""
    per_request = np.bincount(layout.signal_request_G, minlength=layout.requests)
    if not per_request.min():
        raise InputError("the prompt ends in a document: there are no tokens of a query segment to read out.")
    first = np.cumsum(per_request) - per_request
    at_G = np.arange(per_request.max())
    mask = at_G < per_request[:, None]
    documents = np.bincount(layout.document_request_C, minlength=layout.requests)
    place = ranges_flat(np.zeros_like(documents), documents)
    segments, read = layout.document_segment_C, spec.readout

    starts_C = layout.starts_S[segments] + layout.cached_rows
    lengths_C = layout.ends_S[segments] - layout.starts_S[segments]
    signal_BG, mask_BG, slot_C, owner_C, length_C, start_C = moved(
        q_GNH.device,
        np.where(mask, first[:, None] + at_G, 0),
        mask,
        layout.document_request_C * documents.max() + place,
        layout.document_request_C,
        lengths_C,
        starts_C,
    )
    return ReadoutPlan(
        q_GNH,
        k_PKH,
        layout,
        spec,
        read.logit_scale if read.cosine != "none" else scale * read.logit_scale,
        signal_BG,
        mask_BG.bool(),
        slot_C,
        int(documents.max()),
        segments,
        layout.document_request_C,
        owner_C,
        length_C,
        start_C,
    )
