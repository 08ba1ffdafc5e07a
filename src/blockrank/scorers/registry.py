"""Scorers by name; `SCORERS.add` enters one's own."""

from __future__ import annotations

from blockrank.registry import Registry
from blockrank.scorers.attention import AttentionScorer
from blockrank.scorers.base import Scorer
from blockrank.scorers.decode import DecodeScorer

SCORERS: Registry[Scorer] = Registry("scorer", Scorer, group="blockrank.scorers")  # type: ignore[type-abstract]

DEFAULT_SCORER = AttentionScorer.name

SCORERS.add(AttentionScorer)
SCORERS.add(DecodeScorer)
