"""Full attention: the prompt of a packed layout as a model without the block pattern would read it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from blockrank.layout import PackedLayout


@dataclass(frozen=True, slots=True)
class FullLayout:
    """A layout of the same tokens whose segments are runs of the block layout's, as long as causality stays the same:
    for most models one run per request.

    positions: "continuing" where they count on through the prompt, as in a plain prompt; "restarting" where the model's
    position table is too short for that and they are those of the block layout.
    """

    layout: PackedLayout
    positions: Literal["continuing", "restarting"]


def full_attention(layout: PackedLayout, longest: int | None) -> FullLayout:
    """Let the tokens of a block layout read their whole request: in causal segments all that stands before them, in
    bidirectional ones everything.

    longest: length of the model's position table, None where it has none. The layout must hold no cached rows. The
    result knows no documents: their places are those of the block layout.
    """
    assert not layout.cached_rows, "a full layout is read in one forward"
    request_S = layout.request_S
    begin_S = layout.starts_S[np.searchsorted(request_S, request_S)]
    end_S = layout.ends_S[np.searchsorted(request_S, request_S, side="right") - 1]
    first = np.flatnonzero(np.r_[True, np.diff(2 * request_S + layout.causal_S) != 0])  # segment that begins each run
    last = np.r_[first[1:] - 1, len(request_S) - 1]
    starts, ends, causal = layout.starts_S[first], layout.ends_S[last], layout.causal_S[first]
    before = np.stack([begin_S[first], starts], 1)
    after = np.stack([ends, np.where(causal, ends, end_S[first])], 1)
    reads = np.stack([before, after], 1)
    filled = reads[..., 1] > reads[..., 0]
    continuing_T = np.arange(layout.tokens) - np.repeat(begin_S, layout.ends_S - layout.starts_S)
    fits = longest is None or int(continuing_T.max()) < longest
    nothing = np.zeros(0, dtype=np.int64)
    full = replace(
        layout,
        positions_T=continuing_T if fits else layout.positions_T,
        starts_S=starts,
        ends_S=ends,
        causal_S=causal,
        reads_R2=reads[filled],
        read_offsets_S1=np.concatenate([[0], np.cumsum(filled.sum(1))]).astype(np.int64),
        document_segment_C=nothing,
        document_request_C=nothing,
        kinds_S=(),
    )
    return FullLayout(full, "continuing" if fits else "restarting")
