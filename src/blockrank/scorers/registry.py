"""Scorers by name; `SCORERS.add` enters one's own."""

from __future__ import annotations

from pathlib import Path

from blockrank.model import resolve_spec
from blockrank.registry import Registry
from blockrank.scorers.attention import AttentionScorer
from blockrank.scorers.base import Scorer
from blockrank.scorers.decode import DecodeScorer
from blockrank.scorers.embedding import EmbeddingScorer
from blockrank.scorers.first_token import FirstTokenScorer
from blockrank.scorers.groupwise import GroupwiseScorer
from blockrank.scorers.icr import IcrScorer
from blockrank.scorers.listwise import ListwiseScorer
from blockrank.scorers.multi_view import MultiViewScorer
from blockrank.scorers.pointwise import PointwiseScorer
from blockrank.scorers.reasoned import ReasonedChoiceScorer
from blockrank.scorers.scalar import ScalarScorer
from blockrank.scorers.setwise import SetwiseScorer
from blockrank.spec import BARE_SPEC, RankSpec

SCORERS: Registry[Scorer] = Registry("scorer", Scorer, group="blockrank.scorers")  # type: ignore[type-abstract]

SCORERS.add(AttentionScorer)
SCORERS.add(DecodeScorer)
SCORERS.add(EmbeddingScorer)
SCORERS.add(PointwiseScorer)
SCORERS.add(ScalarScorer)
SCORERS.add(IcrScorer)
SCORERS.add(FirstTokenScorer)
SCORERS.add(ListwiseScorer)
SCORERS.add(MultiViewScorer)
SCORERS.add(SetwiseScorer)
SCORERS.add(GroupwiseScorer)
SCORERS.add(ReasonedChoiceScorer)


def resolve_scorer(
    name_or_path: str | Path | None, scorer: str | Scorer | None = None, spec: RankSpec | str | None = None
) -> tuple[Scorer, RankSpec]:
    """The scorer asked for, or the one that a checkpoint names, and the spec under which it reads the checkpoint.

    spec: in place of the checkpoint's own. Raises as `SCORERS.make` and `resolve_spec`.
    """
    made = None if scorer is None else SCORERS.make(scorer)
    found = resolve_spec(name_or_path, spec, BARE_SPEC if made is not None and made.zero_shot else None)
    made = made or SCORERS.make(found.scorer)
    return made, made.adapted(found)
