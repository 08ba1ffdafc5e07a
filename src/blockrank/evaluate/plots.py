"""The figures of an evaluation: SVG pictures of the main measure, which is an evaluation's first.

A system `label@depth` belongs to the line of its label. Each function leaves out what has no finite value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
from numpy.typing import NDArray

from blockrank.evaluate.results import CollectionResult, EvaluationResult, SystemResult
from blockrank.report.page import PALETTE, picture, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.0  # inches
_GREY, _DARK = "#6e7781", "#24292f"
_WON, _LOST = PALETTE[0], PALETTE[1]
_MARKERS = "osD^vPX"  # not a multiple of the palette: colour and marker together repeat after 42 systems
_LABELLED = 12  # ticks with a label on one axis
_SMALL = {"textcoords": "offset points", "fontsize": 9, "color": _GREY, "ha": "center"}

Looks = Mapping[str, tuple[str, str]]  # label -> colour and marker, the same in every figure


def label_of(system: SystemResult) -> str:
    """A system's name without its depth: `mini` of `mini@100`."""
    return system.name.removesuffix(f"@{system.depth}")


def lines(collection: CollectionResult) -> dict[str, list[SystemResult]]:
    """The rerankers by label, each at its depths from the smallest to the largest."""
    found: dict[str, list[SystemResult]] = {}
    for system in collection.systems[1:]:
        found.setdefault(label_of(system), []).append(system)
    return {label: sorted(systems, key=lambda system: system.depth) for label, systems in found.items()}


def deepest(collection: CollectionResult) -> dict[str, SystemResult]:
    """Label -> the system of that label that reranks the most candidates."""
    return {label: systems[-1] for label, systems in lines(collection).items()}


def looks(result: EvaluationResult) -> Looks:
    """A colour and a marker for every label of the evaluation."""
    labels = dict.fromkeys(label for collection in result.collections for label in lines(collection))
    return {
        label: (PALETTE[place % len(PALETTE)], _MARKERS[place % len(_MARKERS)]) for place, label in enumerate(labels)
    }


def differences(collection: CollectionResult, measure: str) -> bytes | None:
    """Per query, each reranker at its largest depth minus the first stage, sorted; a panel for each label."""
    panels = [
        (system, values)
        for system in deepest(collection).values()
        if len(values := changes(collection, system, measure))
    ]
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)

    def draw(figure: Figure) -> None:
        reach = 1.08 * max(max(float(np.abs(values).max()) for _, values in panels), 0.05)
        figure.get_layout_engine().set(wspace=0.06, hspace=0.06)
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes, (system, values) in zip(grid, panels, strict=False):
            _sorted_bars(axes, values, _tally(collection, system))
            axes.set_ylim(-reach, reach)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        figure.supylabel(f"{short(measure)} minus {short(collection.first_stage)}", fontsize=11)
        figure.supxlabel("queries, from the greatest gain to the greatest loss", fontsize=11)

    return picture(WIDTH, 0.9 + 2.3 * rows, draw, extra="eval")


def changes(collection: CollectionResult, system: SystemResult, measure: str) -> NDArray[np.float64]:
    """Per query, the system's value minus the first stage's, greatest first."""
    first = collection.systems[0].per_query
    values = [found[measure] - first[query_id][measure] for query_id, found in system.per_query.items()]
    finite = np.asarray([value for value in values if math.isfinite(value)])
    return np.sort(finite)[::-1]


def _tally(collection: CollectionResult, system: SystemResult) -> str:
    """A panel's title: the system and its wins, losses and ties, as its comparison counts them."""
    found = collection.against_first_stage(system.name)
    if found is None:
        return short(system.name)
    return f"{short(system.name)}\n{found.wins} better, {found.losses} worse, {found.ties} equal"


def _sorted_bars(axes: Axes, values: NDArray[np.float64], title: str) -> None:
    """One bar per query as two filled steps: thousands of queries cost two shapes."""
    edges = np.arange(len(values) + 1)
    for colour, part in ((_WON, np.maximum(values, 0)), (_LOST, np.minimum(values, 0))):
        axes.fill_between(edges, np.append(part, part[-1]), step="post", color=colour, linewidth=0)
    axes.axhline(0, color=_DARK, linewidth=0.8)
    axes.set_title(title, loc="left")
    axes.set_xlim(0, len(values))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=False, axis="x")


def depths(collection: CollectionResult, measure: str, look: Looks) -> bytes | None:
    """Quality against the number of candidates, a line for each label; None where there are not two depths."""
    marks = sorted({system.depth for systems in lines(collection).values() for system in systems})
    if len(marks) < 2:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ceiling = {depth: values[measure] for depth, values in sorted(collection.ceilings.items()) if depth in marks}
        if ceiling:
            axes.plot(list(ceiling), list(ceiling.values()), "--", color=_DARK, linewidth=1.2, label="ceiling")
        for label, systems in lines(collection).items():
            colour, marker = look[label]
            values = [system.measures[measure] for system in systems]
            axes.plot([system.depth for system in systems], values, f"{marker}-", color=colour, label=short(label))
        _first_stage_line(axes, collection, measure)
        _log_axis(axes, marks, 1.25, marks if len(marks) <= _LABELLED else None)
        axes.set(xlabel="candidates reranked per query (log scale)", ylabel=short(measure))
        _legend(figure, axes)

    return picture(WIDTH, 4.2, draw, extra="eval")


def latencies(collection: CollectionResult, measure: str, look: Looks) -> bytes | None:
    """Quality against latency, a point for each system; None where fewer than two were timed.

    A latency of zero has no place on a logarithmic axis and is left out.
    """
    points = {
        label: timed
        for label, systems in lines(collection).items()
        if (timed := [(system.latency_ms, system) for system in systems if _is_drawable(system.latency_ms)])
    }
    if sum(map(len, points.values())) < 2:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for label, timed in points.items():
            colour, marker = look[label]
            x, y = [latency for latency, _ in timed], [system.measures[measure] for _, system in timed]
            axes.plot(x, y, f"{marker}-", color=colour, linewidth=1, markersize=8, label=short(label))
            for place, (_, system) in enumerate(timed):
                if system.name != label:
                    axes.annotate(f"@{system.depth}", (x[place], y[place]), (0, 8), **_SMALL)
        _first_stage_line(axes, collection, measure)
        _log_axis(axes, [latency for timed in points.values() for latency, _ in timed], 1.6)
        axes.set(xlabel="median latency of one request in ms (log scale)", ylabel=short(measure))
        axes.margins(y=0.12)
        _legend(figure, axes)

    return picture(WIDTH, 4.2, draw, extra="eval")


def _is_drawable(latency_ms: float | None) -> TypeGuard[float]:
    return latency_ms is not None and math.isfinite(latency_ms) and latency_ms > 0


def overview(result: EvaluationResult, look: Looks) -> bytes:
    """A row for each collection: the first stage, each label at its largest depth, and the ceiling."""
    measure, collections = result.measures[0], result.collections

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, collection in enumerate(collections):
            axes.axhline(row, color="#e3e7eb", linewidth=1, zorder=0)
            _draw_row(axes, row, collection, measure, look)
        axes.set_yticks(range(len(collections)), [short(collection.name, 24) for collection in collections])
        axes.set_ylim(len(collections) - 0.5, -0.5)
        axes.set_xlabel(f"{short(measure)} (mean over the collection's queries)")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        _legend(figure, axes)

    height = 1.5 + len(collections) * max(0.42, 0.13 * len(look))
    return picture(WIDTH, height, draw, extra="eval")


def _draw_row(axes: Axes, row: int, collection: CollectionResult, measure: str, look: Looks) -> None:
    """The points of one collection; the rerankers stand a little above each other, so that none hides another."""

    def point(value: float, place: float, label: str, **style: object) -> None:
        if math.isfinite(value):
            axes.plot([value], [place], linestyle="none", label=label, **style)

    first = collection.systems[0]
    point(first.measures[measure], row, _first_name(collection), marker="o", color=_GREY, markersize=9, mfc="white")
    if collection.ceilings:
        best = collection.ceilings[max(collection.ceilings)][measure]
        point(best, row, "ceiling", marker="|", color=_DARK, markersize=13, mew=2)
    labels = list(look)
    for label, system in deepest(collection).items():
        offset = 0.0 if len(labels) == 1 else 0.5 * (labels.index(label) / (len(labels) - 1) - 0.5)
        colour, marker = look[label]
        point(system.measures[measure], row + offset, short(label), marker=marker, color=colour, markersize=7)


def _first_name(collection: CollectionResult) -> str:
    return f"first stage ({short(collection.first_stage, 20)})"


def _first_stage_line(axes: Axes, collection: CollectionResult, measure: str) -> None:
    value = collection.systems[0].measures[measure]
    if math.isfinite(value):
        axes.axhline(value, linestyle=":", color=_GREY, linewidth=2, label=_first_name(collection))


def _log_axis(axes: Axes, values: Sequence[float], room: float, ticks: Sequence[float] | None = None) -> None:
    """A logarithmic x axis with plain numbers at `ticks`, else at 1, 2 and 5 times the powers of ten.

    room: left and right of the values, as a factor.
    """
    low, high = min(values) / room, max(values) * room
    if ticks is None:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
        ticks = [step * 10.0**power for power in powers for step in ((1, 2, 5) if len(powers) < 4 else (1,))]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,.{max(0, -math.floor(math.log10(tick)))}f}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(low, high)


def _legend(figure: Figure, axes: Axes) -> None:
    """Everything that is drawn once, above the axes: in one line where it fits. Shortened names may be the same."""
    once = {
        (label, handle.get_color(), handle.get_marker()): handle
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    labels = [label for label, *_ in once]
    widths = [6.5 * len(label) + 45 for label in labels]  # about, in points
    room = 72 * WIDTH - 20
    columns = len(labels) if sum(widths) < room else max(1, int(room / max(widths)))
    figure.legend(list(once.values()), labels, loc="outside upper left", ncols=max(1, columns))
