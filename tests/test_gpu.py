"""CUDA backends against the dense reference: forward and backward, ragged, several requests, GQA."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, golden_case, golden_module, golden_spec, random_layout, tokenised

from blockrank import Document, Ranker
from blockrank.attention import get_backend
from blockrank.layout import PackedLayout, pack
from blockrank.model import RankModel
from blockrank.scorers import AttentionScorer
from blockrank.signals import log_scores
from blockrank.spec import RankSpec

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CUDA = torch.device("cuda")


def _layout(spec: RankSpec) -> PackedLayout:
    return pack([tokenised(golden_case("mistral", name).segments) for name in ("ragged12", "ragged3")], spec)


def _scores(family: str, backend: str, dtype: torch.dtype, spec: RankSpec, layout: PackedLayout) -> torch.Tensor:
    module = golden_module(family).to(CUDA, dtype)
    model = RankModel(module, None, spec, get_backend(backend, CUDA, dtype), family)
    with torch.inference_mode():
        capture = model.forward(layout)
        return log_scores(capture.q_GNH, capture.k_PKH, layout, spec, capture.scale).exp().float()


@pytest.mark.parametrize("attend", ["causal", "bidirectional"])
@pytest.mark.parametrize("family", FAMILIES)
def test_backends_agree_with_the_reference(family: str, attend: str) -> None:
    spec = golden_spec(document_attention=attend, query_attention=attend)
    layout = _layout(spec)
    expected = _scores(family, "reference", torch.float32, spec, layout)
    torch.testing.assert_close(_scores(family, "sdpa", torch.float32, spec, layout), expected, atol=1e-4, rtol=0)
    expected = _scores(family, "reference", torch.bfloat16, spec, layout)
    for backend in ("sdpa", "varlen"):
        torch.testing.assert_close(_scores(family, backend, torch.bfloat16, spec, layout), expected, atol=2e-2, rtol=0)


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


# torch's own, while it compiles
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning", "ignore:TensorFloat32:UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_layers_equal_eager_ones_and_compile_once(family: str) -> None:
    spec = golden_spec(layer=3)
    model = RankModel(golden_module(family).to(CUDA), None, spec, get_backend("sdpa", CUDA, torch.float32), family)
    layouts = [random_layout([4, *[length] * count, 6], spec) for count, length in ((3, 5), (9, 17), (30, 40), (2, 90))]
    with torch.inference_mode():
        expected = [AttentionScorer().score(model, layout).scores_C for layout in layouts]
        model.compile_layers()
        found = [AttentionScorer().score(model, layout).scores_C for layout in layouts[:2]]
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        found += [AttentionScorer().score(model, layout).scores_C for layout in layouts[2:]]
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
