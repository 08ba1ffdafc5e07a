"""What goes in and what comes out: documents, requests, rankings, and what every ranker offers.

Nothing here knows about tensors; importing it is cheap.
"""

from __future__ import annotations

from blockrank.errors import BlockrankError, CapacityError, InputError, MissingExtraError, ModelError
from blockrank.types.documents import Document, DocumentLike, as_document
from blockrank.types.rankers import Cut, KeyCache, RankerFacts, RequestRanker, ServedRanker, SteppedRanker, Tokenised
from blockrank.types.rankings import Evidence, RankedDocument, Ranking
from blockrank.types.requests import RankRequest
from blockrank.types.scores import SCORE_KINDS, ScoreKind, as_logits, in_unit_range

__all__ = [
    "SCORE_KINDS",
    "BlockrankError",
    "CapacityError",
    "Cut",
    "Document",
    "DocumentLike",
    "Evidence",
    "InputError",
    "KeyCache",
    "MissingExtraError",
    "ModelError",
    "RankRequest",
    "RankedDocument",
    "RankerFacts",
    "Ranking",
    "RequestRanker",
    "ScoreKind",
    "ServedRanker",
    "SteppedRanker",
    "Tokenised",
    "as_document",
    "as_logits",
    "in_unit_range",
]
