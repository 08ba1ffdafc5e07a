"""Requests of random tokens."""

from __future__ import annotations

import numpy as np

from blockrank.bench.settings import Shape
from blockrank.layout import Ints, Segment, TokenisedRequest
from blockrank.layout.prompt import Kind

_FIRST_ID = 3  # below are padding and control tokens in most vocabularies


def random_request(
    shape: Shape, *, instruction: int, query: int, vocabulary: int, ragged: float = 0.0, seed: int = 0
) -> TokenisedRequest:
    """A request of one shape, the same for the same arguments.

    instruction, query: tokens of these segments. vocabulary: V, ids are below it. ragged: documents' lengths are
    uniform in [1 - ragged, 1 + ragged] x the shape's; 0 makes them all equal.
    """
    generator = np.random.default_rng(seed)
    lengths = np.full(shape.documents, shape.length, dtype=np.int64)
    if ragged:
        least, most = max(1, round((1 - ragged) * shape.length)), round((1 + ragged) * shape.length)
        lengths = generator.integers(least, most + 1, shape.documents)

    def segment(kind: Kind, size: int) -> Segment:
        ids: Ints = generator.integers(_FIRST_ID, vocabulary, size)
        return Segment(kind, ids, size, signal_end=size)

    documents = [segment("document", int(length)) for length in lengths]
    return TokenisedRequest((segment("instruction", instruction), *documents, segment("query", query)))
