"""Documents encoded once and read out many times: which segments a store already holds, and how a forward that ran
without them gets their keys back.

Exact where `RankSpec.documents_stand_alone` holds: a document's keys at the scoring layer then depend on the
instruction and its own tokens alone, and no other segment reads it below that layer. The key of an entry is all that
it depends on beside the weights, so that a wrong hit is impossible: a store belongs to weights, and all views over
them may share it, at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blockrank.layout import PackedLayout
from blockrank.spec import RankSpec


class Store(Protocol):
    """Keys of documents at the scoring layer, (L, K, H), by what they depend on. For use from several threads."""

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Tensor]:
        """The entries of those keys that are held."""

    def write(self, key: bytes, k_LKH: Tensor) -> None:
        """Keep an entry; a store may drop others for it."""


@dataclass(frozen=True, slots=True)
class ReusePlan:
    """What of a layout is computed and what comes from a store.

    lean: the layout that still has to run. dropped_S: segments of the full layout that it lacks. keys_C: content key
    of each document of the full layout. held: entries read before anything is written, by key.
    """

    lean: PackedLayout
    dropped_S: NDArray[np.bool_]
    keys_C: tuple[bytes, ...]
    held: dict[bytes, Tensor]


def reuse_context(spec: RankSpec, arithmetic: str) -> bytes:
    """What the keys of a document depend on beside tokens and positions: of the spec the layer that is read and what a
    document's tokens read of each other (the rest shapes tokens, the query or the read-out); and what computes them."""
    return f"{spec.readout.layer}|{spec.pattern.document_attention}|{arithmetic}|".encode()


def content_keys(layout: PackedLayout, context: bytes) -> tuple[bytes, ...]:
    """One key a document: a hash of the context, its start position, the instruction's tokens and its own."""
    roots = [
        hashlib.blake2b(context + layout.ids_T[layout.starts_S[i] : layout.ends_S[i]].tobytes(), digest_size=16)
        for i in layout.instruction_segment_B
    ]
    keys = []
    for segment, request in zip(layout.document_segment_C, layout.document_request_C, strict=True):
        start, end = layout.starts_S[segment], layout.ends_S[segment]
        digest = roots[request].copy()
        digest.update(b"|" + layout.positions_T[start].tobytes() + layout.ids_T[start:end].tobytes())
        keys.append(digest.digest())
    return tuple(keys)


def plan_reuse(layout: PackedLayout, store: Store, context: bytes) -> ReusePlan:
    """Leave out of a layout the documents a store holds, and all but the first among equals."""
    keys = content_keys(layout, context)
    held = store.find(tuple(dict.fromkeys(keys)))
    dropped_S = np.zeros(len(layout.starts_S), dtype=bool)
    seen = set(held)
    for key, segment in zip(keys, layout.document_segment_C, strict=True):
        dropped_S[segment] = key in seen
        seen.add(key)
    return ReusePlan(layout.without(dropped_S), dropped_S, keys, held)


def complete(layout: PackedLayout, plan: ReusePlan, k_PKH: Tensor, store: Store) -> Tensor:
    """Keys of all rows of the full layout, from those of the lean one and the store; new documents are stored."""
    found, parts = dict(plan.held), []
    key_of = dict(zip(layout.document_segment_C.tolist(), plan.keys_C, strict=True))
    kept = zip(plan.lean.starts_S.tolist(), plan.lean.ends_S.tolist(), strict=True)
    for segment, dropped in enumerate(plan.dropped_S):
        if dropped:  # held, or equal to a document before it
            parts.append(found[key_of[segment]].to(k_PKH.device))
            continue
        start, end = next(kept)
        parts.append(k_PKH[start:end])
        if segment in key_of:
            found[key_of[segment]] = parts[-1]
            store.write(key_of[segment], parts[-1])
    return torch.cat(parts)
