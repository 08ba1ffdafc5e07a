"""What runs on CUDA alone, against the dense reference and the host: backends, fused layers, int8 and fp8, parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    FAMILIES,
    byte_tokenizer,
    golden_case,
    golden_module,
    golden_spec,
    random_decoder,
    random_layout,
    tokenised,
)
from scipy.stats import kendalltau

from blockrank import Document, Ranker, RankRequest, Template, engine
from blockrank.attention import get_backend
from blockrank.decode import Sampling, decode, generate
from blockrank.decode.answers import Grammar, answer_tokens
from blockrank.decode.search import searches_of, step_layout
from blockrank.engine import kernels
from blockrank.engine.capture import Wanted
from blockrank.engine.kernels import Norm, Quantised
from blockrank.engine.linear import Linear
from blockrank.layout import PackedLayout, PromptTokenizer, pack
from blockrank.model import LoadedModel, RankModel
from blockrank.readout.plan import plan_readout
from blockrank.readout.signals import document_lse, log_scores, segment_lse
from blockrank.scorers import AttentionScorer
from blockrank.spec import RankSpec

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CUDA = torch.device("cuda")
# Mistral's and Llama's shape, one without grouped heads, one with normed heads, one like Gemma, widths off the grid.
SHAPES: dict[str, dict[str, Any]] = {
    "mistral": {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "sliding_window": None},
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 96},
    "qwen3": {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 128},
    "gemma": {
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma3_text": {
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64, "layer_types": ["full_attention"] * 3,
    },
}  # fmt: skip
LENGTHS = (30, *(int(n) for n in np.random.default_rng(3).integers(1, 150, 60)), 25)


def _layout(spec: RankSpec) -> PackedLayout:
    return pack([tokenised(golden_case("mistral", name).segments) for name in ("ragged12", "ragged3")], spec)


def _scores(model: RankModel, layout: PackedLayout) -> torch.Tensor:
    with torch.inference_mode():
        return AttentionScorer().read(model, layout).scores_C.float().cpu()


def _golden_scores(family: str, backend: str, dtype: torch.dtype, spec: RankSpec, layout: PackedLayout) -> torch.Tensor:
    module = golden_module(family).to(CUDA, dtype)
    return _scores(RankModel(LoadedModel(module, name=family), spec, get_backend(backend, CUDA, dtype)), layout)


@pytest.mark.parametrize("attend", ["causal", "bidirectional"])
@pytest.mark.parametrize("family", FAMILIES)
def test_backends_agree_with_the_reference(family: str, attend: str) -> None:
    spec = golden_spec(document_attention=attend, query_attention=attend)
    layout = _layout(spec)
    expected = _golden_scores(family, "reference", torch.float32, spec, layout)
    for backend in ("sdpa", "triton"):
        found = _golden_scores(family, backend, torch.float32, spec, layout)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    expected = _golden_scores(family, "reference", torch.bfloat16, spec, layout)
    for backend in ("sdpa", "varlen", "triton"):
        found = _golden_scores(family, backend, torch.bfloat16, spec, layout)
        torch.testing.assert_close(found, expected, atol=0, rtol=2e-2)


def _spread_model(kind: str, backend: str, dtype: torch.dtype) -> RankModel:
    """Random weights whose scores are far apart."""
    module = random_decoder(kind, hidden_size=256, intermediate_size=512, **SHAPES[kind]).to(CUDA, dtype)
    spec = RankSpec.of(layer=2, template="blockrank", query_offset=4096)
    for layer in module.layers:
        layer.self_attn.k_proj.weight.data *= 3
    return RankModel(LoadedModel(module, name=kind), spec, get_backend(backend, CUDA, dtype))


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("requests", [1, 3])
def test_fused_layers_agree_with_the_reference(kind: str, requests: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = _spread_model(kind, "reference", dtype)
        layout = pack([_request(seed) for seed in range(requests)], model.spec)
        expected = _scores(model, layout)
        assert float(expected.max() / expected.min()) > 3
        for backend in ("sdpa", "triton") if dtype == torch.float32 else ("sdpa", "varlen", "triton"):
            model.backend = get_backend(backend, CUDA, dtype)
            model.weights.fuse()
            found = _scores(model, layout)
            if dtype == torch.float32:
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
                continue
            # Both round to bfloat16 in their own places: what they differ by is the noise of the type.
            assert float(((found - expected).abs() / expected).median()) < 2e-2
            assert kendalltau(found.numpy(), expected.numpy()).statistic > 0.98


def _request(seed: int) -> Any:
    generator = np.random.default_rng(seed)
    return tokenised([generator.integers(3, 500, n) for n in LENGTHS])


@pytest.mark.parametrize("reads", ["all", "own"])
def test_gradients_of_varlen_equal_the_reference(reads: str) -> None:
    spec = golden_spec(document_attention="bidirectional", query_attention="bidirectional", query_reads=reads)
    layout = _layout(spec)
    q_TNH = torch.randn(layout.tokens, 4, 16, device=CUDA)
    k_PKH, v_PKH = (torch.randn(layout.rows, 2, 16, device=CUDA) for _ in range(2))
    grads = {}
    for name, dtype in (("reference", torch.float32), ("varlen", torch.bfloat16)):
        backend = get_backend(name, CUDA, dtype)
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in (q_TNH, k_PKH, v_PKH)]
        out = backend.attend(*inputs, backend.plan(layout, CUDA), 0.25)
        out.float().square().sum().backward()
        grads[name] = [tensor.grad.float() for tensor in inputs if tensor.grad is not None]
    for expected, got in zip(grads["reference"], grads["varlen"], strict=True):
        assert float((got - expected).norm() / expected.norm()) < 2e-2


def test_a_split_query_and_its_log_sum_exps_equal_the_reference() -> None:
    spec = golden_spec()
    layout = random_layout([40, *[200] * 30, 50], spec)
    q, k, v = (torch.randn(layout.tokens, heads, 128, device=CUDA) for heads in (8, 2, 2))
    reference, triton = get_backend("reference", CUDA, torch.float32), get_backend("triton", CUDA, torch.float32)
    expected = reference.attend_part(q, k, v, reference.plan(layout, CUDA), 0.1)
    found = triton.attend_part(q, k, v, triton.plan(layout, CUDA), 0.1)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cosine", ["none", "keys", "both"])
@pytest.mark.parametrize("joined", [False, True])
def test_the_kernel_of_the_read_out_equals_plain_torch(joined: bool, cosine: str) -> None:
    for heads, kv_heads, width in ((32, 8, 128), (12, 12, 32), (5, 1, 24)):
        for tokens in (1, 2, "query"):
            spec = golden_spec(joined_heads=joined, cosine=cosine, signal_tokens=tokens, logit_scale=2.0)
            layout = pack([_request(0), _request(1)], spec)
            q_GNH = torch.randn(len(layout.signal_G), heads, width, device=CUDA)
            qkv = torch.randn(layout.tokens, heads + 2 * kv_heads, width, device=CUDA)
            readout = plan_readout(q_GNH, qkv[:, heads : heads + kv_heads], layout, spec, 0.1)
            expected = segment_lse(readout, readout.segments_C, readout.requests_C)
            with torch.inference_mode():
                found = document_lse(readout)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# Kernels


def _close(found: torch.Tensor | Quantised, expected: torch.Tensor | Quantised) -> None:
    if isinstance(expected, Quantised):
        assert isinstance(found, Quantised)
        torch.testing.assert_close(found.scale, expected.scale, atol=1e-7, rtol=1e-5)
        one, two = found.values.float() * found.scale, expected.values.float() * expected.scale
        # A value between two codes may fall to either side.
        assert bool(((one - two).abs() <= two.abs() / 7 + 1e-3 * expected.scale).all())
        assert float((found.values.float() != expected.values.float()).float().mean()) < 1e-2
    else:
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [48, 384, 4096])
@pytest.mark.parametrize("quantise", [None, torch.float8_e4m3fn])
def test_fused_norms_equal_plain_ones(width: int, quantise: torch.dtype | None) -> None:
    from blockrank.engine import kernels_triton

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=CUDA)

    norms = (
        Norm(draw(width), 1e-5),
        Norm(draw(width), 1e-5, draw(width), centred=True),
        Norm(draw(width), 1e-6, shift=1.0),
    )
    for norm in norms:
        inner = Norm(draw(width), norm.eps, shift=norm.shift)
        for delta, delta_norm in (
            (None, None),
            (draw(9, width), None),
            (draw(9, width), None if norm.centred else inner),
        ):
            for keep_norm in (False, True):
                x = draw(9, width)
                options: dict[str, Any] = {"delta_norm": delta_norm, "keep_norm": keep_norm, "quantise": quantise}
                streams = [x.clone(), x.clone()]
                expected = kernels.add_norm(streams[0], delta, norm, **options)
                _close(kernels_triton.add_norm(streams[1], delta, norm, **options), expected)
                torch.testing.assert_close(streams[1], streams[0], atol=1e-5, rtol=1e-5)


def test_fused_rotation_and_activation_equal_plain_ones() -> None:
    from blockrank.engine import kernels_triton

    for heads, kv_heads, width in ((32, 8, 128), (5, 1, 24)):
        weights = [torch.randn(width, device=CUDA) for _ in range(2)]
        for norms in (None, (Norm(weights[0], 1e-6), Norm(weights[1], 1e-6)), (Norm(weights[0], 1e-6, shift=1.0),) * 2):
            qkv = torch.randn(11, heads + 2 * kv_heads, width, device=CUDA)
            cos, sin = torch.randn(11, width, device=CUDA), torch.randn(11, width, device=CUDA)
            one, two = qkv.clone(), qkv.clone()
            kernels.rotate_heads(one[:, : heads + kv_heads], heads, cos, sin, norms)
            kernels_triton.rotate_heads(two[:, : heads + kv_heads], heads, cos, sin, norms)
            torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-5)
    x = torch.randn(9, 2 * 14336, device=CUDA)
    for kind in ("silu", "gelu", "gelu_tanh"):
        for gated in (False, True):
            for quantise in (None, torch.float8_e4m3fn):
                _close(kernels_triton.activate(x, kind, gated, quantise), kernels.activate(x, kind, gated, quantise))
    _close(kernels_triton.quantise_rows(x, torch.float8_e4m3fn), kernels.quantise_rows(x, torch.float8_e4m3fn))


# 8-bit types


def test_a_product_in_fp8() -> None:
    exact = Linear(
        torch.randn(96, 64, device=CUDA, dtype=torch.bfloat16), torch.randn(96, device=CUDA, dtype=torch.bfloat16)
    )
    small, x = exact.quantise(torch.float8_e4m3fn), torch.randn(33, 64, device=CUDA, dtype=torch.bfloat16)
    rows = kernels.quantise_rows(x, torch.float8_e4m3fn)
    assert small.scale_N is not None
    expected = (rows.values.float() * rows.scale) @ (small.weight_ND.float() * small.scale_N[:, None]).t()
    expected = expected + exact.bias_N.float()  # type: ignore[union-attr]
    torch.testing.assert_close(small(rows).float(), expected, atol=5e-2, rtol=2e-2)
    assert float((small(rows) - exact(x)).float().norm() / exact(x).float().norm()) < 6e-2


def test_a_model_in_fp8_orders_as_in_bfloat16() -> None:
    ranker, small = (Ranker.from_pretrained(device="cuda", dtype=dtype) for dtype in ("bfloat16", "fp8"))
    documents = [Document(f"Bram Stoker wrote {n} letters about {'Dracula' * (n % 5)}.", f"d{n}") for n in range(40)]
    expected, found = (r.rank("who wrote Dracula", documents) for r in (ranker, small))
    scores = [[{e.doc_id: e.score for e in ranking}[f"d{n}"] for n in range(40)] for ranking in (expected, found)]
    assert kendalltau(*scores).statistic > 0.8
    with pytest.raises(Exception, match="it can infer, and nothing else"):
        small.model.in_library_layers()


# The whole way


def test_exits_and_parts_on_a_device_equal_the_host() -> None:
    module = random_decoder("qwen3", hidden_size=64, intermediate_size=96)
    for prune in ((), ((0, 0.5), (1, 0.25))):
        spec = RankSpec.of(layer=2, template="blockrank", prune=prune)
        layout = pack([_request(0), _request(1)], spec)
        host = RankModel(LoadedModel(module.cpu()), spec, get_backend("sdpa", torch.device("cpu"), torch.float32))
        host.weights.fuse()
        expected = _scores(host, layout)
        model = RankModel(LoadedModel(module.to(CUDA)), spec, get_backend("triton", CUDA, torch.float32))
        model.weights.fuse()
        torch.testing.assert_close(_scores(model, layout), expected, atol=1e-5, rtol=1e-3)
        assert model.decoder is not None
        wanted = Wanted.read_out(spec)
        with torch.inference_mode():
            capture = engine.forward([model.decoder] * 3, layout, wanted, spec, model.backend)
            whole = engine.forward([model.decoder], layout, wanted, spec, model.backend)
            found, one = (
                log_scores(c.only.q_GNH, c.only.k_PKH, c.layout, spec, c.only.scale) for c in (capture, whole)
            )
        torch.testing.assert_close(found, one, atol=1e-4, rtol=1e-4)


def test_reuse_and_evidence_on_a_device_equal_the_host() -> None:
    host, device = Ranker.from_pretrained(device="cpu"), Ranker.from_pretrained(device="cuda", dtype="float32")
    documents = [Document(f"Bram Stoker wrote {n} letters about Dracula. " * (1 + n % 4), f"d{n}") for n in range(40)]
    expected = host.rank("who wrote Dracula", documents, evidence=True)
    assert device.remember(documents, 1 << 28)
    for ranking in (
        device.rank("who wrote Dracula", documents, evidence=True),
        Ranker.from_pretrained(device="cuda").rank("who wrote Dracula", documents, evidence=True),
    ):
        assert {e.doc_id: e.score for e in ranking} == pytest.approx({e.doc_id: e.score for e in expected}, abs=1e-4)
        shares = {e.doc_id: [item.share for item in e.evidence] for e in ranking}
        for entry in expected:
            assert shares[entry.doc_id] == pytest.approx([item.share for item in entry.evidence], abs=1e-4)


def test_small_layouts_run_as_graphs_from_the_second_time_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockrank.engine.graphs.MOST_GRAPHS", 2)
    model = _spread_model("qwen3", "triton", torch.bfloat16)
    model.weights.fuse()
    graphs = model.weights.graphs
    assert graphs is not None
    draw = np.random.default_rng(0)
    for size, count in ((20, 5), (60, 20), (200, 12), (20, 5)):
        for seed in range(4):
            lengths = [7, *(int(n) for n in draw.integers(size - 3, size + 3, count)), 9]
            layout = random_layout(lengths, model.spec, seed)
            with torch.inference_mode():
                found = AttentionScorer().read(model, layout).scores_C
                capture = engine.forward(
                    [model.decoder], layout, Wanted.read_out(model.spec), model.spec, model.backend
                )  # type: ignore[list-item]
                expected = log_scores(
                    capture.only.q_GNH, capture.only.k_PKH, layout, model.spec, capture.only.scale
                ).exp()
            torch.testing.assert_close(found, expected, atol=0, rtol=2e-2)
    assert len(graphs) == 2, "the least recently used was dropped"
    large = random_layout([7, *[200] * 30, 9], model.spec)
    for _ in range(3):
        _scores(model, large)
    assert len(graphs) == 2, "large layouts run as they are"


def test_a_quantised_model_and_another_spec_share_no_stale_graph() -> None:
    ranker = Ranker.from_pretrained(device="cuda", dtype="bfloat16")
    documents = [f"Bram Stoker wrote {n} letters." for n in range(9)]
    runs = [[e.score for e in ranker.rank("who wrote Dracula", documents)] for _ in range(4)]
    assert runs[1:] == runs[:1] * 3 or runs[2] == pytest.approx(runs[0], rel=2e-2)
    ranker.model.weights.quantise(torch.float8_e4m3fn)
    small = [[e.score for e in ranker.rank("who wrote Dracula", documents)] for _ in range(4)]
    assert small[0] != runs[-1]
    assert small[3] == pytest.approx(small[0], rel=5e-2)


def test_no_size_of_a_request_compiles_a_kernel_again() -> None:
    from blockrank.attention.triton_kernels import _attend_kernel
    from blockrank.engine.kernels_triton import _activate_kernel, _add_norm_kernel, _rotate_kernel

    jitted = (_attend_kernel, _activate_kernel, _add_norm_kernel, _rotate_kernel)
    model = _spread_model("mistral", "triton", torch.bfloat16)
    model.weights.fuse()
    layouts = [
        random_layout([n, *[m] * c, n], model.spec) for n, m, c in ((4, 5, 3), (16, 32, 40), (17, 65, 30), (1, 200, 9))
    ]
    _scores(model, layouts[0])
    _scores(model, layouts[1])
    before = [_variants(kernel) for kernel in jitted]
    for layout in layouts[2:]:
        _scores(model, layout)
    assert [_variants(kernel) for kernel in jitted] == before


def _variants(kernel: Any) -> int:
    return sum(len(item[0]) for item in kernel.device_caches.values())


def test_spec_fields_of_the_read_out_survive_fusing() -> None:
    model = _spread_model("llama", "triton", torch.float32)
    for changes in (
        {"softmax_over": "all"},
        {"query_reads": "own"},
        {"signal_tokens": "query", "signal_pooling": "geometric"},
    ):
        spec = model.spec.changed(**changes)
        layout = pack([_request(0)], spec)
        expected = _scores(RankModel(model.weights, spec, get_backend("reference", CUDA, torch.float32)), layout)
        fused = RankModel(model.weights, spec, model.backend)
        fused.weights.fuse()
        torch.testing.assert_close(_scores(fused, layout), expected, atol=1e-5, rtol=1e-3)


# Full attention, and decoding


def _attention_agrees(layout: PackedLayout, kv_heads: int = 2) -> None:
    """Every backend's attention of a layout equals the dense one."""
    q_TNH = torch.randn(layout.tokens, 8, 64, device=CUDA)
    k_PKH, v_PKH = (torch.randn(layout.rows, kv_heads, 64, device=CUDA) for _ in range(2))
    for names, dtype, tolerance in (
        (("sdpa", "triton"), torch.float32, 1e-4),
        (("sdpa", "varlen", "triton"), torch.bfloat16, 2e-2),
    ):
        inputs = [item.to(dtype) for item in (q_TNH, k_PKH, v_PKH)]
        reference = get_backend("reference", CUDA, dtype)
        expected = reference.attend(*inputs, reference.plan(layout, CUDA), 0.125)
        for name in names:
            backend = get_backend(name, CUDA, dtype)
            found = backend.attend(*inputs, backend.plan(layout, CUDA), 0.125)
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_backends_agree_under_the_causal_pattern() -> None:
    spec = golden_spec(pattern="causal", query_offset=None)
    _attention_agrees(pack([_request(0), _request(1)], spec))
    _attention_agrees(random_layout([9, *[150] * 20, 30], spec))


@pytest.mark.parametrize("kind", SHAPES)
def test_fused_layers_agree_with_the_reference_under_the_causal_pattern(kind: str) -> None:
    model = _spread_model(kind, "reference", torch.float32)
    model = model.with_spec(model.spec.changed(pattern="causal", query_offset=None))
    layouts = [pack([_request(0), _request(1)], model.spec), random_layout([5, 9, 7, 6], model.spec)]
    expected = [_scores(model, layout) for layout in layouts]
    model.backend = get_backend("triton", CUDA, torch.float32)
    model.weights.fuse()
    for layout, scores in zip(layouts, expected, strict=True):
        for _ in range(3):  # as it is, captured, and replayed where it is small enough
            torch.testing.assert_close(_scores(model, layout), scores, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("tokens", [9, 900])
def test_backends_agree_on_steps_of_a_search(tokens: int) -> None:
    """Several beams over cached rows: few of them, and more than one tile of the `triton` backend reads at once."""
    found = answer_tokens(PromptTokenizer(byte_tokenizer()), _NUMBERED, 3)
    spec = golden_spec(template=_NUMBERED)
    generator = np.random.default_rng(0)
    requests = [tokenised([generator.integers(3, 200, n) for n in (5, tokens, tokens, tokens, 7)]) for _ in range(2)]
    searches = searches_of(pack(requests, spec), [Grammar(found, 3, "list")] * 2, 4)
    for _ in range(3):
        for search in searches:
            options = [search.grammar.options(beam.state) for beam in search.live]
            search.advance(options, [[float(generator.normal()) for _ in one] for one in options])
        _attention_agrees(step_layout(searches))


_NUMBERED = Template(("{query};",), ("D{id}:{text};",), ("Q:{query};A",), answer="[")


@pytest.mark.parametrize("sampling", [Sampling(16), Sampling(16, 0.9, 0.95)])
def test_texts_written_on_a_device_equal_those_of_the_host(sampling: Sampling) -> None:
    spec = golden_spec(template=_NUMBERED, pattern="causal", query_offset=None)
    requests = [RankRequest("red", [f"text {i} " * (1 + i % 3) for i in range(count)]) for count in (12, 3)]
    found = []
    for device, name in ((torch.device("cpu"), "reference"), (CUDA, "reference"), (CUDA, "sdpa"), (CUDA, "triton")):
        weights = LoadedModel(golden_module("qwen3").to(device), byte_tokenizer())
        model = RankModel(weights, spec, get_backend(name, device, torch.float32))
        assert model.tokenizer is not None
        prompts = [model.tokenizer.tokenise_request(request, spec) for request in requests]
        found.append(generate(model, prompts, sampling, seeds=[1, 2]))
    assert found[1:] == found[:1] * 3


@pytest.mark.parametrize("pattern", ["block", "causal"])
def test_decoding_on_a_device_equals_the_host(pattern: Any) -> None:
    spec = golden_spec(template=_NUMBERED, pattern=pattern, query_offset=None if pattern == "causal" else 64)
    requests = [RankRequest("red", [f"text {i} " * (1 + i % 3) for i in range(count)]) for count in (12, 3)]
    cpu = torch.device("cpu")
    host = RankModel(
        LoadedModel(golden_module("qwen3"), byte_tokenizer()), spec, get_backend("reference", cpu, torch.float32)
    )
    expected = decode(host, requests, beams=12)
    lists = decode(host, requests, beams=3, form="list")
    for names, dtype, tolerance in (
        (("reference", "sdpa", "triton"), torch.float32, 1e-3),
        (("sdpa", "varlen", "triton"), torch.bfloat16, 0.15),
    ):
        for name in names:
            module = golden_module("qwen3").to(CUDA, dtype)
            model = RankModel(LoadedModel(module, byte_tokenizer()), spec, get_backend(name, CUDA, dtype))
            for one, two in zip(decode(model, requests, beams=12), expected, strict=True):
                found = dict(zip(one.generated, one.log_probs, strict=True))
                assert found == pytest.approx(dict(zip(two.generated, two.log_probs, strict=True)), abs=tolerance)
            if dtype == torch.float32:
                assert [item.generated for item in decode(model, requests, beams=3, form="list")] == [
                    item.generated for item in lists
                ]
