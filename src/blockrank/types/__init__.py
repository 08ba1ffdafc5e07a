"""What goes in and what comes out: documents, requests, rankings, and what every ranker offers.

Nothing here knows about tensors; importing it is cheap.
"""

from __future__ import annotations

from blockrank.errors import BlockrankError, CapacityError, InputError, MissingExtraError, ModelError
from blockrank.types.documents import Document, DocumentLike, as_document
from blockrank.types.rankers import RequestRanker
from blockrank.types.rankings import Evidence, RankedDocument, Ranking
from blockrank.types.requests import RankRequest

__all__ = [
    "BlockrankError",
    "CapacityError",
    "Document",
    "DocumentLike",
    "Evidence",
    "InputError",
    "MissingExtraError",
    "ModelError",
    "RankRequest",
    "RankedDocument",
    "Ranking",
    "RequestRanker",
    "as_document",
]
