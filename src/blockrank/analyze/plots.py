"""The pictures of an analysis, as PNG: attention by layer, maps of the read-outs, subsets of heads, depth of evidence.

Colours are told apart by colour-blind readers; the maps' scale is cividis.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blockrank.analyze.measures import MEASURES
from blockrank.analyze.result import MAIN, Analysis, column_names, setting_name
from blockrank.analyze.shares import DOCUMENT_PARTS, QUERY_PARTS
from blockrank.report.page import PALETTE
from blockrank.types import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.0  # inches
_DPI = 150
_SMALL = 9
_GREY, _DARK, _LINE = "#6e7781", "#24292f", "#e3e7eb"
_BEST = "#d55e00"
_PARTS = {
    "own document": "#0072b2",
    "relevant documents": "#0072b2",
    "other documents": "#56b4e9",
    "other candidates": "#56b4e9",
    "instruction": "#e69f00",
    "query": "#9aa0a6",
}
_MARKERS = "osD^v"
_TICKS = 16  # with a label on one axis
_WRITTEN = (12, 26)  # rows and columns of a map whose cells have room for their values

Place = tuple[int, int]  # row and column of a map


def pictures(analysis: Analysis) -> dict[str, bytes]:
    """File name -> PNG. Raises `MissingExtraError` without matplotlib."""
    return {
        "attention.png": attention(analysis),
        "evidence.png": evidence(analysis),
        "tokens.png": tokens(analysis),
        "heads.png": heads(analysis),
        "head-subsets.png": head_subsets(analysis),
    }


def require_matplotlib() -> None:
    """Raise `MissingExtraError` where no picture could be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("an analysis draws pictures with matplotlib: pip install 'blockrank[eval]'.") from error


def _png(width: float, height: float, draw: Callable[[Figure], None]) -> bytes:
    """A picture of `width` x `height` inches, drawn on a figure of its own; the same bytes each time."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    draw(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()


# Attention by layer


def attention(analysis: Analysis) -> bytes:
    """Shares of attention of document and query tokens by layer, beside uniform attention, and its concentration."""
    shares = analysis.shares

    def draw(figure: Figure) -> None:
        grid = figure.add_gridspec(2, 2, height_ratios=(1.45, 1))
        left = figure.add_subplot(grid[0, 0])
        right = figure.add_subplot(grid[0, 1], sharey=left)
        _stack(left, shares.document_LF, shares.uniform_document_F, DOCUMENT_PARTS, "from tokens of documents")
        _stack(right, shares.query_LF, shares.uniform_query_F, QUERY_PARTS, "from tokens of the query segment")
        left.set_ylabel("share of attention")
        _concentration(figure.add_subplot(grid[1, :]), analysis)

    return _png(WIDTH, 6.6, draw)


def _stack(
    axes: Axes, table_LF: NDArray[np.float64], uniform_F: NDArray[np.float64], names: Sequence[str], title: str
) -> None:
    """Stacked bars, one per layer, and one of uniform attention set apart on the right."""
    layers = len(table_LF)
    gap = max(1.6, layers * 0.1)
    places = np.append(np.arange(layers), layers - 1 + gap)
    values = np.concatenate([table_LF, uniform_F[None]])
    widths = np.append(np.full(layers, 0.92), max(0.92, layers * 0.05))
    bottom = np.zeros(layers + 1)
    for place, name in enumerate(names):
        if values[:, place].max() < 5e-4:  # such as an instruction the prompt does not have
            continue
        axes.bar(places, values[:, place], widths, bottom, color=_PARTS[name], label=name, linewidth=0)
        bottom += values[:, place]
    shown = _shown(layers, _TICKS // 2)
    axes.set_xticks([*shown, places[-1]], [*map(str, shown), "uniform"], fontsize=_SMALL)
    axes.set(ylim=(0, 1), xlabel="layer")
    axes.set_title(title, fontsize=11, loc="left", pad=38)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, fontsize=_SMALL, frameon=False,
        handlelength=1.1, columnspacing=1.2, borderaxespad=0.2,
    )  # fmt: skip
    _plain(axes)


def _concentration(axes: Axes, analysis: Analysis) -> None:
    shares = analysis.shares
    layers = np.arange(len(shares.top_L2))
    for place, name in enumerate(("document tokens", "query tokens")):
        colour = PALETTE[place]
        axes.plot(layers, shares.top_L2[:, place], f"{_MARKERS[place]}-", color=colour, label=f"from {name}", ms=5)
    uniform = float(shares.uniform_top_2.mean())
    axes.axhline(uniform, linestyle=":", color=_GREY, label="uniform attention")
    axes.set_xticks(_shown(len(layers)))
    axes.tick_params(labelsize=_SMALL)
    axes.set(ylim=(0, max(0.05, 1.08 * float(shares.top_L2.max()))), xlabel="layer", ylabel="share of attention")
    axes.set_title("to the most-read 1 % of the tokens", fontsize=11, loc="left", pad=22)
    axes.legend(
        fontsize=_SMALL, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2
    )  # fmt: skip
    axes.grid(visible=True, axis="y", color=_LINE)
    _plain(axes)


# Depth of evidence


def evidence(analysis: Analysis) -> bytes:
    """By layer: how well its read-out ranks, and how much more attention a relevant document gets than uniform."""
    chosen = analysis.choice.chosen
    column = analysis.grid.axes.column(chosen.tokens)
    together_L = analysis.layer_by_token()[:, column]
    single_L = analysis.layer_by_head(chosen.tokens).max(1)
    first = float(analysis.first_stage_QM[analysis.is_dev_Q, MEASURES.index(MAIN)].mean())
    ratio_L2 = analysis.shares.per_document_L2 / analysis.shares.uniform_per_document_2
    layers = np.arange(len(together_L))

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.35, 1))
        upper.plot(layers, together_L, "o-", color=PALETTE[0], label="all heads together", ms=5)
        upper.plot(layers, single_L, "s-", color=PALETTE[1], label="best single head", ms=5)
        upper.axhline(first, linestyle=":", color=_GREY, linewidth=2, label="first stage")
        upper.set_ylabel(f"{MAIN} of the read-out")
        for place, name in enumerate(("a relevant document", "another candidate")):
            lower.plot(
                layers, ratio_L2[:, place], f"{_MARKERS[place + 2]}-", color=PALETTE[place + 2], label=name, ms=5
            )
        lower.axhline(1, linestyle=":", color=_GREY, linewidth=2, label="uniform attention")
        lower.set(xlabel="layer", ylabel="attention of the query\nsegment, times uniform")
        lower.set_xticks(_shown(len(layers)))
        # No difference of a few per cent should look like one of a few times.
        lower.set_ylim(min(0.7, 0.95 * float(ratio_L2.min())), max(1.3, 1.05 * float(ratio_L2.max())))
        for axes in (upper, lower):
            axes.axvspan(
                chosen.layer - 0.3, chosen.layer + 0.3, color=_LINE, zorder=0,
                label="chosen layer" if axes is upper else None,
            )  # fmt: skip
            axes.grid(visible=True, axis="y", color=_LINE)
            axes.tick_params(labelsize=_SMALL)
            axes.legend(
                fontsize=_SMALL, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2
            )  # fmt: skip
            _plain(axes)
        figure.align_ylabels([upper, lower])

    return _png(WIDTH, 5.4, draw)


# Maps


def tokens(analysis: Analysis) -> bytes:
    """Layer x signal tokens, all heads together: single tokens in reading order, then sets of last tokens."""
    grid_axes, chosen = analysis.grid.axes, analysis.choice.chosen
    table_LT, names = analysis.layer_by_token(), column_names(analysis.grid.axes)
    singles, sets = slice(grid_axes.singles - 1, None, -1), slice(grid_axes.singles, None)
    limits = (float(np.nanmin(table_LT)), float(np.nanmax(table_LT)))
    best = _best(table_LT[:, sets])

    def draw(figure: Figure) -> None:
        ratios = (grid_axes.singles, len(grid_axes.sets))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=ratios)
        for axes, part, label in (
            (left, singles, "one token, counted from the end of the query segment"),
            (right, sets, "sets of last tokens"),
        ):
            image = _map(axes, table_LT[:, part], limits)
            shown = _shown(table_LT[:, part].shape[1])
            axes.set_xticks(shown, [names[part][place] for place in shown], rotation=90)
            axes.set_xlabel(label)
        left.set_ylabel("layer")
        right.tick_params(axis="y", length=0)
        _outline(right, best, f"best: {table_LT[:, sets][best]:.3f} (layer {best[0]}, {names[sets][best[1]]})")
        _mark(right, [(chosen.layer, grid_axes.sets.index(chosen.tokens))])
        _bar(figure, [left, right], image)
        figure.legend(loc="outside upper left", ncols=2, fontsize=_SMALL, frameon=False)

    return _png(WIDTH, _map_height(len(table_LT), 2.3), draw)


def heads(analysis: Analysis) -> bytes:
    """Layer x head at the chosen signal tokens, each head alone."""
    chosen = analysis.choice.chosen
    map_LN = analysis.layer_by_head(chosen.tokens)
    best = _best(map_LN)
    read = range(map_LN.shape[1]) if chosen.heads is None else chosen.heads

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        image = _map(axes, map_LN, (float(map_LN.min()), float(map_LN.max())))
        axes.set_xticks(_shown(map_LN.shape[1]))
        axes.set(xlabel=f"head, read alone ({setting_name(chosen).split(', ')[1]})", ylabel="layer")
        _outline(axes, best, f"best: {map_LN[best]:.3f} (layer {best[0]}, head {best[1]})")
        _mark(axes, [(chosen.layer, head) for head in read])
        _bar(figure, [axes], image)
        figure.legend(loc="outside upper left", ncols=2, fontsize=_SMALL, frameon=False)

    return _png(WIDTH, _map_height(len(map_LN), 1.7), draw)


def _map_height(rows: int, frame: float) -> float:
    return frame + min(6.0, max(1.6, 0.36 * rows))


def _best(map_RX: NDArray[np.float64]) -> Place:
    row, column = np.unravel_index(int(np.nanargmax(map_RX)), map_RX.shape)
    return int(row), int(column)


def _map(axes: Axes, map_RX: NDArray[np.float64], limits: tuple[float, float]) -> Any:
    """A heat map of layers (rows); few cells hold their values, light on dark and dark on light."""
    image = axes.imshow(
        map_RX, cmap="cividis", aspect="auto", interpolation="nearest", vmin=limits[0], vmax=limits[1]
    )  # fmt: skip
    rows, columns = map_RX.shape
    if rows <= _WRITTEN[0] and columns <= _WRITTEN[1]:
        for (row, column), value in np.ndenumerate(map_RX):
            if math.isfinite(value):
                text = f"{value:.2f}".removeprefix("0")
                colour = "white" if value < sum(limits) / 2 else _DARK
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_yticks(_shown(rows))
    axes.tick_params(labelsize=_SMALL)
    return image


def _bar(figure: Figure, axes: Sequence[Axes], image: Any) -> None:
    aspect = 5 * figure.get_figheight()  # as high as the map, and always as thin
    figure.colorbar(image, ax=axes, pad=0.015, fraction=0.05, aspect=aspect).set_label(f"{MAIN}, development half")


def _mark(axes: Axes, places: Sequence[Place]) -> None:
    """Small triangles in what was chosen."""
    across, down = [column for _, column in places], [row - 0.33 for row, _ in places]
    axes.plot(across, down, "v", color="white", markeredgecolor=_DARK, ms=5, label="chosen", ls="none")


def _outline(axes: Axes, place: Place, label: str) -> None:
    from matplotlib.patches import Rectangle

    row, column = place
    corner = (column - 0.5, row - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=_BEST, linewidth=2.4, label=label, clip_on=False))


# Subsets of heads


def head_subsets(analysis: Analysis) -> bytes:
    """Quality of the best 1, 2, 4, ... heads of the most promising layers, on both halves."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        total = analysis.grid.axes.heads
        place_of = MEASURES.index(MAIN)
        for place, curve in enumerate(analysis.curves):
            colour, marker = PALETTE[place % len(PALETTE)], _MARKERS[place % len(_MARKERS)]
            sizes = [total if setting.heads is None else len(setting.heads) for setting in curve.settings]
            for half, style in ((analysis.is_dev_Q, "-"), (~analysis.is_dev_Q, "--")):
                values = [float(analysis.values[setting][half, place_of].mean()) for setting in curve.settings]
                label = setting_name(curve.settings[-1]).removesuffix(", all heads") if style == "-" else None
                axes.plot(sizes, values, marker + style, color=colour, label=label, ms=5, alpha=1 if label else 0.65)
        _star(axes, analysis)
        axes.plot([], [], "-", color=_GREY, label="development half")
        axes.plot([], [], "--", color=_GREY, label="test half")
        _size_axis(
            axes, [len(setting.heads or range(total)) for curve in analysis.curves for setting in curve.settings]
        )
        axes.set(xlabel="heads read together, the best of the development half first (log scale)", ylabel=MAIN)
        axes.grid(visible=True, axis="y", color=_LINE)
        axes.legend(fontsize=_SMALL, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
        _plain(axes)

    return _png(WIDTH, 4.4, draw)


def _star(axes: Axes, analysis: Analysis) -> None:
    """What was chosen, where it is on a curve."""
    chosen = analysis.choice.chosen
    if any(chosen in curve.settings for curve in analysis.curves):
        size = analysis.grid.axes.heads if chosen.heads is None else len(chosen.heads)
        value = float(analysis.values[chosen][analysis.is_dev_Q, MEASURES.index(MAIN)].mean())
        axes.plot([size], [value], "*", color="white", mec=_DARK, ms=14, label="chosen", zorder=5, ls="none")


def _size_axis(axes: Axes, sizes: Sequence[int]) -> None:
    ticks = sorted(set(sizes))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) if tick < ticks[-1] else f"{tick} (all)" for tick in ticks], fontsize=_SMALL)
    axes.minorticks_off()


def _shown(count: int, most: int = _TICKS) -> list[int]:
    """Places that get a label, so that there are not too many."""
    return list(range(0, count, max(1, math.ceil(count / most))))


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
