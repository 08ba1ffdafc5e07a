"""The read-out: scores and token shares against dense computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    dense_pairs,
    golden_spec,
    random_layout,
    tokenised,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_invariants import LENGTHS, quick, random_request, specs
from torch import Tensor

from blockrank import RankSpec
from blockrank.layout import PackedLayout, pack
from blockrank.readout.signals import log_scores, token_shares


def dense_read_out(q_GNH: Tensor, k_PKH: Tensor, layout: PackedLayout, spec: RankSpec, scale: float) -> list[float]:
    """The read-out of one request as `RankSpec` words it."""
    pairs = dense_pairs(q_GNH, k_PKH, layout, spec, scale)
    logs = [np.log([document.sum() / total for document in documents]) for documents, total in pairs]
    if spec.readout.signal_pooling == "arithmetic":
        return [float(value) for value in np.exp(logs).mean(0)]
    pooled = np.exp(np.mean(logs, axis=0))
    return [float(value) for value in pooled / pooled.sum()]


@settings(deadline=None, max_examples=25)
@given(spec=specs(), lengths=st.lists(LENGTHS, min_size=1, max_size=3), kv_heads=st.sampled_from([1, 2, 4]))
def test_read_out_equals_the_dense_one(spec: RankSpec, lengths: list[list[int]], kv_heads: int) -> None:
    requests = [tokenised(random_request(item, seed)) for seed, item in enumerate(lengths)]
    layout = pack(requests, spec)
    q_GNH, k_PKH = torch.randn(len(layout.signal_G), 4, 8), torch.randn(layout.rows, kv_heads, 8)
    expected: list[float] = []
    rows = 0
    for index, request in enumerate(requests):
        alone = pack([request], spec)
        own = torch.from_numpy(layout.signal_request_G == index)
        expected += dense_read_out(q_GNH[own], k_PKH[rows : rows + alone.rows], alone, spec, 8**-0.5)
        rows += alone.rows
    found = log_scores(q_GNH, k_PKH, layout, spec, 8**-0.5).exp()
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)


def test_read_out_in_chunks_equals_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = golden_spec(softmax_over="all", length_norm=0.5)
    layout = random_layout([4, *range(1, 12), 6], spec)
    q_GNH, k_PKH = torch.randn(2, 4, 8), torch.randn(layout.rows, 2, 8)
    whole = log_scores(q_GNH, k_PKH, layout, spec, 0.3)
    monkeypatch.setattr("blockrank.readout.signals._CHUNK_ROWS", 16)
    torch.testing.assert_close(log_scores(q_GNH, k_PKH, layout, spec, 0.3), whole)


@quick
@given(spec=specs(), lengths=st.lists(LENGTHS, min_size=1, max_size=3))
def test_gradients_of_the_read_out_are_finite(spec: RankSpec, lengths: list[list[int]]) -> None:
    layout = pack([tokenised(random_request(item)) for item in lengths], spec)
    q_GNH = torch.randn(len(layout.signal_G), 4, 8, requires_grad=True)
    k_PKH = torch.randn(layout.rows, 2, 8, requires_grad=True)
    found = log_scores(q_GNH, k_PKH, layout, spec, 0.3)
    (found * torch.randn_like(found)).sum().backward()
    for tensor in (q_GNH, k_PKH):
        assert tensor.grad is not None
        assert bool(tensor.grad.isfinite().all())


def dense_parts(q_GNH: Tensor, k_PKH: Tensor, layout: PackedLayout, spec: RankSpec, scale: float) -> list[float]:
    """Each document row's part of its document's score, one pair of head and signal token at a time."""
    parts: list[np.ndarray[Any, np.dtype[np.float64]]] = []
    for documents, total in dense_pairs(q_GNH, k_PKH, layout, spec, scale):
        shares = [d / (d.sum() if spec.readout.signal_pooling == "geometric" else total) for d in documents]
        parts = [part + share for part, share in zip(parts or [0.0] * len(shares), shares, strict=True)]
    return [float(value) for part in parts for value in part / part.sum()]


@settings(deadline=None, max_examples=25)
@given(spec=specs(), documents=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_token_shares_equal_the_dense_ones(spec: RankSpec, documents: list[int], seed: int) -> None:
    layout = random_layout([3, *documents, 4], spec, seed)
    generator = torch.Generator().manual_seed(seed)
    q_GNH = torch.randn(len(layout.signal_G), 4, 8, generator=generator)
    k_PKH = torch.randn(layout.rows, 2, 8, generator=generator)
    found = token_shares(q_GNH, k_PKH, layout, spec, 8**-0.5)
    expected = torch.tensor(dense_parts(q_GNH, k_PKH, layout, spec, 8**-0.5))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_token_shares_in_chunks_equal_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = golden_spec(length_norm=0.5)
    layout = random_layout([4, *range(1, 12), 6], spec)
    q_GNH, k_PKH = torch.randn(2, 4, 8), torch.randn(layout.rows, 2, 8)
    whole = token_shares(q_GNH, k_PKH, layout, spec, 0.3)
    monkeypatch.setattr("blockrank.readout.signals._CHUNK_ROWS", 16)
    torch.testing.assert_close(token_shares(q_GNH, k_PKH, layout, spec, 0.3), whole)
