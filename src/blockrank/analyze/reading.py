"""The forwards of an analysis under the model's own pattern: two over the development half, one over the test half."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from blockrank.analyze.choice import Curve, Setting, SettingReader, Values, finalists, head_subsets
from blockrank.analyze.judged import JudgedRequest
from blockrank.analyze.loading import Analysed
from blockrank.analyze.measures import MEASURES
from blockrank.analyze.readouts import Axes, GridReader, QualityGrid, token_sets
from blockrank.engine.capture import LayerCapture, Wanted
from blockrank.layout import PackedLayout, TokenisedRequest, pack
from blockrank.types.progress import NamedProgress


class ReadoutSweep:
    """Reads judged requests out: first every layer, token and head of the development half, from which it follows what
    deserves a closer look; then that, together with the test half.

    grid: filled query by query, NaN before. own: the checkpoint's setting.
    """

    def __init__(
        self,
        analysed: Analysed,
        judged: Sequence[JudgedRequest],
        tokenised: Sequence[TokenisedRequest],
        single_tokens: int,
    ) -> None:
        self._analysed, self._judged, self._tokenised = analysed, judged, tokenised
        self._spec = analysed.base.changed(signal_tokens="query", heads=None)
        self.own = Setting.of(analysed.own) if analysed.own is not None else None
        lengths = [request.segments[-1].signal_end for request in tokenised]
        sets = token_sets(lengths, self.own.tokens if self.own is not None else None)
        axes = Axes(analysed.layers, analysed.heads, min(single_tokens, max(lengths)), sets)
        shape = (len(judged), len(MEASURES), axes.layers)
        self.grid = QualityGrid(
            axes,
            np.full((*shape, axes.columns), np.nan, dtype=np.float32),
            np.full((*shape, axes.heads, axes.columns), np.nan, dtype=np.float32),
        )

    def development(self, is_dev: NDArray[np.bool_], progress: NamedProgress) -> tuple[Curve, ...]:
        """Fill the development half of the grid; returns the subsets of heads worth measuring."""
        queries = np.flatnonzero(is_dev).tolist()
        for done, query in enumerate(queries, start=1):
            self._read_grid(query, [])
            progress("every layer, token and head", done, len(queries))
        found = finalists(self.grid, is_dev, self.own)
        return tuple(head_subsets(self.grid, is_dev, item.layer, item.tokens) for item in found)

    def rest(self, is_dev: NDArray[np.bool_], curves: Sequence[Curve], progress: NamedProgress) -> Values:
        """Fill the test half of the grid; returns the values of the curves' settings, and of the checkpoint's own, by
        the real read-out."""
        own = [] if self.own is None else [self.own]
        settings = list(dict.fromkeys([*own, *(setting for curve in curves for setting in curve.settings)]))
        tables = []
        for query, known in enumerate(is_dev):
            tables.append(self._read_settings(query, settings) if known else self._read_grid(query, settings))
            progress("chosen settings", query + 1, len(is_dev))
        return dict(zip(settings, np.stack(tables, 1), strict=True))

    def _read_grid(self, query: int, settings: Sequence[Setting]) -> NDArray[np.float64]:
        """Fill the grid of a query; returns (settings, M) measures of some settings by the same forward."""
        layout = self._layout(query)
        grid = GridReader(layout, self._spec, self._judged[query], self.grid.axes)
        reader = SettingReader(layout, self._spec, self._judged[query], settings)
        self._observe(layout, self._analysed.layers - 1, grid, reader)
        self.grid.pooled_QMLT[query], self.grid.heads_QMLNT[query] = grid.pooled_MLT, grid.heads_MLNT
        return reader.values_SM

    def _read_settings(self, query: int, settings: Sequence[Setting]) -> NDArray[np.float64]:
        """(settings, M) measures of one query, by a forward that ends at the highest layer of them."""
        layout = self._layout(query)
        reader = SettingReader(layout, self._spec, self._judged[query], settings)
        self._observe(layout, max(setting.layer for setting in settings), reader)
        return reader.values_SM

    def _observe(self, layout: PackedLayout, last: int, *readers: Callable[[LayerCapture], None]) -> None:
        """Show the layers up to `last` to readers, one after the other: the keys of all would not fit into memory."""

        def show(layer: LayerCapture) -> None:
            for reader in readers:
                reader(layer)

        model = self._analysed.model
        with model.inference():
            model.forward(layout, Wanted(tuple(range(last + 1)), observer=show))

    def _layout(self, query: int) -> PackedLayout:
        return pack([self._tokenised[query]], self._spec)
