"""A layout cut into tiles: the work of the `triton` backend, program by program.

A tile is a few tokens of one segment with all query heads of one key head as its matrix rows. One with many rows to
read (the query segment) is split over them, and its parts are merged afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blockrank.layout import Ints, PackedLayout, ranges_flat

TILE_ROWS = 128  # most matrix rows of a tile: tokens x query heads of a key head
_TILE_BYTES = 1 << 15  # of the queries of a tile, which stay in shared memory
SPLIT_ROWS = 2048  # a tile reads at most so many rows before its own; more are split over several tiles
_COLUMNS = 8  # of the item table: what a tile is, see `Tiles`


@dataclass(frozen=True, slots=True)
class Tiles:
    """The tiles of a layout for one number of tokens per tile.

    items_I8 (int32), one row per tile: first token, tokens, first and last range, first and last own row, whether own
    rows are read causally, and the slot its part goes to (-1: the tile is whole and writes its output itself).
    ranges_R2 (int32): [start, end) rows. merges_M4 (int32), one row per token whose tile was split: the token, its
    first slot, its place in the tile, and how many slots follow each other. tokens: of a full tile. slots: parts in
    all.
    """

    items_I8: Tensor
    ranges_R2: Tensor
    merges_M4: Tensor
    tokens: int
    slots: int


@dataclass(frozen=True, slots=True)
class TileTables:
    """`Tiles` on the host."""

    items_I8: Ints
    ranges_R2: Ints
    merges_M4: Ints
    tokens: int
    slots: int

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """Rows of the tables, tokens of a tile, and slots: what a captured graph depends on."""
        return len(self.items_I8), len(self.ranges_R2), len(self.merges_M4), self.tokens, self.slots

    def padded(self) -> TileTables:
        """The same work in one of a few sizes: rows are repeated, and what is done twice gives the same twice."""
        items, ranges, merges = (_repeated(table) for table in (self.items_I8, self.ranges_R2, self.merges_M4))
        return TileTables(items, ranges, merges, self.tokens, _rounded(self.slots))

    def flat(self) -> NDArray[np.int32]:
        """All tables one after the other."""
        tables = (self.items_I8, self.ranges_R2, self.merges_M4)
        return np.concatenate([table.ravel() for table in tables]).astype(np.int32)

    def on(self, flat: Tensor) -> Tiles:
        """The tables as parts of a tensor that holds what `flat` gives."""
        tables = (self.items_I8, self.ranges_R2, self.merges_M4)
        parts = torch.split(flat, [table.size for table in tables])
        items, ranges, merges = (part.view(table.shape) for part, table in zip(parts, tables, strict=True))
        return Tiles(items, ranges, merges, self.tokens, self.slots)


def _rounded(size: int) -> int:
    """The next power of two; none stays none."""
    return 1 << (size - 1).bit_length() if size else 0


def _repeated(table: Ints) -> Ints:
    return np.pad(table, ((0, _rounded(len(table)) - len(table)), (0, 0)), mode="edge") if len(table) else table


@dataclass(slots=True)
class TilePlan:
    """A layout to be cut into tiles once the heads are known, on the device it runs on. cut: tiles by their tokens."""

    layout: PackedLayout
    device: torch.device
    cut: dict[int, Tiles] = field(default_factory=dict)

    def tiles(self, tokens: int) -> Tiles:
        """Tiles of at most so many tokens; computed once."""
        if tokens not in self.cut:
            tables = cut_tiles(self.layout, tokens)
            self.cut[tokens] = tables.on(torch.from_numpy(tables.flat()).to(self.device, non_blocking=True))
        return self.cut[tokens]


def tile_tokens(heads: int, kv_heads: int, width: int, dtype: torch.dtype) -> int:
    """Tokens of a full tile for heads of a width and a type."""
    rows = min(TILE_ROWS, _TILE_BYTES // (width * dtype.itemsize))
    return max(rows // (heads // kv_heads), 1)


def cut_tiles(layout: PackedLayout, tokens: int) -> TileTables:
    """Tiles of at most so many tokens of a layout, on the host.

    Tiles that read most come first, so that none is left running alone at the end.
    """
    layout = layout.joined()
    long_S = layout.rows_read_S > SPLIT_ROWS
    lengths_S = layout.ends_S - layout.starts_S
    counts_S = -(-lengths_S // tokens)
    segment_I = np.repeat(np.arange(len(lengths_S)), counts_S)
    at_I = ranges_flat(np.zeros_like(counts_S), counts_S) * tokens
    size_I = np.minimum(tokens, lengths_S[segment_I] - at_I)
    own_I = layout.starts_S[segment_I] + layout.cached_rows
    last_I = own_I + np.where(layout.causal_S[segment_I], at_I + size_I, lengths_S[segment_I]) * layout.own_S[segment_I]
    first_range_I, last_range_I = layout.read_offsets_S1[segment_I], layout.read_offsets_S1[segment_I + 1]
    causal_I, whole_I = layout.causal_S[segment_I].astype(np.int64), np.full(len(segment_I), -1)
    first_I = layout.starts_S[segment_I] + at_I
    items = np.stack([first_I, size_I, first_range_I, last_range_I, own_I, last_I, causal_I, whole_I], axis=1)
    split_items, pieces, merges = _split(items[long_S[segment_I]], segment_I[long_S[segment_I]], layout)
    items = np.concatenate([items[~long_S[segment_I]], split_items])
    ranges = np.concatenate([layout.reads_R2, pieces])
    read_before = np.concatenate([[0], np.cumsum(ranges[:, 1] - ranges[:, 0])])
    cost_I = read_before[items[:, 3]] - read_before[items[:, 2]] + items[:, 5] - items[:, 4]
    return TileTables(
        items[np.argsort(-cost_I, kind="stable")], ranges, merges, tokens, int((split_items[:, 7] >= 0).sum())
    )


def _split(items: Ints, segment_I: Ints, layout: PackedLayout) -> tuple[Ints, Ints, Ints]:
    """Split tiles over the rows they read: their items, the pieces of ranges, and the tokens to be merged.

    Every piece is one range; the last part of a tile reads its own rows too.
    """
    split: list[Ints] = []
    merges: list[Ints] = []
    pieces: list[Ints] = []
    offset, slot = len(layout.reads_R2), 0
    for segment in dict.fromkeys(segment_I.tolist()):
        reads = layout.reads_R2[layout.read_offsets_S1[segment] : layout.read_offsets_S1[segment + 1]]
        cut = np.concatenate([_pieces(start, end) for start, end in reads])
        places = np.arange(offset, offset + len(cut))
        for item in items[segment_I == segment]:
            parts = np.repeat(item[None], len(cut), axis=0)
            parts[:, 2], parts[:, 3] = places, places + 1
            parts[:-1, 5] = parts[:-1, 4]  # no own rows
            parts[:, 7] = np.arange(slot, slot + len(cut))
            split.append(parts)
            at = np.arange(item[1])
            merges.append(np.stack([item[0] + at, np.full_like(at, slot), at, np.full_like(at, len(cut))], axis=1))
            slot += len(cut)
        pieces.append(cut)
        offset += len(cut)
    empty = np.zeros((0, _COLUMNS), dtype=np.int64)
    return (
        np.concatenate([empty, *split]),
        np.concatenate([empty[:, :2], *pieces]),
        np.concatenate([empty[:, :4], *merges]),
    )


def _pieces(start: int, end: int) -> Ints:
    """A range cut into pieces of nearly equal size, none over `SPLIT_ROWS`."""
    bounds = np.linspace(start, end, -(-(end - start) // SPLIT_ROWS) + 1).astype(np.int64)
    return np.stack([bounds[:-1], bounds[1:]], axis=1)
