"""The sdpa backend against the reference."""

from __future__ import annotations

import pytest
import torch
from conftest import (
    CPU,
    golden_spec,
    random_layout,
    tokenised,
)
from hypothesis import given
from hypothesis import strategies as st
from test_invariants import ATTEND, LENGTHS, quick, random_request
from test_pattern import CAUSAL

from blockrank.attention import get_backend
from blockrank.layout import pack


@quick
@given(lengths=st.lists(LENGTHS, min_size=1, max_size=3), kv_heads=st.sampled_from([1, 2, 4]), data=st.data())
def test_sdpa_equals_the_reference(lengths: list[list[int]], kv_heads: int, data: st.DataObject) -> None:
    spec = golden_spec(
        query_reads=data.draw(st.sampled_from(["all", "own"])),
        document_attention=data.draw(ATTEND),
        query_attention=data.draw(ATTEND),
    )
    lengths = [[data.draw(st.sampled_from([0, item[0]])), *item[1:]] for item in lengths]
    layout = pack([tokenised(random_request(item)) for item in lengths], spec)
    q_TNH = torch.randn(layout.tokens, 4, 8)
    k_PKH, v_PKH = (torch.randn(layout.rows, kv_heads, 8) for _ in range(2))
    outputs = []
    for name in ("reference", "sdpa"):
        backend = get_backend(name, CPU, torch.float32)
        outputs.append(backend.attend(q_TNH, k_PKH, v_PKH, backend.plan(layout, CPU), 0.3))
    torch.testing.assert_close(outputs[1], outputs[0], atol=2e-6, rtol=0)


def test_sdpa_in_small_buckets_equals_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = random_layout([4, *range(1, 30), 6], golden_spec())
    backend = get_backend("sdpa", CPU, torch.float32)
    q_TNH, k_PKH, v_PKH = (torch.randn(layout.tokens, 2, 8) for _ in range(3))
    expected = backend.attend(q_TNH, k_PKH, v_PKH, backend.plan(layout, CPU), 0.3)
    monkeypatch.setattr("blockrank.attention.sdpa._MAX_BUCKET_LOGITS", 64)
    plan = backend.plan(layout, CPU)
    assert len(plan.buckets) > 5
    torch.testing.assert_close(backend.attend(q_TNH, k_PKH, v_PKH, plan, 0.3), expected, atol=2e-6, rtol=0)


@quick
@given(lengths=st.lists(st.lists(st.integers(1, 600), min_size=3, max_size=9), min_size=2, max_size=3))
def test_sdpa_pads_a_segment_alike_alone_and_beside_others(lengths: list[list[int]]) -> None:
    """Products of other shapes add up in another order, which int8 would make visible."""

    def shapes(requests: list[list[int]]) -> list[tuple[int, int, bool]]:
        """Queries and rows, as padded, of each token's segment, and whether a mask is spared."""
        layout = pack([tokenised(random_request(item)) for item in requests], golden_spec())
        plan = get_backend("sdpa", CPU, torch.float32).plan(layout, CPU)
        found = [(b.q_nQ.shape[1], b.k_nR.shape[1], b.causal) for b in plan.buckets for _ in b.token_Q]
        return [found[i] for i in plan.inverse_T.tolist()]

    assert shapes(lengths) == [shape for item in lengths for shape in shapes([item])]


def test_sdpa_of_single_tokens_copies_its_mask() -> None:
    spec = golden_spec(document_attention="bidirectional", query_attention="bidirectional")
    layout = random_layout([0, 1, 1, 1], spec)
    backend = get_backend("sdpa", CPU, torch.float32)
    torch.set_warn_always(True)  # a warning about a read-only array comes once a process otherwise
    try:
        [bucket] = backend.plan(layout, CPU).buckets
    finally:
        torch.set_warn_always(False)
    assert bucket.mask_n1QR.squeeze().sum(1).tolist() == [1, 1, 3]
    assert bucket.mask_n1QR.squeeze()[:, :3].sum(1).tolist() == [1, 1, 3], "the first rows are real"


def test_a_long_request_takes_no_mask() -> None:
    layout = random_layout([4, *range(40, 52), 6], CAUSAL)
    q_TNH, k_PKH, v_PKH = torch.randn(layout.tokens, 4, 8), *torch.randn(2, layout.rows, 2, 8)
    backends = [get_backend(name, CPU, torch.float32) for name in ("reference", "sdpa")]
    plan = backends[1].plan(layout, CPU)
    assert [bucket.causal for bucket in plan.buckets] == [True]
    assert plan.buckets[0].mask_n1QR is None
    one, two = (item.attend(q_TNH, k_PKH, v_PKH, item.plan(layout, CPU), 0.3) for item in backends)
    torch.testing.assert_close(two, one, atol=2e-6, rtol=0)
