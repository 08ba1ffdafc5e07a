"""Which models the commands of `blockrank data` load: a teacher, and the encoder that finds negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from blockrank.cli.console import load_check, load_ranker
from blockrank.mine import CachingEncoder, CrossEncoderTeacher, EncoderTeacher, RankerTeacher

if TYPE_CHECKING:
    from blockrank.mine import Teacher
    from blockrank.types.requests import Check


@dataclass(frozen=True, slots=True)
class Models:
    """Which model teaches, and how models are loaded."""

    teacher: str | None
    cross_encoder: str | None
    encoder: str | None
    device: str | None = None
    batch_size: int = 32
    dtype: str | None = None
    max_segment_tokens: int | None = None
    cut_queries: bool = False
    scorer: str | None = None
    strategy: str | None = None

    def load_encoder(self) -> CachingEncoder | None:
        """The bi-encoder, if one is named."""
        return CachingEncoder(self.encoder, device=self.device, batch_size=self.batch_size) if self.encoder else None

    def check(self) -> Check | None:
        """What tells without its weights whether the teacher takes a request; None for one that takes any."""
        if self.teacher is None:
            return None
        return load_check(
            self.teacher,
            scorer=self.scorer,
            strategy=self.strategy,
            max_segment_tokens=self.max_segment_tokens,
            cut_queries=self.cut_queries,
        )

    def load_teacher(self, encoder: CachingEncoder | None) -> Teacher | None:
        """The teacher that is named: a ranker, a cross-encoder, else the bi-encoder."""
        if self.teacher is not None:
            ranker = load_ranker(
                self.teacher,
                device=self.device,
                dtype=self.dtype,
                scorer=self.scorer,
                strategy=self.strategy,
                max_segment_tokens=self.max_segment_tokens,
                cut_queries=self.cut_queries,
            )
            return RankerTeacher(ranker, self.teacher)
        if self.cross_encoder is not None:
            return CrossEncoderTeacher(self.cross_encoder, device=self.device, batch_size=self.batch_size)
        return EncoderTeacher(encoder) if encoder else None


def check_scorer(scorer: str | None, strategy: str | None, teacher: str | None) -> None:
    """Raise `typer.BadParameter` where a scorer or a strategy is named and no model for it."""
    if scorer is not None and teacher is None:
        raise typer.BadParameter("--scorer is for --teacher.")
    if strategy is not None and teacher is None:
        raise typer.BadParameter("--strategy is for --teacher.")
