"""What an analysis looks at."""

from __future__ import annotations

from dataclasses import dataclass

from blockrank.types import InputError

DEFAULT_TEMPLATE = "blockrank"


@dataclass(frozen=True, slots=True)
class AnalysisSettings:
    """How much is looked at, and in which order.

    queries: judged queries with a relevant candidate, drawn at random. candidates: of each query, for the read-outs.
    attention_queries, documents: queries, and documents of each, for the shares of attention. rows: tokens of the
    documents, and of the query segment, whose attention is looked at in one prompt. single_tokens: how many last tokens
    are read out one by one. shuffle: candidates in random order, so that no position is favoured by the first stage.
    seed: of every draw. Raises `InputError` on values out of range.
    """

    queries: int = 60
    candidates: int = 50
    attention_queries: int = 16
    documents: int = 15
    rows: int = 48
    single_tokens: int = 16
    shuffle: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"queries": 2, "candidates": 2, "attention_queries": 1, "documents": 2, "rows": 1, "single_tokens": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InputError(f"{name} must be at least {low}, not {getattr(self, name)}.")
        if self.seed < 0:
            raise InputError(f"seed must not be negative, not {self.seed}.")
