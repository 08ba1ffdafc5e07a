"""Documents of a layout shared out over devices."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import (
    CPU,
    TOLERANCE,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import VARIANTS, decoder_model, layout_of, lengths, scores

from blockrank import InputError, Ranker, RankRequest, engine
from blockrank.engine.capture import Wanted
from blockrank.layout import PackedLayout, pack
from blockrank.model import RankModel, load_model, resolve_device, resolve_devices
from blockrank.readout.signals import log_scores
from blockrank.scorers import AttentionScorer, Scored


@given(st.lists(lengths, min_size=1, max_size=2), st.integers(2, 4), st.sampled_from(VARIANTS))
@settings(max_examples=20, deadline=None)
def test_documents_in_parts_score_as_together(requests: list[list[int]], parts: int, changes: dict[str, Any]) -> None:
    model = decoder_model("qwen3", "reference", **changes)
    model.weights.fuse()
    layout = layout_of(model.spec, *requests)
    assert model.decoder is not None
    with torch.inference_mode():
        capture = engine.forward(
            [model.decoder] * parts, layout, Wanted.read_out(model.spec), model.spec, model.backend
        )
        found = log_scores(capture.only.q_GNH, capture.only.k_PKH, capture.layout, model.spec, capture.only.scale).exp()
    torch.testing.assert_close(found, scores(model, layout), atol=1e-6, rtol=1e-4)


def test_many_requests_run_on_every_device_in_order(mini: Ranker) -> None:
    """Two copies on the processor stand for two devices."""
    second = load_model(device="cpu", probe=False)
    model = copy.copy(mini.model)
    model.replicas = (second,)
    used: list[RankModel] = []

    class Counting(AttentionScorer):
        def read(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
            used.append(model)
            return super().read(model, layout, evidence=evidence)

    requests = [RankRequest(f"question {i}", [f"text {j} of {i}" for j in range(1 + i % 4)]) for i in range(30)]
    requests = [replace(request, query_id=f"q{i}") for i, request in enumerate(requests)]
    both = Ranker(model, Counting(), max_tokens=60)
    found = list(both.rank_iter(requests))
    assert [ranking.query_id for ranking in found] == [request.query_id for request in requests]
    assert len(used) > 10
    assert {item.decoder for item in used} == {model.decoder, second.decoder}
    for ranking, expected in zip(found, mini.rank_iter(requests), strict=True):
        assert [e.doc_id for e in ranking] == [e.doc_id for e in expected]
        assert [e.score for e in ranking] == pytest.approx([e.score for e in expected], abs=TOLERANCE["float32"])
    used.clear()
    assert len(both.rank("one request", ["a", "b"])) == 2
    assert used == [model], "one request alone is not handed over"


def test_a_query_that_reads_its_own_is_not_merged(mini: Ranker) -> None:
    decoder = mini.model.decoder
    assert decoder is not None
    layout = pack(
        [mini.tokenise(RankRequest("who wrote Dracula", [f"text {n} " * n for n in range(1, 9)])).only], mini.spec
    )
    with torch.inference_mode():
        capture = engine.forward([decoder] * 3, layout, Wanted.read_out(mini.spec), mini.spec, mini.model.backend)
        logs = log_scores(capture.only.q_GNH, capture.only.k_PKH, layout, mini.spec, capture.only.scale)
    torch.testing.assert_close(logs.exp(), scores(mini.model, layout), atol=1e-5, rtol=1e-4)


def test_several_devices_are_named_once() -> None:
    assert resolve_devices(None) == [resolve_device(None)]
    assert resolve_devices(" cpu") == resolve_devices(["cpu"]) == [CPU]
    for bad in ("cpu,cpu", [], ["cpu", CPU]):
        with pytest.raises(InputError, match="must name each device once"):
            resolve_devices(bad)
