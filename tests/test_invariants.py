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
from conftest import CPU, FAMILIES, TOLERANCE, golden_spec, random_layout, rank_model, tokenised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blockrank import Ranker, RankRequest, RankSpec
from blockrank.attention import get_backend
from blockrank.layout import pack
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
