"""The causal pattern: full attention in the code of the block pattern, against plain models of transformers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    CASES,
    CPU,
    FAMILIES,
    byte_tokenizer,
    golden_case,
    golden_module,
    golden_spec,
    random_decoder,
    random_layout,
    rank_model,
    tokenised,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from blockrank import InputError, Ranker, RankSpec
from blockrank.attention import get_backend
from blockrank.attention.reference import dense_mask
from blockrank.engine.capture import Wanted
from blockrank.layout import PackedLayout, TokenisedRequest, pack
from blockrank.model import LoadedModel, RankModel
from blockrank.readout.signals import log_scores
from blockrank.scorers import Prompts
from blockrank.train.batch import Example, collate
from blockrank.train.config import LossConfig
from blockrank.train.objective import training_loss

CAUSAL = golden_spec(pattern="causal", query_offset=None)
LENGTHS = st.tuples(st.integers(0, 6), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 7)).map(
    lambda item: [item[0], *item[1], item[2]]
)
quick = settings(deadline=None, max_examples=20)


def requests_of(lengths: list[list[int]], seed: int = 0) -> list[TokenisedRequest]:
    generator = np.random.default_rng(seed)
    return [tokenised([generator.integers(3, 512, length) for length in item]) for item in lengths]


@cache
def plain(family: str) -> PreTrainedModel:
    """The golden model as transformers alone runs it."""
    module = golden_module(family)
    module.set_attn_implementation("eager")
    return module


# Layout


@quick
@given(lengths=st.lists(LENGTHS, min_size=1, max_size=3), offset=st.sampled_from([None, 2, 64]))
def test_rows_and_positions_are_those_of_a_plain_prompt(lengths: list[list[int]], offset: int | None) -> None:
    spec = golden_spec(pattern="causal", query_offset=offset)
    layout = pack(requests_of(lengths), spec)
    mask = np.zeros((layout.tokens, layout.tokens), dtype=bool)
    positions: list[int] = []
    for item in lengths:
        start, total = len(positions), sum(item)
        mask[start : start + total, start : start + total] = np.tri(total, dtype=bool)
        before = total - item[-1]
        positions += [*range(before), *(max(offset or 0, before) + at for at in range(item[-1]))]
    assert dense_mask(layout).numpy().tolist() == mask.tolist()
    assert layout.positions_T.tolist() == positions
    joined = layout.joined()
    assert dense_mask(joined).numpy().tolist() == mask.tolist()
    assert len(joined.starts_S) == sum(1 + (item[0] == 0) for item in lengths)  # an empty instruction stays apart


@quick
@given(
    lengths=st.lists(LENGTHS, min_size=1, max_size=3),
    reads=st.sampled_from(["all", "own"]),
    attend=st.sampled_from(["causal", "bidirectional"]),
    cached=st.sampled_from([0, 3]),
)
def test_joining_changes_no_mask(lengths: list[list[int]], reads: Any, attend: Any, cached: int) -> None:
    spec = golden_spec(query_reads=reads, document_attention=attend, query_attention=attend)
    layout = pack(requests_of(lengths), spec)
    if cached:
        layout = replace(layout, cached_rows=cached, reads_R2=layout.reads_R2 + cached)
    joined = layout.joined()
    assert dense_mask(joined).tolist() == dense_mask(layout).tolist()
    if any(len(item) > 3 for item in lengths) and len(lengths) == 1:
        assert joined is layout  # the block pattern keeps its segments


def test_what_the_pattern_excludes() -> None:
    for change in ({"document_attention": "bidirectional"}, {"query_attention": "bidirectional"}):
        with pytest.raises(InputError, match=r"pattern 'causal' needs \w+_attention 'causal'; it is 'bidirectional'"):
            golden_spec(pattern="causal", **change)
    with pytest.raises(InputError, match="pattern 'causal' needs query_reads 'all'; it is 'own'"):
        golden_spec(pattern="causal", query_reads="own")
    with pytest.raises(InputError, match=r"RankSpec.pattern must be one of"):
        golden_spec(pattern="full")
    free = RankSpec.of(layer=2, template="query-free", query_reads="own")
    assert free.documents_stand_alone
    assert not RankSpec.of(layer=2, template="query-free", pattern="causal").documents_stand_alone
    assert RankSpec.from_dict(CAUSAL.to_dict()) == CAUSAL


# Models


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_plain_model(family: str, backend: str) -> None:
    model = rank_model(family, backend, CAUSAL)
    for name in CASES:
        case = golden_case(family, name)
        layout = pack([tokenised(case.segments)], CAUSAL)
        with torch.inference_mode():
            found = model.forward(layout, Wanted(logits_R=np.arange(layout.tokens))).logits_RV
            expected = plain(family)(input_ids=torch.from_numpy(np.concatenate(case.segments))[None]).logits[0]
        assert found is not None
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@quick
@given(lengths=st.lists(LENGTHS, min_size=2, max_size=3), family=st.sampled_from(FAMILIES), seed=st.integers(0, 99))
def test_packed_requests_equal_each_alone(lengths: list[list[int]], family: str, seed: int) -> None:
    requests, model = requests_of(lengths, seed), rank_model(family, spec=CAUSAL)

    def scores(items: list[TokenisedRequest]) -> Tensor:
        layout = pack(items, CAUSAL)
        with torch.inference_mode():
            capture = model.forward(layout)
            return log_scores(capture.only.q_GNH, capture.only.k_PKH, layout, CAUSAL, capture.only.scale).exp()

    torch.testing.assert_close(scores(requests), torch.cat([scores([it]) for it in requests]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["mistral", "qwen3", "gemma"])
def test_fused_layers_equal_the_librarys(kind: str) -> None:
    extras = {"sliding_window": None} if kind == "mistral" else {}
    layout = pack(requests_of([[4, 5, 9, 3, 6], [3, 2, 4]]), CAUSAL)
    found = []
    for fused in (False, True):
        model = RankModel(LoadedModel(random_decoder(kind, **extras)), CAUSAL, get_backend("sdpa", CPU, torch.float32))
        if fused:
            model.weights.fuse()
        with torch.inference_mode():
            capture = model.forward(layout)
            found.append(log_scores(capture.only.q_GNH, capture.only.k_PKH, layout, CAUSAL, capture.only.scale))
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=0)


def test_documents_are_neither_shared_out_nor_remembered(mini: Ranker) -> None:
    model = RankModel(LoadedModel(random_decoder("qwen3")), CAUSAL, get_backend("reference", CPU, torch.float32))
    model.weights.fuse()
    assert not model.shares_documents
    assert model.with_spec(golden_spec()).shares_documents
    with pytest.raises(InputError, match="pattern 'causal' needs"):
        mini.with_spec(pattern="causal")


def test_documents_that_left_are_not_read() -> None:
    """After an exit the others go on as the dense mask without the rows of those that left says."""
    spec = CAUSAL.changed(prune=((1, 0.5),))
    model = RankModel(LoadedModel(random_decoder("qwen3")), spec, get_backend("sdpa", CPU, torch.float32))
    model.weights.fuse()
    layout = random_layout([4, 5, 9, 3, 6, 5], spec)
    with torch.inference_mode():
        capture = model.read(layout)
    assert capture.alive_C is not None
    assert len(capture.alive_C) == 2
    kept = [0, *(1 + capture.alive_C), 5]
    tokens = np.concatenate([np.arange(layout.starts_S[i], layout.ends_S[i]) for i in kept])
    assert dense_mask(capture.layout).tolist() == dense_mask(layout)[tokens][:, tokens].tolist()
    assert capture.layout.positions_T.tolist() == layout.positions_T[tokens].tolist()


# Probe


def test_a_prompt_beyond_the_position_table() -> None:
    model = RankModel(
        LoadedModel(random_decoder("qwen3", max_position_embeddings=16)),
        CAUSAL,
        get_backend("sdpa", CPU, torch.float32),
    )
    with pytest.raises(InputError, match=r"reaches position 19 .* has 16: rank fewer documents, shorten"):
        model.forward(random_layout([4, 5, 6, 5], CAUSAL))


# Training


def gradients(backend: str) -> dict[str, Tensor]:
    """Gradients of a whole step under the causal pattern."""
    module = golden_module("qwen3").train()
    model = RankModel(LoadedModel(module, byte_tokenizer()), CAUSAL, get_backend(backend, CPU, torch.float32))
    examples = []
    for request in requests_of([[5, 4, 7, 3, 6], [4, 6, 2, 5]]):
        *others, query = request.segments
        query = replace(query, signal_end=len(query.ids) - 3)
        documents = len(others) - 1
        examples.append(Example(Prompts((TokenisedRequest((*others, query)),)), np.arange(documents) == 1, {}))
    config = LossConfig(contrastive_weight=1.0, lm=0.5)
    parts = training_loss(model, collate(examples, CAUSAL), config)
    assert set(parts) == {"contrastive", "lm", "loss"}
    parts["loss"].backward()
    return {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}


def test_gradients_equal_the_dense_reference() -> None:
    expected, found = gradients("reference"), gradients("sdpa")
    assert set(found) == set(expected)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_the_lm_loss_equals_the_plain_models() -> None:
    """Loss of the answer of one request, as transformers computes it for the same prompt."""
    request = requests_of([[5, 4, 7, 6]])[0]
    *others, query = request.segments
    request = TokenisedRequest((*others, replace(query, signal_end=len(query.ids) - 3)))
    batch = collate([Example(Prompts((request,)), np.array([True, False]), {})], CAUSAL)
    model = rank_model("qwen3", spec=CAUSAL)
    ids = torch.from_numpy(np.concatenate([segment.ids for segment in request.segments]))[None]
    labels = ids.clone()
    labels[:, : -len(batch.label_A)] = -100
    with torch.inference_mode():
        found = training_loss(model, batch, LossConfig(contrastive_weight=0.0, lm=1.0))["lm"]
        expected = plain("qwen3")(input_ids=ids, labels=labels).loss
    assert float(found) == pytest.approx(float(expected), abs=1e-5)


def test_a_layout_is_joined_request_by_request() -> None:
    """One that the block pattern made and one that is joined do not disturb each other."""
    block, causal = random_layout([3, 4, 5, 2], golden_spec()), random_layout([3, 4, 5, 2], CAUSAL)
    both: PackedLayout = replace(
        block,
        ids_T=np.concatenate([block.ids_T, causal.ids_T]),
        positions_T=np.concatenate([block.positions_T, causal.positions_T]),
        starts_S=np.concatenate([block.starts_S, causal.starts_S + block.tokens]),
        ends_S=np.concatenate([block.ends_S, causal.ends_S + block.tokens]),
        causal_S=np.concatenate([block.causal_S, causal.causal_S]),
        own_S=np.concatenate([block.own_S, causal.own_S]),
        reads_R2=np.concatenate([block.reads_R2, causal.reads_R2 + block.tokens]),
        read_offsets_S1=np.concatenate([block.read_offsets_S1, causal.read_offsets_S1[1:] + len(block.reads_R2)]),
        kinds_S=block.kinds_S + causal.kinds_S,
    )
    joined = both.joined()
    assert len(joined.starts_S) == 4 + 1
    assert dense_mask(joined).tolist() == dense_mask(both).tolist()
