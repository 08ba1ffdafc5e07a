"""Sets of heads as a setting of a scorer."""

from __future__ import annotations

from blockrank.model import RankModel
from blockrank.spec import HeadSet
from blockrank.types import ModelError


def loaded_heads(heads: HeadSet | str | None) -> HeadSet | None:
    """The set of a setting: one made already, or by its name or file. Raises `InputError` as `HeadSet.load`."""
    return HeadSet.load(heads) if isinstance(heads, str) else heads


def check_heads(heads: HeadSet, model: RankModel) -> None:
    """Raise `ModelError` where a set is not one of this model."""
    count = model.module.config.num_attention_heads
    if (reason := heads.misfit(model.name, model.weights.layers, count, model.spec.prompt)) is not None:
        raise ModelError(f"the head set cannot be read: {reason}")
