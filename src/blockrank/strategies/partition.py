"""Candidates shuffled into groups that are ranked apart, as in GroupRank (arXiv:2511.11653)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import ceil
from statistics import fmean

from blockrank.errors import InputError
from blockrank.strategies.base import Ask, Steps, Strategy, merged, part, placed, randomness
from blockrank.types import RankedDocument, RankRequest


@dataclass
class Partition(Strategy):
    """Shuffles the candidates into groups of at most `size`, `repeats` times, and ranks all groups at once.

    Groups are of equal size, or differ by one. Merged by the mean of a document's places in its groups, each as a part
    of the group: the middle of the first of four is 1/8. Where the asked ranker gives probabilities or logits, which
    mean the same in every prompt, by the mean of these, and the ranking has their kind. seed: of the shuffles, which
    depend on it, the query and the number of candidates alone.
    """

    name = "partition"
    size: int = 20
    repeats: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 2:
            raise InputError(f"size must be at least 2, not {self.size}: a document alone is compared with nothing.")
        if self.repeats < 1:
            raise InputError(f"repeats must be positive, not {self.repeats}.")

    def calls(self, count: int) -> int:
        """Requests that one of so many readable documents takes: repeats · ⌈count / size⌉."""
        return self.repeats * ceil(count / self.size)

    def steps(self, request: RankRequest) -> Steps:
        """See `Strategy.steps`."""
        groups = self._groups(request)
        rankings = yield Ask([part(request, group) for group in groups])
        entries = dict[int, RankedDocument]()
        places, scores = defaultdict[int, list[float]](list), defaultdict[int, list[float]](list)
        for group, ranking in zip(groups, rankings, strict=True):
            for place, (index, entry) in enumerate(placed(request, group, ranking)):
                entries[index] = entry
                places[index].append((place + 0.5) / len(group))
                if entry.index not in ranking.unscored:
                    scores[index].append(entry.score)
        kind = rankings[0].kind
        if kind in ("probability", "logit"):
            means = {index: fmean(found) for index, found in scores.items()}
            return merged(request, sorted(entries.items()), scores=means, kind=kind)
        order = sorted(entries, key=lambda index: (fmean(places[index]), index))
        return merged(request, [(index, entries[index]) for index in order])

    def _groups(self, request: RankRequest) -> list[list[int]]:
        """Indices of the candidates in each group, those of all repeats."""
        random, found = randomness(request, self.seed), list[list[int]]()
        for _ in range(self.repeats):
            indices = list(request.readable)
            random.shuffle(indices)
            count = ceil(len(indices) / self.size)
            found += [indices[first::count] for first in range(count)]
        return found
