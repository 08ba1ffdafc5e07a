"""What `blockrank eval` compares: every model with every scorer under every strategy is a system."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockrank.cli.cluster import Workers
from blockrank.cli.console import load_check, named_strategy, spec_changes
from blockrank.types import RequestRanker

if TYPE_CHECKING:
    from blockrank.evaluate.plan import Reranker
    from blockrank.evaluate.sharing import Loaded

_LABEL = re.compile(r"([\w.+-]+)=(.+)")
_SETTING = re.compile(r",(?=\s*\w+\s*=)|:")  # where a name ends, or a setting
_UNSAFE = re.compile(r"[^\w.+]+", re.ASCII)
_LONGEST = 48  # characters of a scorer or a strategy in a label
_LOADING = ("device", "dtype", "backend")


@dataclass(frozen=True, slots=True)
class System:
    """A model, a scorer and a strategy, as they were given, and how the three are called."""

    model: str | None
    scorer: str | None
    strategy: str | None
    label: str


def systems(
    models: Sequence[str | None], scorers: Sequence[str] | None, strategies: Sequence[str] | None
) -> list[System]:
    """Every model with every scorer under every strategy, those of one model together.

    Labels are "model+scorer+strategy", without what was not given and without "full". Where two are alike, those whose
    scorer or strategy was shortened end in a digest of it. Raises `ModelError` where there is no such model.
    """
    wanted_scorers: list[str | None] = list(dict.fromkeys(scorers)) if scorers else [None]
    wanted_strategies: list[str | None] = list(dict.fromkeys(strategies)) if strategies else [None]
    given = list(product(models, wanted_scorers, wanted_strategies))
    labels = [_label(*parts) for parts in given]
    counts = Counter(labels)
    found = []
    for (model, scorer, strategy), label in zip(given, labels, strict=True):
        told = (scorer or "") + "\n" + (strategy or "")
        end = f"-{blake2b(told.encode(), digest_size=3).hexdigest()}" if counts[label] > 1 and told.strip() else ""
        found.append(System(labelled(model)[1], scorer, strategy, label + end))
    return found


def _label(model: str | None, scorer: str | None, strategy: str | None) -> str:
    from blockrank.model import located

    label, name = labelled(model)
    parts = [label or Path(located(name)).resolve().name]
    parts += [shortened(text) for text in (scorer, strategy if named_strategy(strategy) else None) if text]
    return "+".join(parts)


def labelled(given: str | None) -> tuple[str | None, str | None]:
    """Label and model of `LABEL=MODEL`; no label where there is none, or the whole is a path."""
    match = _LABEL.fullmatch(given) if given is not None and not Path(given).exists() else None
    return (match[1], match[2]) if match else (None, given)


def shortened(text: str) -> str:
    """A scorer or strategies as a part of a label: "sliding:size=20,step=10" is "sliding.size20.step10".

    It has letters, digits and -_.+ alone; one over 48 characters is cut, and ends in a digest.
    """
    settings = (item.strip().replace("=", "", 1) for item in _SETTING.split(text))
    short = ".".join(_UNSAFE.sub("-", item).strip("-") for item in settings)
    if len(short) <= _LONGEST:
        return short
    digest = blake2b(text.encode(), digest_size=3).hexdigest()
    return f"{short[: _LONGEST - len(digest) - 1]}-{digest}"


def rerankers(found: Sequence[System], options: dict[str, Any], workers: Workers) -> Iterator[Reranker]:
    """The rerankers of the systems. Raises `ModelError` where there is no such model, or a scorer cannot read it."""
    from blockrank.evaluate.plan import Reranker
    from blockrank.evaluate.sharing import Loaded, together
    from blockrank.keep.identity import model_identity
    from blockrank.model import located
    from blockrank.scorers import resolve_scorer

    loaded, named = Loaded(), options.get("spec")
    groups = {
        model: together(model, list(dict.fromkeys(item.scorer for item in found if item.model == model)), named)
        for model in dict.fromkeys(item.model for item in found)
    }
    for system in found:
        own = {**options, "scorer": system.scorer, **named_strategy(system.strategy)}
        _, spec = resolve_scorer(system.model, system.scorer, named)
        folder = Path(located(system.model))
        files = model_identity(folder) if folder.is_dir() else {"hub": str(system.model)}
        settings = {"model": files, "spec": spec.to_dict(), "options": own}
        load: Callable[[], RequestRanker] = workers.loader(system.model, own)
        if not workers.wanted:
            group = next(group for group in groups[system.model] if system.scorer in group)
            load = partial(_load, loaded, system, group, options)
        yield Reranker(system.label, load, settings, partial(load_check, system.model, **own))


def _load(loaded: Loaded, system: System, scorers: list[str | None], options: dict[str, Any]) -> RequestRanker:
    """The ranker of a system, over weights that it shares with those of the other scorers."""
    from blockrank.evaluate.sharing import load_rankers
    from blockrank.strategies import in_strategies

    loading = {name: options[name] for name in _LOADING}
    rankers = loaded.rankers(
        (system.model, *scorers), partial(load_rankers, system.model, scorers, spec=options.get("spec"), **loading)
    )  # fmt: skip
    ranker = rankers[scorers.index(system.scorer)]
    changes = spec_changes(**options)
    return in_strategies(ranker.with_spec(**changes) if changes else ranker, system.strategy)
