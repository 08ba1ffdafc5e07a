"""What a forward hands out: the same from fused layers and the library's own, on one device and in parts, in int8."""

from __future__ import annotations

import copy
import weakref
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU, FAMILIES, byte_tokenizer, golden_module, golden_spec, random_decoder, random_layout, tokenised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blockrank import InputError, ModelError, Ranker, RankRequest, RankSpec, Template, engine
from blockrank.attention import get_backend
from blockrank.decode import decode
from blockrank.engine.block import FusedLayer
from blockrank.engine.capture import Capture, LayerCapture, Wanted
from blockrank.engine.rows import RowBuffers
from blockrank.layout import PackedLayout, pack
from blockrank.model import LoadedModel, Needs, RankModel, load_model
from blockrank.model.probe import probe_model, rows_apart

LAYERS = 4
KINDS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "llama": {"attention_bias": True, "num_key_value_heads": 4, "tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {},
    "gemma": {"hidden_activation": "gelu_pytorch_tanh", "num_key_value_heads": 1},
    "gemma3_text": {
        "layer_types": ["full_attention", "sliding_attention", "full_attention", "full_attention"],
        "sliding_window": 1 << 20, "final_logit_softcapping": 0.5,
    },
    "bert": {"is_decoder": True},
}  # fmt: skip
NUMBERED = Template(("{query};",), ("D{id}:{text};",), ("Q:{query};A",), answer="[", answer_separator=", ")
some_documents = st.lists(st.integers(1, 30), min_size=1, max_size=6)
quick = settings(deadline=None, max_examples=15)


@cache
def model_of(kind: str, head: bool = True, **changes: Any) -> RankModel:
    """A fused model with its head; `in_library_layers` gives the other."""
    module = random_decoder(kind, LAYERS, head=head, **KINDS[kind])
    spec = golden_spec(query_offset=200, **changes)
    model = RankModel(LoadedModel(module, name=kind), spec, get_backend("reference", CPU, torch.float32))
    model.weights.fuse()
    return model


def layout_of(spec: RankSpec, *requests: list[int]) -> PackedLayout:
    draw = np.random.default_rng(0)
    return pack([tokenised([draw.integers(3, 500, n) for n in [5, *documents, 8]]) for documents in requests], spec)


def forward(model: RankModel, layout: PackedLayout, wanted: Wanted, **options: Any) -> Capture:
    with torch.inference_mode():
        return model.forward(layout, wanted, **options)


def parts_of(capture: Capture) -> dict[str, Tensor]:
    """Every tensor of a capture by a name."""
    found = {f"q{layer.layer}": layer.q_GNH for layer in capture.layers}
    found |= {f"k{layer.layer}": layer.k_PKH for layer in capture.layers}
    ends = {"logits": capture.logits_RV, "hidden": capture.hidden_RD}
    return found | {name: part for name, part in ends.items() if part is not None}


def assert_same(found: Capture, expected: Capture, atol: float = 1e-4) -> None:
    one, two = parts_of(found), parts_of(expected)
    assert list(one) == list(two)
    for name, part in one.items():
        torch.testing.assert_close(part, two[name], atol=atol, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert [layer.scale for layer in found.layers] == [layer.scale for layer in expected.layers]


@st.composite
def wishes(draw: st.DrawFn, tokens: int) -> Wanted:
    """Anything that may be wanted of a layout; positions in any order, some more than once."""
    layers = tuple(sorted(draw(st.sets(st.integers(0, LAYERS - 1)))))
    positions = st.none() | st.lists(st.integers(0, tokens - 1), min_size=1, max_size=5).map(np.array)
    logits_R, hidden_R = draw(positions), draw(positions)
    if not layers and logits_R is None and hidden_R is None:
        layers = (1,)
    return Wanted(layers, logits_R, hidden_R)


# Fused layers and the library's own


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(data=st.data(), requests=st.lists(some_documents, min_size=1, max_size=3))
def test_fused_layers_hand_out_what_the_librarys_do(kind: str, data: st.DataObject, requests: list[list[int]]) -> None:
    model = model_of(kind)
    layout = layout_of(model.spec, *requests)
    wanted = data.draw(wishes(layout.tokens))
    found = forward(model, layout, wanted)
    assert tuple(layer.layer for layer in found.layers) == wanted.layers
    assert_same(found, forward(model.in_library_layers(), layout, wanted))


@pytest.mark.parametrize("family", FAMILIES)
def test_both_give_the_logits_of_the_plain_model(family: str) -> None:
    """Under the causal pattern a packed prompt is a plain one."""
    spec = golden_spec(pattern="causal", query_offset=None)
    model = RankModel(LoadedModel(golden_module(family), name=family), spec, get_backend("sdpa", CPU, torch.float32))
    layout = random_layout([4, 9, 6, 7], spec)
    at = np.array([layout.tokens - 1, 3, 12, 3])
    model.weights.fuse()
    found = [forward(item, layout, Wanted(logits_R=at)).logits_RV for item in (model, model.in_library_layers())]
    plain = copy.deepcopy(model.module)
    plain.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = plain(input_ids=torch.from_numpy(layout.ids_T)[None]).logits[0][at]
    for logits_RV in found:
        torch.testing.assert_close(logits_RV, expected, atol=1e-4, rtol=1e-4)


@quick
@given(data=st.data(), requests=st.lists(some_documents, min_size=1, max_size=2), parts=st.integers(2, 4))
def test_parts_on_several_devices_hand_out_what_one_does(
    data: st.DataObject, requests: list[list[int]], parts: int
) -> None:
    model = model_of("qwen3")
    assert model.decoder is not None
    layout = layout_of(model.spec, *requests)
    wanted = data.draw(wishes(layout.tokens))
    with torch.inference_mode():
        found = engine.forward([model.decoder] * parts, layout, wanted, model.spec, model.backend)
    assert_same(found, forward(model, layout, wanted))


@pytest.mark.parametrize("tokens", [100, 1 << 20])
def test_pieces_of_a_large_request_hand_out_several_layers(
    mini: Ranker, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"river {n} " * (1 + n % 9) for n in range(40)]
    layout = pack([mini.tokenise(RankRequest("which river", texts)).only], mini.spec)
    wanted = Wanted((1, 3, 6))
    expected = forward(mini.model.in_library_layers(), layout, wanted)
    monkeypatch.setitem(engine.forward.__globals__, "forward_tokens", lambda _: tokens)
    assert_same(forward(mini.model, layout, wanted), expected)


@quick
@given(requests=st.lists(some_documents, min_size=1, max_size=3), softmax_over=st.sampled_from(["documents", "all"]))
def test_the_scoring_layer_is_the_same_alone_and_among_others(requests: list[list[int]], softmax_over: Any) -> None:
    """The way of a ranking is that of every other forward, with less in it: products of fewer rows, which may add up in
    another order."""
    model = model_of("mistral", softmax_over=softmax_over)
    layout = layout_of(model.spec, *requests)
    alone, among = (
        forward(model, layout, wanted).layers[-1] for wanted in (Wanted.read_out(model.spec), Wanted((0, 2)))
    )
    read_T = layout.tokens_of(layout.is_document_S) | (softmax_over == "all")
    torch.testing.assert_close(alone.k_PKH[read_T], among.k_PKH[read_T])
    torch.testing.assert_close(alone.q_GNH, among.q_GNH)


class _Asked:
    """In place of captured CUDA graphs: what they were asked for, and that they have none of it."""

    def __init__(self) -> None:
        self.layers: list[int] = []

    def forward(self, _layout: PackedLayout, layer: int, *_: Any) -> None:
        self.layers.append(layer)


def test_graphs_are_asked_for_the_capture_of_one_layer_alone() -> None:
    model, asked = model_of("mistral"), _Asked()
    assert model.decoder is not None
    layout, row = layout_of(model.spec, [3]), np.array([0])
    for wanted in (
        Wanted.read_out(model.spec), Wanted((1,)), Wanted((1, 2)), Wanted((1,), row), Wanted(hidden_R=row),
        Wanted((1,), observer=lambda _: None),
    ):  # fmt: skip
        with torch.inference_mode():
            engine.forward([model.decoder], layout, wanted, model.spec, model.backend, asked)  # type: ignore[arg-type]
    assert asked.layers == [2, 1]


def test_of_the_last_layer_only_wanted_rows_go_through_the_mlp(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows, finish = model_of("mistral"), list[int](), FusedLayer.finish
    layout = layout_of(model.spec, [7, 3])
    monkeypatch.setattr(
        FusedLayer, "finish", lambda self, stream, out: (rows.append(len(out)), finish(self, stream, out))
    )
    forward(model, layout, Wanted((1,), np.array([4, 9, 4]), np.array([9, 2])))
    assert rows == [layout.tokens] * (LAYERS - 1) + [3]
    rows.clear()
    forward(model, layout, Wanted((0, 2)))
    assert rows == [layout.tokens] * 2, "nothing runs above the last wanted layer"


# Cached rows


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["mistral", "gemma3_text", "bert"])
def test_rows_that_are_kept_are_read_by_what_follows(kind: str, fused: bool) -> None:
    """A forward of all tokens, and one of the first segments whose rows the others then read."""
    model = model_of(kind) if fused else model_of(kind).in_library_layers()
    layout = layout_of(model.spec, [7, 3, 12])
    first, rest = halves(layout)
    wanted = Wanted((1, 3), logits_R=np.arange(rest.tokens))
    expected = forward(model, layout, replace(wanted, logits_R=np.arange(first.tokens, layout.tokens)))
    rows = RowBuffers(layout.tokens)
    forward(model, first, Wanted(logits_R=np.zeros(1, dtype=np.int64)), rows=rows)
    found = forward(model, rest, wanted, rows=rows)
    with torch.inference_mode():
        rows.copy(np.arange(5), np.arange(5, 10))  # what was handed out stays as it was
    assert_same(found, expected)


def halves(layout: PackedLayout) -> tuple[PackedLayout, PackedLayout]:
    """All segments but the query's, and the query's with the rows of the others cached."""
    dropped_S = layout.is_query_S
    first = replace(
        layout.without(dropped_S), signal_G=np.zeros(1, dtype=np.int64), signal_request_G=np.zeros(1, dtype=np.int64)
    )
    start, nothing = int(layout.starts_S[-1]), np.zeros(0, dtype=np.int64)
    last = layout.read_offsets_S1[-2]
    rest = replace(
        layout,
        ids_T=layout.ids_T[start:],
        positions_T=layout.positions_T[start:],
        starts_S=layout.starts_S[-1:] - start,
        ends_S=layout.ends_S[-1:] - start,
        causal_S=layout.causal_S[-1:],
        own_S=layout.own_S[-1:],
        reads_R2=layout.reads_R2[last:],
        read_offsets_S1=layout.read_offsets_S1[-2:] - last,
        document_segment_C=nothing,
        document_request_C=nothing,
        signal_G=layout.signal_G - start,
        cached_rows=start,
        kinds_S=("query",),
    )
    return first, rest


# Decoding


@pytest.mark.parametrize("form", ["first", "list"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_decoded_alike_in_fused_layers(family: str, form: Any) -> None:
    spec = golden_spec(template=NUMBERED, query_offset=64)
    module = golden_module(family)
    module.lm_head.weight.data *= 4
    model = RankModel(LoadedModel(module, byte_tokenizer(), family), spec, get_backend("sdpa", CPU, torch.float32))
    requests = [RankRequest("red", [f"{word} {n}" for n in range(12)]) for word in ("oak", "elm")]
    expected = decode(model, requests, beams=3, form=form)
    model.weights.fuse()
    found = decode(model, requests, beams=3, form=form)
    for one, two in zip(found, expected, strict=True):
        assert one.generated == two.generated
        assert one.log_probs == pytest.approx(two.log_probs, abs=1e-4)
    model.weights.quantise(torch.int8)
    for one in decode(model, requests, beams=3, form=form):
        assert sorted(one.order) == list(range(12))


# Observers


@pytest.mark.parametrize("fused", [True, False])
def test_an_observer_sees_each_layer_in_order_and_nothing_is_kept(fused: bool) -> None:
    model = model_of("qwen3") if fused else model_of("qwen3").in_library_layers()
    layout = layout_of(model.spec, [7, 3], [4])
    every = tuple(range(LAYERS))
    expected, seen, alive = forward(model, layout, Wanted(every)), [], list[weakref.ref[Tensor]]()

    def observe(layer: LayerCapture) -> None:
        assert sum(reference() is not None for reference in alive) <= 1, "keys of the layers before are gone"
        alive.append(weakref.ref(layer.k_PKH))
        seen.append(replace(layer, q_GNH=layer.q_GNH.clone(), k_PKH=layer.k_PKH.clone()))

    found = forward(model, layout, Wanted(every, observer=observe))
    assert found.layers == ()
    assert_same(Capture(tuple(seen), layout), expected, atol=0)


def test_what_an_observer_raises_ends_the_forward() -> None:
    def refuse(layer: LayerCapture) -> None:
        raise ModelError(f"layer {layer.layer} is not liked")

    for model in (model_of("llama"), model_of("llama").in_library_layers()):
        with pytest.raises(ModelError, match="layer 1 is not liked"):
            forward(model, layout_of(model.spec, [3]), Wanted((1, 2), observer=refuse))


# Products in int8


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_hidden_states_in_int8(kind: str) -> None:
    loaded = LoadedModel(random_decoder(kind, LAYERS, head=True, **KINDS[kind]), name=kind)
    model = RankModel(loaded, golden_spec(query_offset=200), get_backend("sdpa", CPU, torch.float32))
    layout = layout_of(model.spec, [7, 3], [4])
    wanted = Wanted((0, 2), np.array([4, layout.tokens - 1]), np.array([9, 0, 9]))
    expected = forward(model, layout, wanted)
    head = model.module.get_output_embeddings().weight.clone()
    model.weights.quantise(torch.int8)
    found = forward(model, layout, wanted)
    for name, part in parts_of(found).items():
        assert rows_apart(part, parts_of(expected)[name]) < 0.15, name
    assert not torch.equal(found.logits_RV, expected.logits_RV)
    assert torch.equal(model.module.get_output_embeddings().weight, head), "the head stays in the model's own type"


# What is loaded


@cache
def saved_golden(folder: Any, family: str = "qwen3") -> Any:
    module = golden_module(family)
    module.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    golden_spec(template=NUMBERED, query_offset=64).save(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_model_with_its_head_is_fused_and_decodes(tmp_path: Any, dtype: str) -> None:
    model = load_model(saved_golden(tmp_path), device="cpu", dtype=dtype, needs=Needs(logits=True))
    assert model.decoder is not None
    assert model.decoder.head is not None
    assert model.decoder.quantised is (dtype == "int8")
    [found] = decode(model, [RankRequest("red", ["oak", "elm", "ash"])], beams=3)
    assert sorted(found.generated) == [0, 1, 2]
    ranking = Ranker.from_pretrained(tmp_path, device="cpu", dtype=dtype, scorer="decode").rank("red", ["oak", "elm"])
    assert sorted(entry.index for entry in ranking) == [0, 1]


@pytest.mark.parametrize("broken", ["norm", "head"])
def test_the_probe_compares_what_lies_above_the_layers(broken: str) -> None:
    model = RankModel(
        LoadedModel(golden_module("mistral"), name="m"), golden_spec(), get_backend("sdpa", CPU, torch.float32)
    )
    model.weights.fuse()
    probe_model(model)
    assert model.decoder is not None
    assert model.decoder.head is not None
    if broken == "norm":
        model.decoder.norm = replace(model.decoder.norm, shift=0.5)
    else:
        head = model.decoder.head
        model.decoder.head = lambda states: head(states) + 0.1
    with pytest.raises(ModelError, match=r"the fused layers of .* differ from its own"):
        probe_model(model)


# What cannot be had


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({}, "must be asked for layers, logits or hidden states"),
        ({"layers": (1, 1)}, r"layers must rise and are counted from 0, not \(1, 1\)"),
        ({"layers": (2, 0)}, r"layers must rise and are counted from 0, not \(2, 0\)"),
        ({"layers": (-1,)}, r"layers must rise and are counted from 0, not \(-1,\)"),
        ({"hidden_R": np.array([0]), "observer": print}, "an observer needs layers"),
    ],
)
def test_wishes_that_make_no_sense(wish: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Wanted(**wish)


@pytest.mark.parametrize("fused", [True, False])
def test_what_is_not_there_is_refused_in_one_sentence(mini: Ranker, fused: bool) -> None:
    model = model_of("qwen3") if fused else model_of("qwen3").in_library_layers()
    layout = layout_of(model.spec, [3])
    for wanted, sentence in (
        (Wanted((0, 4)), "layer 4 is wanted, but the model has 4 layers"),
        (Wanted(logits_R=np.array([16])), "logits_R must lie in the 16 tokens of the layout"),
        (Wanted(hidden_R=np.array([3, -1])), "hidden_R must lie in the 16 tokens of the layout"),
    ):
        with pytest.raises(InputError, match=sentence):
            forward(model, layout, wanted)
    headless = model_of("qwen3", head=False)
    with pytest.raises(ModelError, match="qwen3 was loaded without a language-model head, which logits need"):
        forward(headless if fused else headless.in_library_layers(), layout, Wanted(logits_R=np.array([0])))
    cut = mini.model if fused else mini.model.in_library_layers()
    with pytest.raises(ModelError, match="its checkpoint leaves out what they need"):
        forward(cut, layout_of(mini.spec, [3]), Wanted(hidden_R=np.array([0])))


@pytest.mark.parametrize(
    "wanted", [Wanted((1, 2)), Wanted((1,)), Wanted((2,), np.array([0])), Wanted(hidden_R=np.array([0]))]
)
def test_documents_that_leave_leave_nothing_else(wanted: Wanted) -> None:
    model = model_of("qwen3", prune=((0, 0.5),))
    with pytest.raises(InputError, match=r"with RankSpec.prune documents leave below the scoring layer"):
        forward(model, layout_of(model.spec, [3, 4, 5]), wanted)
    assert forward(model, layout_of(model.spec, [3, 4, 5]), Wanted((2,))).exits
