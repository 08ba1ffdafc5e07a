"""From segment texts to one packed token stream: tokenise, limit, pack."""

from __future__ import annotations

from blockrank.layout.batches import forward_tokens, plan_alike, plan_batches
from blockrank.layout.encoding import Ints
from blockrank.layout.memo import Memo
from blockrank.layout.packed import PackedLayout, pack, ranges_flat
from blockrank.layout.tokens import PromptTokenizer, Segment, TokenisedRequest

__all__ = [
    "Ints",
    "Memo",
    "PackedLayout",
    "PromptTokenizer",
    "Segment",
    "TokenisedRequest",
    "forward_tokens",
    "pack",
    "plan_alike",
    "plan_batches",
    "ranges_flat",
]
