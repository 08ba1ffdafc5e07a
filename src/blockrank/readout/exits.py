"""Progressive pruning: documents that leave a forward early, and their place in the final order.

Early layers already know much of the ranking (GemFilter; GRATING, arXiv 2510.15620). After a layer only the best share
of each request's documents goes on. In the final order those that stayed longer come first; documents that left at the
same layer are ordered by the read-out there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blockrank.layout import Ints, PackedLayout

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Exit:
    """Documents that left at one layer. left_C, kept_C: indices among all documents, with the log of their scores
    there, log_left_C and log_kept_C."""

    layer: int
    left_C: Ints
    log_left_C: Floats
    kept_C: Ints
    log_kept_C: Floats


@dataclass(frozen=True, slots=True)
class Left:
    """What an exit leaves: its record, the layout without the documents, which of all documents are still there, and
    the stream positions that stay."""

    exit: Exit
    layout: PackedLayout
    alive_C: Ints
    rows_R: Ints


def leave(logs_C: Floats, layout: PackedLayout, alive_C: Ints, first_B: Ints, layer: int, share: float) -> Left | None:
    """Let all but the best `share` of the documents that each request began with go; None where nobody has to.

    logs_C: log scores of the documents of `layout`, whose indices among all documents are `alive_C`. first_B: how many
    each request began with. At least one document of a request stays; ties stay in the order of the request.
    """
    stays_C = np.zeros(len(logs_C), dtype=bool)
    for request in range(layout.requests):
        members = np.flatnonzero(layout.document_request_C == request)
        count = max(math.ceil(share * first_B[request]), 1)
        stays_C[members[np.argsort(-logs_C[members], kind="stable")[:count]]] = True
    if stays_C.all():
        return None
    dropped_S = np.zeros(len(layout.starts_S), dtype=bool)
    dropped_S[layout.document_segment_C[~stays_C]] = True
    rows_R = np.flatnonzero(layout.tokens_of(~dropped_S))
    record = Exit(layer, alive_C[~stays_C], logs_C[~stays_C], alive_C[stays_C], logs_C[stays_C])
    return Left(record, layout.without(dropped_S), alive_C[stays_C], rows_R)


def with_exits(logs_C: Floats, alive_C: Ints, exits: Sequence[Exit], request_C: Ints) -> Floats:
    """Log scores of all documents from those of the survivors and the exits, (C,), each request's summing to one.

    A document that left scores, relative to the lowest one that stayed, what it scored relative to the lowest one
    that stayed in the read-out where it left. request_C: the request of each document.
    """
    all_C = np.full(len(request_C), -np.inf, dtype=np.float64)
    all_C[alive_C] = logs_C
    for item in reversed(exits):
        for request in np.unique(request_C[item.left_C]):
            kept, left = request_C[item.kept_C] == request, request_C[item.left_C] == request
            floor = all_C[item.kept_C[kept]].min() - item.log_kept_C[kept].min()
            all_C[item.left_C[left]] = floor + item.log_left_C[left]
    for request in range(int(request_C.max()) + 1):
        members = request_C == request
        top = all_C[members].max()
        all_C[members] -= top + math.log(np.exp(all_C[members] - top).sum())
    return all_C.astype(np.float32)
