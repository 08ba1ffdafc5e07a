"""Rankers with different scorers over the same weights, which are loaded once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockrank.scorers import Scorer, resolve_scorer

if TYPE_CHECKING:
    from blockrank.ranker import Ranker


class Loaded:
    """What was loaded last, under a key. Another key drops it before anything else is loaded: models that do not fit
    into memory together come one after the other."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._rankers: list[Ranker] = []

    def rankers(self, key: Hashable, load: Callable[[], list[Ranker]]) -> list[Ranker]:
        """What `load` gives, called where another key was asked for before."""
        if key != self._key or not self._rankers:
            self._rankers = []
            self._rankers, self._key = load(), key
        return self._rankers


def load_rankers(
    name_or_path: str | Path | None, scorers: Sequence[str | Scorer | None], *, spec: str | None = None, **options: Any
) -> list[Ranker]:
    """A ranker for each of some scorers, as `Ranker.from_pretrained` makes it, over weights that are loaded once.

    scorers: of one group of `together`. spec: the name of a built-in one in place of the model's own. options: device,
    dtype and backend, see `load_model`. Everything that any of them needs is loaded. Raises `InputError` and
    `ModelError` where one of them cannot read the model.
    """
    from blockrank.model import load_model
    from blockrank.model.probe import probe_model
    from blockrank.ranker import Ranker

    found = [resolve_scorer(name_or_path, scorer, spec) for scorer in scorers]
    needs = [scorer.needs(own) for scorer, own in found]
    whole = needs[0]
    for other, (_, own) in zip(needs[1:], found[1:], strict=True):
        whole = whole.joined(other, own.readout.layer)
    model = load_model(name_or_path, spec=found[0][1], needs=whole, **options)
    rankers = [Ranker(model.with_spec(own), scorer) for scorer, own in found]
    for ranker, need in zip(rankers[1:], needs[1:], strict=True):
        if ranker.spec.pattern != rankers[0].spec.pattern and not model.weights.is_quantised:
            probe_model(ranker.model, whole=need.every_layer)
    return rankers


def together(
    name_or_path: str | Path | None, scorers: Sequence[str | None], spec: str | None = None
) -> list[list[str | None]]:
    """Groups of scorers whose weights can be loaded once: the head for classification takes the place of the one for
    text. spec: as in `load_rankers`. Raises as `resolve_scorer`."""
    groups: dict[bool, list[str | None]] = {}
    for given in scorers:
        scorer, own = resolve_scorer(name_or_path, given, spec)
        groups.setdefault(scorer.needs(own).score, []).append(given)
    return list(groups.values())
