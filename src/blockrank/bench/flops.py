"""The arithmetic that a ranking needs, counted from its layout: what a faster program does not do less of.

Counted are matrix products, two operations for a multiplication and its addition. Norms, activations, softmax and
rotary embeddings are left out, as is usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blockrank.layout import PackedLayout


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What of a model decides its arithmetic.

    weights_L: weights of the matrices of each layer. width, heads, kv_heads, head_dim: D, N, K, H. layer: the scoring
    layer.
    """

    weights_L: Sequence[int]
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    layer: int


def attention_pairs(layout: PackedLayout) -> int:
    """Pairs of a token and a row that it reads, over a whole layout."""
    lengths_S = layout.ends_S - layout.starts_S
    own_S = np.where(layout.causal_S, lengths_S * (lengths_S + 1) // 2, lengths_S**2)
    return int((lengths_S * layout.rows_read_S + own_S).sum())


def useful_flops(layout: PackedLayout, model: Arithmetic) -> int:
    """Operations of a forward to the scoring layer and its read-out, for a layout of one request.

    Below the scoring layer: every matrix for every token, and both products of attention for the pairs of the block
    pattern. At the scoring layer: keys of the documents' tokens, queries of the signal tokens, and their products.
    """
    assert layout.requests == 1, "signal tokens read the documents of their own request"
    attended = model.heads * model.head_dim
    linear = 2 * layout.tokens * sum(model.weights_L[: model.layer])
    attention = 4 * model.layer * attention_pairs(layout) * attended
    segments = layout.document_segment_C
    rows, signals = int((layout.ends_S - layout.starts_S)[segments].sum()), len(layout.signal_G)
    keys = 2 * rows * model.width * model.kv_heads * model.head_dim
    queries = 2 * signals * model.width * attended
    return linear + attention + keys + queries + 2 * signals * rows * attended
