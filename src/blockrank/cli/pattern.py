"""The block pattern of a packed layout: which segment reads which, as a matrix, as text and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from blockrank.types import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from blockrank.layout import PackedLayout

UNREAD, WHOLE, UP_TO_ITSELF, SCORED = 0, 1, 2, 3
_SIGNS = {UNREAD: "·", WHOLE: "█", UP_TO_ITSELF: "▙", SCORED: "░"}
_DRAWN = 24  # segments drawn as text; more leave the middle out
_LEGEND = "█ reads all of it   ▙ each token reads up to itself   ░ at the scoring layer alone   · does not read it"

Blocks = NDArray[np.int8]


def blocks(layout: PackedLayout) -> Blocks:
    """(S, S): how the row's segment reads the column's. Segments without tokens read nothing and are not read.

    Every document is read by its query: below the scoring layer already, or there alone.
    """
    starts, ends = layout.starts_S + layout.cached_rows, layout.ends_S + layout.cached_rows
    filled = ends > starts
    matrix = np.full((len(starts), len(starts)), UNREAD, dtype=np.int8)
    for segment in np.flatnonzero(filled):
        first, last = layout.read_offsets_S1[segment], layout.read_offsets_S1[segment + 1]
        for row_start, row_end in layout.reads_R2[first:last]:
            matrix[segment, filled & (starts >= row_start) & (ends <= row_end)] = WHOLE
        matrix[segment, segment] = UP_TO_ITSELF if layout.causal_S[segment] else WHOLE
    queries = layout.query_segment_B[layout.document_request_C]
    scored = matrix[queries, layout.document_segment_C]
    matrix[queries, layout.document_segment_C] = np.where(scored == UNREAD, SCORED, scored)
    return matrix


def pairs_read(layout: PackedLayout) -> int:
    """How many (token, row) pairs attention computes in one layer."""
    lengths = layout.ends_S - layout.starts_S
    _, counts = layout.key_rows(np.arange(len(lengths)))
    unread = np.where(layout.causal_S, lengths * (lengths - 1) // 2, 0)
    return int((lengths * counts - unread).sum())


def draw(matrix: Blocks, names: Sequence[str]) -> str:
    """The matrix as text, one row per segment; the middle is left out where there are many."""
    size = len(names)
    shown = list(range(size)) if size <= _DRAWN else [*range(_DRAWN - 6), *range(size - 6, size)]
    gap = None if size <= _DRAWN else _DRAWN - 6
    width = max(len(name) for name in names)
    lines = []
    for place, row in enumerate(shown):
        signs = [_SIGNS[int(matrix[row, column])] for column in shown]
        if gap is not None:
            signs.insert(gap, "…")
        if place == gap:
            lines.append(f"{'…':>{width}}  ({size - len(shown)} segments are not drawn)")
        lines.append(f"{names[row]:>{width}}  {' '.join(signs)}")
    return "\n".join([*lines, "", _LEGEND])


def save_png(layout: PackedLayout, names: Sequence[str], stream: BinaryIO) -> None:
    """The pattern to scale, one unit per token, as a PNG picture. Raises `MissingExtraError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("a picture needs matplotlib: install blockrank[plot].") from error
    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.add_subplot()
    _shapes(axes, layout)
    axes.set(xlim=(0, layout.tokens), ylim=(layout.tokens, 0), aspect="equal", xlabel="read", ylabel="reads")
    centres, step = (layout.starts_S + layout.ends_S) / 2, max(1, len(names) // 20)
    axes.set_yticks(centres[::step], names[::step], fontsize=7)
    axes.set_xticks(centres[::step], names[::step], fontsize=7, rotation=90)
    figure.savefig(stream, format="png", dpi=150)


def _shapes(axes: Axes, layout: PackedLayout) -> None:
    """A rectangle for each block, a triangle where tokens read up to themselves."""
    from matplotlib.patches import Polygon, Rectangle

    colours = {"instruction": "#7f7f7f", "document": "#1f77b4", "query": "#d62728"}
    matrix = blocks(layout)
    for row, column in np.argwhere(matrix != UNREAD):
        x, y = layout.starts_S[column], layout.starts_S[row]
        right, bottom = layout.ends_S[column], layout.ends_S[row]
        colour = colours[layout.kinds_S[row]]
        if matrix[row, column] == UP_TO_ITSELF:
            axes.add_patch(Polygon([(x, y), (x, bottom), (right, bottom)], facecolor=colour))
        else:
            alpha = 0.25 if matrix[row, column] == SCORED else 0.75
            axes.add_patch(Rectangle((x, y), right - x, bottom - y, facecolor=colour, alpha=alpha))
