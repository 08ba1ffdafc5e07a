"""Rank documents in context with a language model.

    from blockrank import Ranker
    ranking = Ranker.from_pretrained().rank("who wrote Dracula", ["Bram Stoker ...", "Mary Shelley ..."])

Names are loaded when they are first used: importing this package imports no torch.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blockrank.fake import FakeRanker
    from blockrank.ranker import Ranker
    from blockrank.scorers import AttentionScorer, DecodeScorer
    from blockrank.spec import BUILT_IN_SPECS, Exits, Limits, Pattern, RankSpec, Readout, Template
    from blockrank.types import (
        BlockrankError,
        CapacityError,
        Document,
        Evidence,
        InputError,
        MissingExtraError,
        ModelError,
        RankedDocument,
        Ranking,
        RankRequest,
        RequestRanker,
        SteppedRanker,
    )

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent unless the application asks for logs

_HOMES = {
    "AttentionScorer": "scorers",
    "DecodeScorer": "scorers",
    "FakeRanker": "fake",
    "Ranker": "ranker",
    "BUILT_IN_SPECS": "spec",
    "Exits": "spec",
    "Limits": "spec",
    "Pattern": "spec",
    "RankSpec": "spec",
    "Readout": "spec",
    "Template": "spec",
    "BlockrankError": "types",
    "CapacityError": "types",
    "Document": "types",
    "Evidence": "types",
    "InputError": "types",
    "MissingExtraError": "types",
    "ModelError": "types",
    "RankRequest": "types",
    "RankedDocument": "types",
    "Ranking": "types",
    "RequestRanker": "types",
    "SteppedRanker": "types",
}

__all__ = [
    "BUILT_IN_SPECS",
    "AttentionScorer",
    "BlockrankError",
    "CapacityError",
    "DecodeScorer",
    "Document",
    "Evidence",
    "Exits",
    "FakeRanker",
    "InputError",
    "Limits",
    "MissingExtraError",
    "ModelError",
    "Pattern",
    "RankRequest",
    "RankSpec",
    "RankedDocument",
    "Ranker",
    "Ranking",
    "Readout",
    "RequestRanker",
    "SteppedRanker",
    "Template",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"blockrank.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'blockrank' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
