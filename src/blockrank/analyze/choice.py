"""Which layer, signal tokens and heads to read: chosen on one half of the judged queries, reported on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from blockrank.analyze.judged import JudgedRequest
from blockrank.analyze.measures import MEASURES, measure
from blockrank.analyze.readouts import QualityGrid, Tokens
from blockrank.engine.capture import LayerCapture
from blockrank.layout import PackedLayout
from blockrank.readout.signals import log_scores
from blockrank.spec import RankSpec

SIGNIFICANT = 0.05
DRAWS = 10_000
_POOLED_LAYERS = 2  # whose heads together rank best: their subsets are tried
_HEAD_LAYERS = 2  # whose best heads rank best: the same
_SOME_HEADS = 8
_NEAR = 0.9  # times the best: the subsets of other layers are not tried


@dataclass(frozen=True, slots=True)
class Setting:
    """What of a model is read: a layer, its signal tokens, and heads (None: all)."""

    layer: int
    tokens: Tokens
    heads: tuple[int, ...] | None = None

    @classmethod
    def of(cls, spec: RankSpec) -> Setting:
        """What a spec reads."""
        return cls(spec.readout.layer, spec.readout.signal_tokens, spec.readout.heads)

    def spec(self, base: RankSpec) -> RankSpec:
        """A spec that reads this."""
        return base.changed(layer=self.layer, signal_tokens=self.tokens, heads=self.heads)


@dataclass(frozen=True, slots=True)
class Curve:
    """The best 1, 2, 4, ... heads of one layer: settings in this order, all heads last."""

    layer: int
    tokens: Tokens
    settings: tuple[Setting, ...]


Values = Mapping[Setting, NDArray[np.float64]]  # setting -> (Q, M), every setting over the same queries


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and what else there was.

    own: the checkpoint's setting, None where it has none. best: the best on the development half. p: how often chance
    alone makes some setting look that much better than the own one; None without one. cheapest: the lowest layer that
    is within one standard error of the best. baseline: the middle layer's last token, all heads.
    """

    chosen: Setting
    own: Setting | None
    best: Setting
    p: float | None
    cheapest: Setting
    baseline: Setting

    @property
    def rule(self) -> str:
        """Why the chosen one was chosen, as a sentence."""
        if self.own is None or self.p is None:
            return "The checkpoint brings no setting of its own: the best on the development half was taken."
        if self.own == self.best:
            return "The checkpoint's own setting is the best on the development half: it was kept."
        if self.chosen == self.own:
            return (
                "The checkpoint's own setting was kept: what looks best on the development half is not beyond noise "
                f"(p = {self.p:.3f}, sign-flip test over all settings tried at once)."
            )
        return (
            "The checkpoint's own setting was replaced: the best on the development half is better beyond noise "
            f"(p = {self.p:.3f}, sign-flip test over all settings tried at once)."
        )


def split_halves(queries: int, seed: int) -> NDArray[np.bool_]:
    """(Q,) which queries are in the development half; it has the odd one."""
    is_dev = np.zeros(queries, dtype=np.bool_)
    is_dev[np.random.default_rng(seed).permutation(queries)[: (queries + 1) // 2]] = True
    return is_dev


def whole_layers(grid: QualityGrid) -> dict[Setting, NDArray[np.float64]]:
    """Every layer with every set of tokens and all heads."""
    axes = grid.axes
    return {
        Setting(layer, tokens): grid.pooled_QMLT[:, :, layer, axes.column(tokens)].astype(np.float64)
        for layer in range(axes.layers)
        for tokens in axes.sets
    }


def finalists(grid: QualityGrid, is_dev: NDArray[np.bool_], own: Setting | None) -> list[Setting]:
    """Layers, each with its signal tokens, whose heads are worth choosing from: the checkpoint's own, the best with all
    heads, and those with the best few heads, as long as they are within a tenth of the very best."""
    axes = grid.axes
    pooled_LT = grid.pooled_QMLT[is_dev, 0, :, axes.singles :].mean(0)
    heads_LNT = grid.heads_QMLNT[is_dev, 0, :, :, axes.singles :].mean(0)
    few_LT = np.sort(heads_LNT, 1)[:, -_SOME_HEADS:].mean(1)
    found = [] if own is None else [Setting(own.layer, own.tokens)]
    least = _NEAR * max(pooled_LT.max(), few_LT.max())
    for table_LT, count in ((pooled_LT, _POOLED_LAYERS), (few_LT, _HEAD_LAYERS)):
        for layer in np.argsort(-table_LT.max(1), kind="stable")[:count]:
            is_near = not found or table_LT[layer].max() >= least
            if is_near and int(layer) not in {setting.layer for setting in found}:
                found.append(Setting(int(layer), axes.sets[int(table_LT[layer].argmax())]))
    return found


def head_subsets(grid: QualityGrid, is_dev: NDArray[np.bool_], layer: int, tokens: Tokens) -> Curve:
    """The best 1, 2, 4, ... heads of a layer by their own quality on the development half; all of them last."""
    axes = grid.axes
    quality_N = grid.heads_QMLNT[is_dev, 0, layer, :, axes.column(tokens)].mean(0)
    order = np.argsort(-quality_N, kind="stable").tolist()
    sizes = [1 << power for power in range(axes.heads.bit_length()) if 1 << power < axes.heads]
    subsets = [Setting(layer, tokens, tuple(sorted(order[:size]))) for size in sizes]
    return Curve(layer, tokens, (*subsets, Setting(layer, tokens)))


class SettingReader:
    """Observes one forward of a request and measures settings by their real read-out; the arguments are those of
    `GridReader`."""

    def __init__(
        self, layout: PackedLayout, spec: RankSpec, judged: JudgedRequest, settings: Sequence[Setting]
    ) -> None:
        self._layout, self._spec, self._judged, self._settings = layout, spec, judged, settings
        self._scores_SC = np.full((len(settings), len(judged.relevance_C)), np.nan, dtype=np.float32)

    def __call__(self, seen: LayerCapture) -> None:
        """Read out the settings of one layer."""
        q_GNH = seen.q_GNH
        for place, setting in enumerate(self._settings):
            if setting.layer == seen.layer:
                count = len(q_GNH) if setting.tokens == "query" else min(setting.tokens, len(q_GNH))
                some = replace(
                    self._layout,
                    signal_G=self._layout.signal_G[-count:],
                    signal_request_G=self._layout.signal_request_G[-count:],
                )
                scores = log_scores(q_GNH[-count:], seen.k_PKH, some, setting.spec(self._spec), seen.scale)
                self._scores_SC[place] = scores.cpu().numpy()

    @property
    def values_SM(self) -> NDArray[np.float64]:
        """Measures of the settings, in their order, once the forward has passed their layers."""
        return measure(self._scores_SC, self._judged.relevance_C, self._judged.ideal).T


def choose(values: Values, is_dev: NDArray[np.bool_], own: Setting | None, layers: int, seed: int) -> Choice:
    """Choose by nDCG@10 on the development half.

    A checkpoint's own setting, which it was trained with, stays unless the best one is better beyond noise: signs of
    the paired differences to it are flipped at random, for all settings together, and the largest studentised mean is
    compared. Without an own setting the best one is taken.
    """
    dev = {setting: table_QM[is_dev, MEASURES.index("nDCG@10")] for setting, table_QM in values.items()}
    best = max(dev, key=lambda setting: float(dev[setting].mean()))  # the first among equals
    if own is not None and dev[own].mean() >= dev[best].mean():
        best = own
    p = None
    if own is not None:
        differences_QS = np.stack([dev[setting] - dev[own] for setting in dev], 1)
        p = chance_of_best(differences_QS, list(dev).index(best), seed)
    chosen = best if own is None or (p is not None and p < SIGNIFICANT) else own
    return Choice(chosen, own, best, p, _cheapest(dev, best), Setting(layers // 2, 1))


def chance_of_best(differences_QS: NDArray[np.float64], best: int, seed: int) -> float:
    """Chance that the `best` of S columns of paired differences looks so good: one-sided p, corrected for all of them.

    Signs are flipped a whole query at a time, so that what settings have in common stays (Westfall and Young's maximum
    test).
    """
    size_S = np.sqrt((differences_QS**2).sum(0))
    scaled_QS = differences_QS / np.where(size_S > 0, size_S, 1.0)
    signs_RQ = np.random.default_rng(seed).choice([-1.0, 1.0], (DRAWS, len(differences_QS)))
    largest_R = (signs_RQ @ scaled_QS).max(1)
    reached = int((largest_R >= scaled_QS[:, best].sum() - 1e-9).sum())
    return (reached + 1) / (DRAWS + 1)


def _cheapest(dev: Mapping[Setting, NDArray[np.float64]], best: Setting) -> Setting:
    """The best of the lowest layer that holds a setting within one standard error (of the paired differences)."""
    close = {setting: values for setting, values in dev.items() if _is_close(dev[best] - values)}
    lowest = min(setting.layer for setting in close)
    if lowest == best.layer:
        return best
    return max(
        (setting for setting in close if setting.layer == lowest), key=lambda setting: float(close[setting].mean())
    )


def _is_close(behind_Q: NDArray[np.float64]) -> bool:
    """Whether paired differences are on average no more than one standard error above zero."""
    if len(behind_Q) < 2:
        return bool(behind_Q.mean() <= 0)
    return bool(behind_Q.mean() <= behind_Q.std(ddof=1) / np.sqrt(len(behind_Q)))


def means(table_QM: NDArray[np.float64], is_dev: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """Means over the queries of each half: half -> measure -> mean."""
    halves = {"development": table_QM[is_dev], "test": table_QM[~is_dev]}
    return {
        half: {name: float(rows[:, place].mean()) for place, name in enumerate(MEASURES)}
        for half, rows in halves.items()
    }
