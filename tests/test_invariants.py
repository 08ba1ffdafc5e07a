"""What must hold whatever the input: order and packing change nothing, documents stay apart, scores add up, and every
short cut equals the dense computation it replaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU, FAMILIES, TOLERANCE, dense_pairs, golden_spec, random_layout, rank_model, tokenised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blockrank import Ranker, RankRequest, RankSpec
from blockrank.attention import get_backend
from blockrank.layout import PackedLayout, pack
from blockrank.model import RankModel
from blockrank.readout.signals import log_scores

Request = list[np.ndarray[Any, np.dtype[np.int64]]]

WORDS = ("egg", "boil", "ten", "minutes", "Oslo", "fjord", "is", "the", "capital", "of", "[SEP]", "naïve", "42", "?")
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)
LENGTHS = st.tuples(st.integers(1, 6), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 7)).map(
    lambda item: [item[0], *item[1], item[2]]
)
ATTEND = st.sampled_from(["causal", "bidirectional"])
quick = settings(deadline=None, max_examples=15)


@st.composite
def specs(draw: st.DrawFn) -> RankSpec:
    """Any way to read the golden models."""
    return golden_spec(
        layer=draw(st.integers(0, 3)),
        signal_tokens=draw(st.sampled_from([1, 2, "query"])),
        heads=draw(st.sampled_from([None, (0,), (3, 1), (0, 2, 3)])),
        joined_heads=draw(st.booleans()),
        cosine=draw(st.sampled_from(["none", "keys", "both"])),
        logit_scale=draw(st.sampled_from([1.0, 0.5, 20.0])),
        length_norm=draw(st.sampled_from([0.0, 0.5, 1.0])),
        signal_pooling=draw(st.sampled_from(["arithmetic", "geometric"])),
        softmax_over=draw(st.sampled_from(["documents", "all"])),
        document_attention=draw(ATTEND),
        query_attention=draw(ATTEND),
        query_reads=draw(st.sampled_from(["all", "own"])),
        query_offset=draw(st.sampled_from([None, 64, 16384])),
    )


@cache
def golden(family: str) -> RankModel:
    return rank_model(family)


def reading(family: str, spec: RankSpec) -> RankModel:
    model = golden(family)
    return RankModel(model.weights, spec, model.backend)


def random_request(lengths: Sequence[int], seed: int = 0) -> Request:
    generator = np.random.default_rng(seed)
    return [generator.integers(3, 512, length) for length in lengths]


def scores(family: str, spec: RankSpec, requests: Sequence[Request]) -> Tensor:
    model = reading(family, spec)
    layout = pack([tokenised(request) for request in requests], spec)
    with torch.inference_mode():
        capture = model.forward(layout)
        return log_scores(capture.only.q_GNH, capture.only.k_PKH, layout, spec, capture.only.scale).exp()


# Order, packing, isolation


@quick
@given(spec=specs(), lengths=LENGTHS, family=st.sampled_from(FAMILIES), seed=st.integers(0, 99))
def test_permuting_candidates_permutes_scores(spec: RankSpec, lengths: list[int], family: str, seed: int) -> None:
    first, *documents, last = random_request(lengths, seed)
    order = np.random.default_rng(seed).permutation(len(documents))
    straight = scores(family, spec, [[first, *documents, last]])
    shuffled = scores(family, spec, [[first, *(documents[i] for i in order), last]])
    torch.testing.assert_close(shuffled, straight[torch.from_numpy(order)], atol=1e-5, rtol=0)


@quick
@given(spec=specs(), lengths=st.lists(LENGTHS, min_size=2, max_size=4), family=st.sampled_from(FAMILIES))
def test_a_packed_batch_equals_its_requests_alone(spec: RankSpec, lengths: list[list[int]], family: str) -> None:
    requests = [random_request(item, seed) for seed, item in enumerate(lengths)]
    together = scores(family, spec, requests)
    alone = torch.cat([scores(family, spec, [request]) for request in requests])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@quick
@given(spec=specs(), lengths=LENGTHS, seed=st.integers(0, 99))
def test_scores_of_a_request_sum_to_one(spec: RankSpec, lengths: list[int], seed: int) -> None:
    found = scores("qwen3", spec, [random_request(lengths, seed), random_request([3, 4, 2, 5], seed + 1)])
    documents = len(lengths) - 2
    for part in (found[:documents], found[documents:]):
        assert bool((part >= 0).all())
        if spec.readout.softmax_over == "documents" or spec.readout.signal_pooling == "geometric":
            assert float(part.sum()) == pytest.approx(1, abs=1e-5)
        elif not spec.readout.length_norm:
            assert float(part.sum()) < 1 + 1e-5


@quick
@given(lengths=LENGTHS, family=st.sampled_from(FAMILIES), seed=st.integers(0, 99), data=st.data())
def test_editing_a_document_leaves_other_keys(lengths: list[int], family: str, seed: int, data: st.DataObject) -> None:
    spec = golden_spec(layer=3, document_attention=data.draw(ATTEND))
    edited = data.draw(st.integers(1, len(lengths) - 2))
    request = random_request(lengths, seed)
    changed = [*request]
    changed[edited] = (request[edited] + 1) % 512
    layouts = [pack([tokenised(item)], spec) for item in (request, changed)]
    with torch.inference_mode():
        before, after = (reading(family, spec).forward(layout).only.k_PKH for layout in layouts)
    kept = np.ones(layouts[0].tokens, dtype=bool)
    kept[layouts[0].starts_S[edited] : layouts[0].ends_S[edited]] = False
    kept[layouts[0].starts_S[-1] :] = False
    torch.testing.assert_close(after[kept], before[kept], atol=1e-6, rtol=0)
    assert not torch.equal(after[~kept], before[~kept])


# The embedded model, from text


@quick
@given(query=TEXTS, documents=st.lists(TEXTS, min_size=1, max_size=6), seed=st.integers(0, 99))
def test_the_embedded_model_ignores_the_order(mini: Ranker, query: str, documents: list[str], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(documents))
    straight = {entry.index: entry.score for entry in mini.rank(query, documents)}
    shuffled = mini.rank(query, [documents[i] for i in order])
    for entry in shuffled:
        assert entry.score == pytest.approx(straight[order[entry.index]], abs=TOLERANCE["float32"])
    assert sorted(entry.index for entry in shuffled) == list(range(len(documents)))
    assert sum(straight.values()) == pytest.approx(1, abs=1e-5)


@quick
@given(requests=st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=5)), min_size=1, max_size=4))
def test_many_requests_equal_each_alone(mini: Ranker, requests: list[tuple[str, list[str]]]) -> None:
    together = mini.rank_many(RankRequest(query, documents) for query, documents in requests)
    for (query, documents), ranking in zip(requests, together, strict=True):
        alone = {entry.index: entry.score for entry in mini.rank(query, documents)}
        assert sorted(ranking.doc_ids) == sorted(map(str, range(len(documents))))
        for entry in ranking:
            assert entry.score == pytest.approx(alone[entry.index], abs=TOLERANCE["float32"])


# Short cuts against dense computations


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


@pytest.mark.parametrize("backend_name", ["reference", "sdpa"])
def test_cached_rows_are_read_like_new_ones(backend_name: str) -> None:
    whole = random_layout([5, 4, 7, 3, 6], golden_spec())
    first = int(whole.ends_S[0])
    rest = replace(
        whole,
        ids_T=whole.ids_T[first:],
        positions_T=whole.positions_T[first:],
        starts_S=np.maximum(whole.starts_S - first, 0),
        ends_S=whole.ends_S - first,
        cached_rows=first,
    )
    q_TNH, k_PKH, v_PKH = (torch.randn(whole.tokens, 2, 8) for _ in range(3))
    backend = get_backend(backend_name, CPU, torch.float32)
    expected = backend.attend(q_TNH, k_PKH, v_PKH, backend.plan(whole, CPU), 0.3)[first:]
    found = backend.attend(q_TNH[first:], k_PKH, v_PKH, backend.plan(rest, CPU), 0.3)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


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
