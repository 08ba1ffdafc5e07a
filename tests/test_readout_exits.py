"""Documents that leave early."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    golden_spec,
    random_layout,
    tokenised,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import captured, decoder_model, layout_of, lengths, scores

from blockrank import InputError, ModelError, Ranker, RankRequest, RankSpec, engine
from blockrank.engine.capture import Wanted
from blockrank.layout import pack
from blockrank.model.probe import probe_model
from blockrank.readout.exits import leave, with_exits
from blockrank.readout.signals import log_scores


def test_exits_are_ordered_by_layer_then_by_the_read_out_there() -> None:
    model = decoder_model("mistral", prune=((0, 0.5), (1, 0.25)))
    model.weights.fuse()
    layout = layout_of(model.spec, [3, 17, 1, 9, 12, 5, 8, 2], [4, 6, 7])
    capture = captured(model, layout)
    found = scores(model, layout).numpy()
    assert [item.layer for item in capture.exits] == [0, 1]
    assert capture.alive_C is not None
    for request, survivors in ((0, 2), (1, 1)):
        members = np.flatnonzero(layout.document_request_C == request)
        assert found[members].sum() == pytest.approx(1, abs=1e-6)
        stayed = [int((capture.alive_C[:, None] == members).sum())]
        assert stayed == [survivors]
        floor = min(found[c] for c in members if c in capture.alive_C)
        for item in reversed(capture.exits):
            left = [c for c in members if c in item.left_C]
            assert all(found[c] <= floor for c in left)
            by_read_out = sorted(left, key=lambda c: -item.log_left_C[item.left_C.tolist().index(c)])
            assert by_read_out == sorted(left, key=lambda c: -found[c])
            floor = min(found[c] for c in left) if left else floor


@pytest.mark.parametrize("prune_by", ["layer", "lens"])
@pytest.mark.parametrize("kind", ["qwen3", "bert"])
def test_what_stays_scores_as_if_it_had_been_alone(kind: str, prune_by: Any) -> None:
    """Documents read none but the instruction; the query of these models reads its own: who left leaves no trace."""
    model = decoder_model(kind, query_reads="own", prune=((1, 0.5),), prune_by=prune_by, signal_pooling="geometric")
    model.weights.fuse()
    layout = layout_of(model.spec, [3, 17, 1, 9, 12, 5])
    capture = captured(model, layout)
    assert capture.alive_C is not None
    assert len(capture.alive_C) == 3
    found = scores(model, layout)[torch.from_numpy(capture.alive_C)]
    whole = scores(model.with_spec(model.spec.changed(prune=())), layout)[torch.from_numpy(capture.alive_C)]
    torch.testing.assert_close(found / found.sum(), whole / whole.sum(), atol=1e-6, rtol=1e-4)


def test_the_lens_reads_the_last_layer_below_as_the_scoring_layer_would() -> None:
    """With the lens at the scoring layer's own input nothing is lost: the documents that leave are the last ones."""
    model = decoder_model("mistral", layer=1, prune=((0, 0.5),), prune_by="lens")
    model.weights.fuse()
    assert model.decoder is not None
    model.decoder.blocks[1].entry = model.decoder.blocks[0].entry
    model.decoder.blocks[1].qkv = model.decoder.blocks[0].qkv
    lens = captured(model, layout_of(model.spec, [3, 9, 4, 11])).exits[0]
    by_layer = captured(model.with_spec(model.spec.changed(prune_by="layer")), layout_of(model.spec, [3, 9, 4, 11]))
    assert lens.left_C.tolist() == by_layer.exits[0].left_C.tolist()
    np.testing.assert_allclose(lens.log_left_C, by_layer.exits[0].log_left_C, atol=1e-5)


@given(st.lists(lengths, min_size=1, max_size=3), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_pruned_requests_score_alike_alone_packed_and_in_parts(requests: list[list[int]], parts: int) -> None:
    model = decoder_model("llama", "reference", prune=((0, 0.6), (1, 0.3)))
    model.weights.fuse()
    assert model.decoder is not None
    spec = model.spec
    packed = pack([_request(i, documents) for i, documents in enumerate(requests)], spec)
    singles = [scores(model, pack([_request(i, documents)], spec)) for i, documents in enumerate(requests)]
    torch.testing.assert_close(scores(model, packed), torch.cat(singles), atol=1e-5, rtol=1e-3)
    with torch.inference_mode():
        capture = engine.forward([model.decoder] * parts, packed, Wanted.read_out(spec), spec, model.backend)
        logs = log_scores(capture.only.q_GNH, capture.only.k_PKH, capture.layout, spec, capture.only.scale).numpy()
    assert capture.alive_C is not None
    found = with_exits(logs, capture.alive_C, capture.exits, packed.document_request_C)
    np.testing.assert_allclose(np.exp(found), torch.cat(singles).numpy(), atol=1e-5, rtol=1e-3)


def _request(seed: int, documents: list[int]) -> Any:
    generator = np.random.default_rng(seed)
    return tokenised([generator.integers(3, 500, n) for n in [5, *documents, 8]])


def test_an_exit_by_hand() -> None:
    layout = random_layout([2, 3, 3, 3, 3, 4], golden_spec())
    logs = np.log(np.array([0.1, 0.4, 0.2, 0.3], dtype=np.float32))
    left = leave(logs, layout, np.arange(4), np.array([4]), 7, 0.5)
    assert left is not None
    assert (left.exit.layer, left.exit.left_C.tolist(), left.alive_C.tolist()) == (7, [0, 2], [1, 3])
    assert left.layout.tokens == layout.tokens - 6
    # Survivors end at 0.9 and 0.1; those that left scored 1/3 and 2/3 of the lowest that stayed.
    found = np.exp(with_exits(np.log(np.array([0.9, 0.1])), left.alive_C, [left.exit], layout.document_request_C))
    np.testing.assert_allclose(found, np.array([0.1 / 3, 0.9, 0.2 / 3, 0.1]) / 1.1, rtol=1e-6)
    assert leave(logs, layout, np.arange(4), np.array([4]), 7, 1.0) is None


def test_pruning_needs_fused_layers_and_gives_no_evidence(mini: Ranker) -> None:
    pruned = mini.with_spec(prune=((5, 0.5),))
    probe_model(pruned.model)
    ranking = pruned.rank("who wrote Dracula", ["Bram Stoker wrote Dracula.", "It rained.", "Paris.", "No."])
    assert len(ranking) == 4
    assert ranking[0].index == 0
    assert not pruned.remember([entry.document for entry in ranking], 1 << 20)
    with pytest.raises(InputError, match="evidence needs every document at the scoring layer"):
        list(pruned.rank_iter([RankRequest("q", ["a", "b"], evidence=True)]))
    model = decoder_model(prune=((0, 0.5),))
    with pytest.raises(ModelError, match=r"prunes documents, which needs fused layers: it was loaded with"):
        scores(model, layout_of(model.spec, [2, 3]))


@pytest.mark.parametrize(
    ("prune", "sentence"),
    [
        (((2, 0.5),), "must rise and stay below layer 2"),
        (((1, 0.5), (0, 0.2)), "must rise and stay below RankSpec.layer"),
        (((0, 0.5), (1, 0.7)), "they must fall and lie in"),
        (((0, 0.0),), "they must fall and lie in"),
        (((0, 1.0),), "they must fall and lie in"),
        (((0, 0.5), (1, 0.5)), "they must fall and lie in"),
        (((-1, 0.5),), "counts from 0; -1 is negative"),
    ],
)
def test_schedules_that_make_no_sense(prune: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        golden_spec(prune=prune)


def test_a_schedule_survives_being_saved(tmp_path: Any) -> None:
    spec = golden_spec(prune=((0, 0.5), (1, 0.25)), prune_by="lens")
    spec.save(tmp_path)
    assert RankSpec.load(tmp_path) == spec
