"""What a document's keys are found by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from conftest import golden_spec, random_layout, tokenised
from hypothesis import given, settings
from hypothesis import strategies as st

from blockrank.attention.reference import dense_mask
from blockrank.layout import pack
from blockrank.reuse.keys import content_keys


def test_the_key_of_a_document_is_its_content() -> None:
    spec = golden_spec(query_reads="own")
    layout = random_layout([3, 4, 4, 2], spec)
    one, two = content_keys(layout, b"")
    assert set(content_keys(layout, b"another reading")).isdisjoint({one, two})
    assert one != two
    same = layout.ids_T.copy()
    same[7:11] = same[3:7]
    assert len(set(content_keys(replace(layout, ids_T=same), b""))) == 1
    other = layout.ids_T.copy()
    other[0] += 1
    assert set(content_keys(replace(layout, ids_T=other), b"")).isdisjoint({one, two})


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=5), min_size=1, max_size=3),
    reads=st.sampled_from(["all", "own"]),
    data=st.data(),
)
def test_a_layout_without_documents_is_the_rest_of_its_mask(
    lengths: list[list[int]], reads: str, data: st.DataObject
) -> None:
    spec = golden_spec(query_reads=reads)

    layout = pack([tokenised([np.arange(3, 3 + n) for n in (2, *item, 3)]) for item in lengths], spec)
    dropped = np.zeros(len(layout.starts_S), dtype=bool)
    for segment in layout.document_segment_C:
        dropped[segment] = data.draw(st.booleans())
    lean = layout.without(dropped)
    kept = torch.from_numpy(np.repeat(~dropped, layout.ends_S - layout.starts_S))
    assert torch.equal(dense_mask(lean), dense_mask(layout)[kept][:, kept])
    assert lean.ids_T.tolist() == layout.ids_T[kept.numpy()].tolist()
    assert lean.positions_T.tolist() == layout.positions_T[kept.numpy()].tolist()
    assert lean.ids_T[lean.signal_G].tolist() == layout.ids_T[layout.signal_G].tolist()
    assert len(lean.document_segment_C) == int((~dropped[layout.document_segment_C]).sum())
