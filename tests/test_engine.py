"""Fused layers against the library's own; parts of a layout against the whole; documents that leave early."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    CPU,
    FAMILIES,
    TOLERANCE,
    golden_case,
    golden_spec,
    random_decoder,
    rank_model,
    tokenised,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from blockrank import InputError, ModelError, Ranker, RankRequest, RankSpec, engine
from blockrank.attention import get_backend
from blockrank.engine import block as blocks
from blockrank.engine import kernels
from blockrank.engine.capture import Capture, Wanted
from blockrank.engine.linear import Linear
from blockrank.layout import PackedLayout, pack
from blockrank.model import LoadedModel, RankModel
from blockrank.scorers import AttentionScorer

KINDS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "llama": {"attention_bias": True, "num_key_value_heads": 4},
    "qwen2": {},
    "qwen3": {},
    "gemma": {"hidden_activation": "gelu_pytorch_tanh", "num_key_value_heads": 1},
    "gemma3_text": {
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "sliding_window": 1 << 20,
    },
    "bert": {"is_decoder": True},
}
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"document_attention": "bidirectional", "query_attention": "bidirectional"},
    {"softmax_over": "all"},
    {"query_reads": "own", "signal_tokens": "query", "signal_pooling": "geometric"},
    {"signal_tokens": 1},
)
lengths = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def decoder_model(kind: str = "mistral", backend: str = "sdpa", **changes: Any) -> RankModel:
    spec = golden_spec(**{"query_offset": 200, **changes})
    module = random_decoder(kind, **KINDS[kind])
    return RankModel(LoadedModel(module, name=kind), spec, get_backend(backend, CPU, torch.float32))


def layout_of(spec: RankSpec, *requests: list[int]) -> PackedLayout:
    generator = np.random.default_rng(0)
    return pack(
        [tokenised([generator.integers(3, 500, n) for n in [5, *documents, 20]]) for documents in requests], spec
    )


def captured(model: RankModel, layout: PackedLayout) -> Capture:
    with torch.inference_mode():
        return model.forward(layout)


def scores(model: RankModel, layout: PackedLayout) -> torch.Tensor:
    with torch.inference_mode():
        return AttentionScorer().read(model, layout).scores_C


# Fused layers


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_fused_layers_equal_the_librarys_own(kind: str, changes: dict[str, Any]) -> None:
    model = decoder_model(kind, **changes)
    layout = layout_of(model.spec, [3, 17, 1, 9], [4], [30, 2])
    expected = scores(model, layout)
    model.weights.fuse()
    torch.testing.assert_close(scores(model, layout), expected, atol=2e-6, rtol=1e-4)
    assert model.decoder is not None
    assert model.decoder.family in engine.FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_the_golden_models_fused(family: str) -> None:
    model = rank_model(family)
    model.weights.fuse()
    case = golden_case(family, "ragged12")
    found = scores(model, pack([tokenised(case.segments)], model.spec))
    torch.testing.assert_close(found, case.expected["scores"].float(), atol=1e-6, rtol=0)


@given(lengths, st.sampled_from([7, 128, 1 << 20]))
@settings(max_examples=20, deadline=None)
def test_rows_in_chunks_give_the_same(documents: list[int], size: int) -> None:
    model = decoder_model("qwen3")
    model.weights.fuse()
    layout = layout_of(model.spec, documents)
    expected = scores(model, layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(blocks.CHUNK_ROWS, "cpu", size)
        torch.testing.assert_close(scores(model, layout), expected, atol=1e-6, rtol=1e-4)


def test_chunks_cover_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blocks.CHUNK_ROWS, "cpu", 512)
    for tokens in (0, 1, 127, 128, 129, 1000, 4097, 100_000):
        bounds = blocks.chunks(tokens, CPU)
        assert [row for start, end in bounds for row in range(start, end)] == list(range(tokens))
        assert max((end - start for start, end in bounds), default=0) <= 640


def test_only_what_the_score_needs_runs_in_the_last_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder_model()
    layout = layout_of(model.spec, [2, 3])
    expected = scores(model, layout)
    model.weights.fuse()
    rows: list[int] = []
    finish = blocks.FusedLayer.finish
    monkeypatch.setattr(
        blocks.FusedLayer, "finish", lambda self, stream, out: (rows.append(len(out)), finish(self, stream, out))
    )
    torch.testing.assert_close(scores(model, layout), expected, atol=1e-6, rtol=1e-5)
    assert rows == [30, 2 + 3 + 2], "documents and signal tokens alone"


def test_the_librarys_layers_still_work_and_see_new_weights() -> None:
    model = decoder_model()
    layout = layout_of(model.spec, [4, 9])
    before = captured(model, layout)
    model.weights.fuse()
    again = captured(model.in_library_layers(), layout)
    torch.testing.assert_close(again.only.k_PKH, before.only.k_PKH)
    with torch.no_grad():
        model.module.layers[0].self_attn.v_proj.weight.mul_(1.5)
        model.module.layers[1].mlp.up_proj.weight.mul_(0.5)
    again = captured(model.in_library_layers(), layout)
    torch.testing.assert_close(captured(model, layout).only.q_GNH, again.only.q_GNH)


def test_training_uses_the_librarys_layers() -> None:
    model = decoder_model()
    model.weights.fuse()
    layout = layout_of(model.spec, [4, 9])
    wanted = Wanted((0, 2), hidden_R=np.arange(layout.tokens))
    found = model.forward(layout, wanted)
    assert found.hidden_RD is not None
    for part in (found.hidden_RD, *(layer.q_GNH for layer in found.layers), *(layer.k_PKH for layer in found.layers)):
        assert part.requires_grad


def test_ranking_takes_no_notice_of_autocast(mini: Ranker) -> None:
    model = decoder_model("bert")
    model.module.to(torch.bfloat16)
    model.weights.fuse()
    layout = layout_of(model.spec, [4, 9])
    expected, ranking = captured(model, layout), mini.rank("who", ["one text", "another"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, again = captured(model, layout), mini.rank("who", ["one text", "another"])
    torch.testing.assert_close(
        (found.only.q_GNH, found.only.k_PKH), (expected.only.q_GNH, expected.only.k_PKH), atol=0, rtol=0
    )
    assert [entry.score for entry in again] == [entry.score for entry in ranking]


def test_families_that_cannot_be_fused() -> None:
    assert "OlmoModel is not among MistralModel" in str(engine.unfusable(random_decoder("olmo", num_key_value_heads=4)))
    assert "activation 'relu'" in str(engine.unfusable(random_decoder("llama", hidden_act="relu")))
    model = RankModel(
        LoadedModel(random_decoder("olmo"), name="an olmo"), golden_spec(), get_backend("sdpa", CPU, torch.float32)
    )
    with pytest.raises(ModelError, match="the layers of an olmo cannot be fused: OlmoModel"):
        model.weights.fuse()


def test_a_window_that_binds_is_refused() -> None:
    module = random_decoder("mistral", sliding_window=100)
    model = RankModel(LoadedModel(module), golden_spec(query_offset=200), get_backend("sdpa", CPU, torch.float32))
    model.weights.fuse()
    with pytest.raises(ModelError, match="sliding_window=100, which binds on a prompt that reaches position 219"):
        captured(model, layout_of(model.spec, [4]))


# Large requests in pieces


def test_a_large_request_in_pieces_ranks_as_at_once(mini: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["river", "sea", "mountain", "city", "winter", "harvest", "engine", "signal", "protein", "market"]
    texts = [" ".join(words[i % 7 : 3 + i % 5] * (1 + i % 11)) + f" {i}" for i in range(60)]
    request = RankRequest("which river meets the sea", texts, evidence=True)
    whole, ran = mini.rank_many([request])[0], list[int]()
    plan, module = mini.model.backend.plan, import_module("blockrank.engine.forward")  # the function has its name

    def counted(layout: PackedLayout, device: torch.device) -> object:
        ran.append(layout.tokens)
        return plan(layout, device)

    monkeypatch.setattr(mini.model.backend, "plan", counted)
    for tokens, pieces in ((100, 10), (1, len(texts)), (100_000, 1)):
        monkeypatch.setattr(module, "forward_tokens", lambda _, tokens=tokens: tokens)
        ran.clear()
        found = mini.rank_many([request])[0]
        assert [entry.doc_id for entry in found] == [entry.doc_id for entry in whole]
        assert [entry.score for entry in found] == pytest.approx(
            [entry.score for entry in whole], abs=TOLERANCE["float32"]
        )
        shares = [[item.share for item in entry.evidence or ()] for entry in found]
        for one, entry in zip(shares, whole, strict=True):
            assert one == pytest.approx([item.share for item in entry.evidence or ()], abs=TOLERANCE["float32"])
        assert len(ran) >= pieces
    monkeypatch.setattr(module, "forward_tokens", lambda _: 100)
    ran.clear()
    mini.rank_many([request, request])
    assert len(ran) == 1  # requests that share a forward would run their queries once a piece


# Products through oneDNN, on processors where they are faster than torch's own


# 8-bit types (floats of 8 bits by torch's own product on the processor, for the arithmetic alone)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_a_quantised_product_is_exact_up_to_its_factors(dtype: torch.dtype, biased: bool) -> None:
    kind = torch.float32 if dtype == torch.int8 else torch.bfloat16  # what the bias and the product are in
    exact = Linear(torch.randn(48, 64, dtype=kind), torch.randn(48, dtype=kind) if biased else None)
    x = torch.randn(20, 64)
    small, rows = exact.quantise(dtype), kernels.quantise_rows(x, dtype)
    assert small.takes == rows.values.dtype == dtype
    assert small.scale_N is not None
    bias = 0 if exact.bias_N is None else exact.bias_N.float()
    expected = (rows.values.float() * rows.scale) @ (small.weight_ND.float() * small.scale_N[:, None]).t() + bias
    tolerance = {"atol": 1e-4, "rtol": 1e-5} if dtype == torch.int8 else {"atol": 5e-2, "rtol": 1e-2}
    torch.testing.assert_close(small(rows).float(), expected, **tolerance)
    torch.testing.assert_close(small.outputs(16, 32)(rows).float(), expected[:, 16:32], **tolerance)
    out = torch.empty(20, 48, dtype=kind)
    assert small(rows, out=out).data_ptr() == out.data_ptr()
    whole = x @ exact.weight_ND.float().t() + bias
    assert float((small(rows).float() - whole).norm() / whole.norm()) < (0.02 if dtype == torch.int8 else 0.06)
    assert small.accumulates is False


def test_quantised_rows_of_zeros_stay_zeros() -> None:
    for dtype in kernels.LARGEST:
        rows = kernels.quantise_rows(torch.zeros(2, 16), dtype)
        assert bool((rows.values.float() * rows.scale == 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_int8_infers_and_does_nothing_else(kind: str) -> None:
    model = decoder_model(kind)
    layout = layout_of(model.spec, [4, 9, 12])
    expected = scores(model, layout)
    model.weights.quantise(torch.int8)
    found = scores(model, layout)
    assert 0 < float(((found - expected) / expected).abs().max()) < 0.05
    for call in (model.in_library_layers, lambda: model.forward(layout)):  # with gradients, that is
        with pytest.raises(ModelError, match="loaded in int8 or fp8: it can infer, and nothing else"):
            call()


def test_widths_that_int8_does_not_take() -> None:
    model = RankModel(
        LoadedModel(random_decoder("llama", intermediate_size=44), name="odd"),
        golden_spec(),
        get_backend("sdpa", CPU, torch.float32),
    )
    with pytest.raises(ModelError, match="odd has a product of 88 x 32: 8-bit products take multiples of 16"):
        model.weights.quantise(torch.int8)


def test_layers_may_be_left_as_they_are() -> None:
    model = decoder_model("llama")
    layout = layout_of(model.spec, [4, 9, 12])
    expected = scores(model, layout)
    model.weights.quantise(torch.int8, exact_layers=range(3))
    torch.testing.assert_close(scores(model, layout), expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(ModelError, match="loaded in int8 or fp8"):
        model.in_library_layers()


def test_the_embedded_model_in_int8(mini: Ranker) -> None:
    with torch.inference_mode():  # loading does not mind
        small = Ranker.from_pretrained(device="cpu", dtype="int8")
    documents = [
        "Bram Stoker wrote Dracula.",
        "Dracula fears garlic.",
        "It rained.",
        "Paris is in France.",
        "Who wrote?",
    ]
    expected, found = (ranker.rank("who wrote Dracula", documents) for ranker in (mini, small))
    assert [entry.index for entry in found] == [entry.index for entry in expected]
    assert [entry.score for entry in found] == pytest.approx([entry.score for entry in expected], abs=0.02)
    with pytest.raises(InputError, match="dtype 'fp8' needs a CUDA device"):
        Ranker.from_pretrained(device="cpu", dtype="fp8")
    with pytest.raises(InputError, match="dtype 'int8' needs fused layers: it does not go with layers='library'"):
        Ranker.from_pretrained(device="cpu", dtype="int8", layers="library")
