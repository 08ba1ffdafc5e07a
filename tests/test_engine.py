"""Fused layers against the library's own; parts of a layout against the whole; documents that leave early."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
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
    random_layout,
    rank_model,
    tokenised,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from blockrank import InputError, ModelError, Ranker, RankRequest, RankSpec, engine
from blockrank.attention import default_backends, get_backend
from blockrank.attention.backend import kernels_unavailable
from blockrank.attention.reference import dense_mask
from blockrank.attention.tiles import cut_tiles, tile_tokens
from blockrank.engine import block as blocks
from blockrank.engine import kernels, onednn
from blockrank.engine.capture import Capture, Wanted
from blockrank.engine.linear import Linear
from blockrank.layout import PackedLayout, pack
from blockrank.model import LoadedModel, RankModel, load_model, resolve_device, resolve_devices
from blockrank.model.probe import probe_model, rows_apart
from blockrank.readout.exits import leave, with_exits
from blockrank.readout.signals import log_scores
from blockrank.scorers import AttentionScorer, Scored

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


def test_the_probe_compares_fused_layers_with_the_librarys() -> None:
    model = decoder_model()
    model.weights.fuse()
    probe_model(model)
    assert model.decoder is not None
    model.decoder.blocks[1].middle = replace(model.decoder.blocks[0].entry, shift=0.5)  # type: ignore[type-var]
    with pytest.raises(
        ModelError, match=r"fused layers of MistralModel .* differ from its own .* pass layers='library'"
    ):
        probe_model(model)


def test_the_probe_forgives_a_row_that_half_precision_throws_off_and_no_more() -> None:
    right = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    one_row, every_row, broken = right.clone(), right * 1.25, right.clone()
    one_row[1] *= 3
    broken[1, 0, 0] = torch.nan
    assert rows_apart(one_row, right) == 0
    assert rows_apart(one_row.float(), right.float()) == pytest.approx(2, rel=1e-2)
    assert rows_apart(every_row, right) == pytest.approx(0.25, abs=0.01)
    assert rows_apart(torch.cat((right[:30], every_row[30:])), right) > 0.24  # a quarter of the rows
    assert rows_apart(broken, right) == float("inf")


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


@pytest.mark.skipif(not onednn.takes(torch.empty(0)), reason="this processor gains nothing by it")
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_through_onednn_is_the_product(dtype: torch.dtype, biased: bool) -> None:
    if not onednn.takes(torch.empty(0, dtype=dtype)):
        pytest.skip(f"this processor does not compute in {dtype}")
    linear = Linear(torch.randn(48, 64).to(dtype), torch.randn(48).to(dtype) if biased else None)
    bias = 0 if linear.bias_N is None else linear.bias_N.double()
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    whole = torch.randn(70, 64).to(dtype)
    whole[40:] = torch.nan  # rows behind those that are asked for do not count
    for x in (whole[:1], whole[:16], whole[:37], whole[3:40], whole[:37].clone(), whole[:0], whole.t()[:, :37].t()):
        expected = x.double() @ linear.weight_ND.double().t() + bias
        torch.testing.assert_close(linear(x).double(), expected, **tolerance)
        out = torch.full((len(x), 48), torch.nan, dtype=dtype)
        assert linear(x, out=out) is out
        torch.testing.assert_close(out.double(), expected, **tolerance)
        for kind, approximate in (("gelu", "none"), ("gelu_tanh", "tanh")):
            assert linear.activates(kind)
            found = linear.activated(x, kind).double()
            torch.testing.assert_close(found, F.gelu(expected, approximate=approximate), **tolerance)
        if linear.accumulates:
            total = torch.ones(len(x), 48, dtype=dtype)
            linear.add_to(total, x)
            torch.testing.assert_close(total.double(), expected + 1, **tolerance)
    assert not linear.activates("silu")


def test_what_onednn_is_not_asked_for() -> None:
    for weight in (torch.empty(0, dtype=torch.float64), torch.empty(0, device="meta")):
        assert not onednn.takes(weight)
    assert not Linear(torch.randn(48, 64), None).quantise(torch.int8).activates("gelu")


# 8-bit types (floats of 8 bits by torch's own product on the processor, for the arithmetic alone)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_a_product_in_eight_bits_is_exact_up_to_its_factors(dtype: torch.dtype, biased: bool) -> None:
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


def test_integer_products_are_exact_without_instructions_for_them() -> None:
    """On AVX2 alone sums of pairs overflow in silence where a weight uses all 8 bits."""
    code = """
import torch
from blockrank.engine.kernels import quantise_rows
from blockrank.engine.linear import Linear
weight, x = torch.ones(48, 64), torch.ones(20, 64)
weight[::2] = -1
product = Linear(weight, None).quantise(torch.int8)(quantise_rows(x, torch.int8))
torch.testing.assert_close(product, x @ weight.t())
"""
    exec(code, {})  # with what this processor has
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"})


def test_rows_of_zeros_stay_zeros_in_eight_bits() -> None:
    for dtype in kernels.LARGEST:
        rows = kernels.quantise_rows(torch.zeros(2, 16), dtype)
        assert bool((rows.values.float() * rows.scale == 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_eight_bits_infers_and_does_nothing_else(kind: str) -> None:
    model = decoder_model(kind)
    layout = layout_of(model.spec, [4, 9, 12])
    expected = scores(model, layout)
    model.weights.quantise(torch.int8)
    found = scores(model, layout)
    assert 0 < float(((found - expected) / expected).abs().max()) < 0.05
    for call in (model.in_library_layers, lambda: model.forward(layout)):  # with gradients, that is
        with pytest.raises(ModelError, match="loaded in int8 or fp8: it can infer, and nothing else"):
            call()


def test_widths_that_eight_bits_do_not_take() -> None:
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


def test_the_embedded_model_in_eight_bits(mini: Ranker) -> None:
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


# Tiles


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


def test_the_table_of_default_backends() -> None:
    cuda, half = torch.device("cuda"), torch.bfloat16
    assert default_backends(cuda, half) == ("triton", "varlen", "sdpa")
    assert default_backends(cuda, half, training=True) == ("varlen", "sdpa")
    assert default_backends(cuda, torch.float32) == ("sdpa",)
    assert default_backends(CPU, half) == default_backends(CPU, torch.float32, training=True) == ("sdpa",)
    assert get_backend(None, CPU, torch.float32).name == "sdpa"
    with pytest.raises(InputError, match="backend 'triton' cannot run here: it needs a CUDA device"):
        get_backend("triton", CPU, torch.float32)


def test_where_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"triton": object(), "gcc": "/usr/bin/gcc", "capability": (8, 0)}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found["triton"])
    monkeypatch.setattr("shutil.which", lambda name: found.get(name))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: found["capability"])
    monkeypatch.delenv("CC", raising=False)

    def reason(dtype: torch.dtype = torch.bfloat16) -> str | None:
        kernels_unavailable.cache_clear()
        return kernels_unavailable(torch.device("cuda"), dtype)

    try:
        assert reason() is reason(torch.float32) is None
        assert reason(torch.float64) == "it needs float16, bfloat16 or float32, not torch.float64."
        found["gcc"] = None
        assert reason() == "triton needs a C compiler: install gcc or clang, or set CC."
        monkeypatch.setenv("CC", "tcc")
        assert reason() is None
        found["capability"] = (7, 5)
        assert reason() == "it needs compute capability 8.0 or later."
        found["triton"] = None
        assert str(reason()).startswith("it needs the package triton")
    finally:
        kernels_unavailable.cache_clear()


# Parts of a layout on several devices


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


# Documents that leave early


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
