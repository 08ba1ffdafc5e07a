"""The tiles of the Triton backend, on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    golden_spec,
    random_layout,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import VARIANTS, layout_of, lengths
from test_pattern import CAUSAL

from blockrank.attention.reference import dense_mask
from blockrank.attention.tiles import cut_tiles, tile_tokens


@given(st.lists(lengths, min_size=1, max_size=3), st.integers(1, 40), st.sampled_from(VARIANTS), st.booleans())
@settings(max_examples=60, deadline=None)
def test_tiles_read_exactly_what_the_layout_says(
    requests: list[list[int]], tokens: int, changes: dict[str, Any], whole: bool
) -> None:
    layout = layout_of(golden_spec(**changes), *requests)
    if not whole:
        layout = layout.part(np.arange(len(layout.document_segment_C)) % 2 == 0, whole=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockrank.attention.tiles.SPLIT_ROWS", 16)
        tables = cut_tiles(layout, tokens)
    items, ranges, merges, slots = tables.items_I8, tables.ranges_R2, tables.merges_M4, tables.slots
    assert tables.tokens == tokens
    padded = tables.padded()
    for one, two in ((items, padded.items_I8), (ranges, padded.ranges_R2), (merges, padded.merges_M4)):
        assert {tuple(row) for row in two.tolist()} == {tuple(row) for row in one.tolist()}
        assert len(two).bit_count() <= 1
    reads = np.zeros((layout.tokens, layout.rows), dtype=int)
    parts: dict[int, tuple[int, int]] = {}
    for first, size, range_first, range_last, own_first, own_last, causal, slot in items.tolist():
        assert 0 < size <= tokens
        parts[slot] = (first, size)
        for token in range(first, first + size):
            for start, end in ranges[range_first:range_last]:
                reads[token, start:end] += 1
            reach = own_last - size + (token - first) + 1 if causal else own_last
            reads[token, own_first : max(reach, own_first)] += 1  # a part without own rows reaches none
    assert (reads == dense_mask(layout).numpy()).all()
    assert sorted(slot for slot in parts if slot >= 0) == list(range(slots))
    for token, slot, at, count in merges.tolist():
        for part in range(slot, slot + count):
            assert parts[part][0] + at == token


def test_tiles_fit_into_shared_memory() -> None:
    assert tile_tokens(32, 8, 128, torch.bfloat16) == 32
    assert tile_tokens(8, 8, 64, torch.float16) == 128
    assert tile_tokens(8, 1, 256, torch.bfloat16) == 8
    assert tile_tokens(32, 8, 128, torch.float32) == 16
    assert tile_tokens(200, 1, 128, torch.bfloat16) == 1


def test_tiles_of_a_long_request_are_not_split() -> None:
    tables = cut_tiles(random_layout([30, *[120] * 40, 25], CAUSAL), 32)
    assert (tables.slots, len(tables.ranges_R2)) == (0, 0)
    assert int(tables.items_I8[:, 1].sum()) == 30 + 120 * 40 + 25
    assert (tables.items_I8[:, 5] == tables.items_I8[:, 0] + tables.items_I8[:, 1]).all()  # up to the tile's last token
