"""A cascade: a ranker that costs little chooses, and another one ranks what it chose."""

from __future__ import annotations

from dataclasses import dataclass

from blockrank.errors import InputError
from blockrank.strategies.base import Ask, Steps, merged, part
from blockrank.strategies.first import Entries, WithFirst, entries
from blockrank.types import RankRequest


@dataclass
class Cascade(WithFirst):
    """Ranks the best `keep` of the candidates, those that `first` puts before the others; these follow in its order.

    The ranker sees them best first. Where there are no more than `keep`, `first` is not asked and the ranker sees all
    as they are given. One request to each ranker, then.
    """

    name = "cascade"
    keep: int = 20

    def check(self) -> None:
        """See `WithFirst.check`."""
        if self.keep < 1:
            raise InputError(f"keep must be positive, not {self.keep}.")

    def steps(self, request: RankRequest) -> Steps:
        """See `Strategy.steps`."""
        kept, rest = list(request.readable), Entries()
        if len(kept) > self.keep:
            ordered = entries(kept, (yield from self.first_ranking(request)))
            kept, rest = [index for index, _ in ordered[: self.keep]], ordered[self.keep :]
        [ranking] = yield Ask([part(request, kept)])
        return merged(request, entries(kept, ranking), rest=rest)
