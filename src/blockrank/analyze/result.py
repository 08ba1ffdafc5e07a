"""What an analysis found, and its JSON form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockrank.analyze.choice import Choice, Curve, Setting, means
from blockrank.analyze.measures import MEASURES
from blockrank.analyze.readouts import Axes, QualityGrid, Tokens
from blockrank.analyze.settings import AnalysisSettings
from blockrank.analyze.shares import DOCUMENT_PARTS, QUERY_PARTS, AttentionShares
from blockrank.spec import RankSpec

MAIN = MEASURES[0]


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything an analysis found.

    shares: where attention goes without a block pattern. grid: every read-out of every query under the model's own
    pattern; is_dev_Q: which queries are in the development half. values: setting -> (Q, M) measures of the settings
    that were compared. first_stage_QM, ceiling_QM: of the first stage's order and of the best possible one. spec: as
    chosen. notes: what a reader has to know. environment: versions, machine, date.
    """

    model: str
    collection: str
    first_stage: str
    settings: AnalysisSettings
    own: RankSpec | None
    spec: RankSpec
    shares: AttentionShares
    grid: QualityGrid
    is_dev_Q: NDArray[np.bool_]
    values: Mapping[Setting, NDArray[np.float64]]
    curves: tuple[Curve, ...]
    choice: Choice
    first_stage_QM: NDArray[np.float64]
    ceiling_QM: NDArray[np.float64]
    notes: tuple[str, ...]
    environment: Mapping[str, Any]

    def figures(self) -> dict[str, dict[str, dict[str, float]]]:
        """The settings that matter, between the first stage and the ceiling: name -> half -> measure -> mean."""
        tables = {"first stage": self.first_stage_QM}
        tables |= {name: self.values[setting] for name, setting in self.named_settings().items()}
        tables["ceiling of the candidates"] = self.ceiling_QM
        return {name: means(table_QM, self.is_dev_Q) for name, table_QM in tables.items()}

    def named_settings(self) -> dict[str, Setting]:
        """The settings behind the names of `figures`."""
        choice = self.choice
        own = {"own setting": choice.own} if choice.own is not None else {}
        return own | {
            "middle layer, last token": choice.baseline,
            "lowest layer within one standard error": choice.cheapest,
            "best on the development half": choice.best,
            "chosen": choice.chosen,
        }

    def layer_by_token(self, half: str = "development", measure: str = MAIN) -> NDArray[np.float64]:
        """(L, T) means of all heads together; NaN where fewer than half of the queries have such a token."""
        return _mean(self.grid.pooled_QMLT[self._half(half), MEASURES.index(measure)])

    def layer_by_head(self, tokens: Tokens, half: str = "development", measure: str = MAIN) -> NDArray[np.float64]:
        """(L, N) means of each head at one set of signal tokens."""
        column = self.grid.axes.column(tokens)
        return _mean(self.grid.heads_QMLNT[self._half(half), MEASURES.index(measure), :, :, column])

    def _half(self, half: str) -> NDArray[np.bool_]:
        assert half in ("development", "test"), half
        return self.is_dev_Q if half == "development" else ~self.is_dev_Q

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; a value that does not exist is None."""
        found: dict[str, Any] = {
            "model": self.model,
            "collection": self.collection,
            "first_stage": self.first_stage,
            "settings": asdict(self.settings),
            "environment": dict(self.environment),
            "notes": list(self.notes),
            "queries": {"development": int(self.is_dev_Q.sum()), "test": int((~self.is_dev_Q).sum())},
            "own_spec": self.own.to_dict() if self.own is not None else None,
            "chosen_spec": self.spec.to_dict(),
            "choice": self._choice_dict(),
            "attention": _shares_dict(self.shares),
            "quality": self._quality_dict(),
            "head_subsets": [self._curve_dict(curve) for curve in self.curves],
        }
        return {key: _plain(value) for key, value in found.items()}

    def _choice_dict(self) -> dict[str, Any]:
        settings = {name: asdict(setting) for name, setting in self.named_settings().items()}
        return {
            "rule": self.choice.rule,
            "p": self.choice.p,
            "settings_tried": len(self.values),
            "settings": settings,
            "figures": self.figures(),
        }

    def _curve_dict(self, curve: Curve) -> dict[str, Any]:
        subsets = [
            {"heads": setting.heads, **means(self.values[setting], self.is_dev_Q)} for setting in curve.settings
        ]  # fmt: skip
        return {"layer": curve.layer, "tokens": curve.tokens, "subsets": subsets}

    def _quality_dict(self) -> dict[str, Any]:
        axes: Axes = self.grid.axes
        halves = ("development", "test")
        return {
            "layers": axes.layers,
            "heads": axes.heads,
            "columns": column_names(axes),
            "pooled": {half: {name: self.layer_by_token(half, name) for name in MEASURES} for half in halves},
            "heads_apart": {
                half: {MAIN: np.moveaxis(_mean(self.grid.heads_QMLNT[self._half(half), 0]), 2, 0)} for half in halves
            },
            "axes": {"pooled": ["layer", "column"], "heads_apart": ["column", "layer", "head"]},
        }


def column_names(axes: Axes) -> list[str]:
    """What each column of the grid reads: `-1` is the last token; `last 2` and `all` are sets."""
    return [*(str(-1 - place) for place in range(axes.singles)), *(set_name(tokens) for tokens in axes.sets)]


def set_name(tokens: Tokens) -> str:
    """A set of signal tokens in words."""
    return "all" if tokens == "query" else f"last {tokens}"


def setting_name(setting: Setting) -> str:
    """A setting in words."""
    tokens = {"query": "all query tokens", 1: "last token"}.get(setting.tokens, f"last {setting.tokens} tokens")
    heads = "all heads" if setting.heads is None else f"{len(setting.heads)} head{'s' * (len(setting.heads) != 1)}"
    return f"layer {setting.layer}, {tokens}, {heads}"


def _mean(values_QX: NDArray[np.float32]) -> NDArray[np.float64]:
    """Means over queries, NaN where fewer than half of them have a value."""
    known_X = (~np.isnan(values_QX)).sum(0)
    total_X = np.nansum(values_QX, 0, dtype=np.float64)
    return np.where(known_X * 2 >= max(1, len(values_QX)), total_X / np.maximum(known_X, 1), np.nan)


def _shares_dict(shares: AttentionShares) -> dict[str, Any]:
    def table(values: NDArray[np.float64], names: tuple[str, ...]) -> dict[str, Any]:
        return {name: values[..., place] for place, name in enumerate(names)}

    each, tokens = ("relevant document", "other candidate"), ("document tokens", "query tokens")
    return {
        "document_tokens": table(shares.document_LF, DOCUMENT_PARTS),
        "query_tokens": table(shares.query_LF, QUERY_PARTS),
        "query_tokens_per_document": table(shares.per_document_L2, each),
        "most_read_hundredth": table(shares.top_L2, tokens),
        "uniform": {
            "document_tokens": table(shares.uniform_document_F, DOCUMENT_PARTS),
            "query_tokens": table(shares.uniform_query_F, QUERY_PARTS),
            "query_tokens_per_document": table(shares.uniform_per_document_2, each),
            "most_read_hundredth": table(shares.uniform_top_2, tokens),
        },
        "positions": {name: shares.positions.count(name) for name in ("continuing", "restarting")},
        "prompts": len(shares.positions),
        "tokens": list(shares.tokens),
    }


def _plain(value: Any) -> Any:
    """Arrays as lists, numbers that are none as None; six digits are enough."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return round(float(value), 6) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
