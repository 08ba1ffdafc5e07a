"""What an analysis looks at and finds: shares of attention, quality of every read-out, the choice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pytest
import torch
from conftest import CPU, FAMILIES, byte_tokenizer, golden_module, golden_spec, random_layout, rank_model, tokenised
from hypothesis import given, settings
from hypothesis import strategies as st

from blockrank import Document, InputError, ModelError, Ranker, RankRequest, RankSpec
from blockrank.analyze import Analysed, Analysis, AnalysisSettings, analyze, load_analysed, write_analysis
from blockrank.analyze.choice import Choice, Setting, SettingReader, chance_of_best, choose, split_halves
from blockrank.analyze.full import full_attention
from blockrank.analyze.judged import JudgedRequest, judged_requests
from blockrank.analyze.measures import MEASURES, measure
from blockrank.analyze.readouts import Axes, GridReader, token_sets
from blockrank.analyze.shares import (
    DOCUMENT_PARTS,
    QUERY_PARTS,
    TOP,
    mean_shares,
    prompt_shares,
    readable_rows,
    segment_shares,
)
from blockrank.attention.reference import dense_mask
from blockrank.data import Collection, open_collection, write_collection
from blockrank.engine.capture import LayerCapture, Wanted
from blockrank.evaluate.first_stage import FirstStage
from blockrank.layout import PackedLayout, pack
from blockrank.model import RankModel
from blockrank.readout.signals import log_scores

LENGTHS = (6, 9, 5, 12, 7)
TOPICS = ("the whale", "the lighthouse", "the castle", "the railway", "the garden", "the winter")


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    """Six queries, each with two relevant documents and four that share its words."""
    documents, queries, qrels = [], {}, {}
    for number, topic in enumerate(TOPICS):
        queries[f"q{number}"] = f"who painted {topic} in the north"
        texts = [f"{name} painted {topic} in {year}." for name, year in (("Ada", 1890), ("Bo", 1902))]
        texts += [f"Nobody in the north knows {topic}, painted or not, {place}." for place in ("here", "there")]
        texts += [f"In the {season} {topic} is closed to all who come." for season in ("spring", "autumn")]
        documents += [Document(text, f"d{number}{place}") for place, text in enumerate(texts)]
        qrels[f"q{number}"] = {f"d{number}0": 2, f"d{number}1": 1, f"d{number}2": 0}
    write_collection(tmp_path / "tiny", documents, queries, qrels)
    return open_collection(tmp_path / "tiny")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mistral with a byte tokenizer, without `blockrank.json`."""
    folder = tmp_path_factory.mktemp("decoder")
    golden_module("mistral").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


SMALL = AnalysisSettings(queries=6, candidates=8, attention_queries=2, documents=4, rows=9, single_tokens=3)


# Full attention


def plain_mask(layout: PackedLayout) -> torch.Tensor:
    """What a plain prompt of the same tokens allows: all before a token, and all of its request where bidirectional."""
    mask = torch.zeros(layout.tokens, layout.rows, dtype=torch.bool)
    request_S = np.cumsum([kind == "instruction" for kind in layout.kinds_S]) - 1
    for request in range(layout.requests):
        start, end = layout.starts_S[request_S == request][0], layout.ends_S[request_S == request][-1]
        mask[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        for segment in np.flatnonzero((request_S == request) & ~layout.causal_S):
            mask[layout.starts_S[segment] : layout.ends_S[segment], start:end] = True
    return mask


@given(
    requests=st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=6), min_size=1, max_size=3),
    empty=st.booleans(),
    document=st.sampled_from(("causal", "bidirectional")),
    query=st.sampled_from(("causal", "bidirectional")),
)
@settings(max_examples=40, deadline=None)
def test_full_attention_lets_all_read_all(requests: list[list[int]], empty: bool, document: Any, query: Any) -> None:
    spec = golden_spec(document_attention=document, query_attention=query, query_offset=None)
    made = [tokenised([np.arange(n) for n in ((0 if empty else lengths[0]), *lengths[1:])]) for lengths in requests]
    layout = pack(made, spec)
    full = full_attention(layout, None)
    assert torch.equal(dense_mask(full.layout), plain_mask(layout))
    expected = np.concatenate([np.arange(item.length) for item in made])
    assert full.positions == "continuing"
    assert np.array_equal(full.layout.positions_T, expected)
    longest = max(item.length for item in made)
    assert full_attention(layout, longest).positions == "continuing"
    short = full_attention(layout, longest - 1)
    assert (short.positions, short.layout.positions_T is layout.positions_T) == ("restarting", True)
    rows = np.arange(layout.tokens)
    assert len(full.layout.starts_S) <= 2 * len(made), "runs, not segments"
    for item in (layout, full.layout):
        assert np.array_equal(readable_rows(item, rows), dense_mask(item).numpy())


def eager_weights(model: RankModel, layout: PackedLayout, **extras: Any) -> list[torch.Tensor]:
    """(N, T, P) attention weights of every layer, by the library's own eager attention."""
    model.module.set_attn_implementation("eager")
    inputs = {"input_ids": torch.from_numpy(layout.ids_T)[None], **extras}
    with torch.inference_mode():
        found = model.module(**inputs, output_attentions=True, use_cache=False).attentions
    model.module.set_attn_implementation("blockrank")
    return [weights[0] for weights in found]


def expected_figures(
    weights: torch.Tensor, layout: PackedLayout, readable_TP: torch.Tensor, relevant: list[bool]
) -> np.ndarray[Any, Any]:
    """The twelve figures of a prompt from a whole attention matrix, token by token, the plain way."""
    mean_TP, kinds = weights.mean(0).double(), layout.kinds_S
    spans = list(zip(layout.starts_S.tolist(), layout.ends_S.tolist(), strict=True))
    readable = readable_TP.sum(1)

    def top(rows: range) -> float:
        sums = [
            float(w[row].topk(int(np.ceil(int(readable[row]) * TOP))).values.sum()) for w in weights for row in rows
        ]
        return sum(sums) / len(sums)

    def to(row: int, *wanted: int) -> float:
        return sum(float(mean_TP[row, a:b].sum()) for a, b in (spans[segment] for segment in wanted))

    documents = [place for place, kind in enumerate(kinds) if kind == "document"]
    first, last = 0, len(kinds) - 1
    lines, query_rows = [], range(*spans[last])
    for place in documents:
        others = [other for other in documents if other != place]
        lines += [[to(row, place), to(row, first), to(row, *others), to(row, last)] for row in range(*spans[place])]
    good = [place for place, is_good in zip(documents, relevant, strict=True) if is_good]
    bad = [place for place, is_good in zip(documents, relevant, strict=True) if not is_good]
    of_query = np.mean([[to(row, *good), to(row, *bad), to(row, first), to(row, last)] for row in query_rows], 0)
    document_rows = range(spans[documents[0]][0], spans[documents[-1]][1])
    each = [of_query[0] / len(good), of_query[1] / len(bad)]
    return np.array([*np.mean(lines, 0), *of_query, *each, top(document_rows), top(query_rows)])


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_are_those_of_a_plain_prompt(family: str) -> None:
    """No mask, no positions: what the library does with the bare tokens, all layers."""
    model = rank_model(family, spec=golden_spec(layer=3))
    request = tokenised([np.random.default_rng(1).integers(3, 512, n) for n in LENGTHS])
    relevant = np.array([True, False, False])
    found = prompt_shares(model, request, relevant, 1000, np.random.default_rng(0))
    layout = pack([request], model.spec)
    readable = plain_mask(layout)
    weights = eager_weights(model, layout)
    expected = [expected_figures(item, layout, readable, relevant.tolist()) for item in weights]
    np.testing.assert_allclose(found.layers_LF, expected, atol=2e-6)
    assert (found.positions, found.tokens) == ("continuing", sum(LENGTHS))
    shares = mean_shares([found, found])
    for table, names in ((shares.document_LF, DOCUMENT_PARTS), (shares.query_LF, QUERY_PARTS)):
        assert table.shape == (4, len(names))
        np.testing.assert_allclose(table.sum(1), 1, atol=1e-6)
    assert (shares.document_LF[:, 3] == 0).all(), "documents come before the query"
    np.testing.assert_allclose([shares.uniform_document_F.sum(), shares.uniform_query_F.sum()], 1)
    uniform = (readable / readable.sum(1, keepdim=True))[None]
    expected = [expected_figures(uniform, layout, readable, relevant.tolist())]
    np.testing.assert_allclose([found.uniform_F], expected, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_documents_read_both_ways_before_a_causal_query(backend: str) -> None:
    """A run of bidirectional segments that reads what comes after it, then a causal one: against eager attention."""
    spec = golden_spec(layer=3, document_attention="bidirectional", query_offset=None)
    model = rank_model("llama", backend, spec)
    layout = random_layout(LENGTHS, spec)
    full, seen = full_attention(layout, None).layout, []
    observe(model, full, 3, lambda layer: seen.append(layer.k_PKH))
    assert len(full.starts_S) == 2
    model.module.set_attn_implementation("eager")
    mask = torch.zeros(1, 1, layout.tokens, layout.tokens).masked_fill(~plain_mask(layout), torch.finfo().min)
    with torch.inference_mode():
        states = model.module.model(
            input_ids=torch.from_numpy(layout.ids_T)[None], attention_mask=mask, output_hidden_states=True
        ).hidden_states[3]
        block = model.module.model.layers[3]
        keys = block.self_attn.k_proj(block.input_layernorm(states)).view(layout.tokens, 2, 16)
    # Rotary positions turn keys but keep their lengths.
    torch.testing.assert_close(seen[3].norm(dim=-1), keys.norm(dim=-1), rtol=1e-4, atol=1e-5)


def test_shares_of_the_encoder_are_those_of_its_eager_attention(mini: Ranker) -> None:
    request = mini.tokenise(
        RankRequest("who wrote Dracula", ["Bram Stoker.", "Mary Shelley wrote.", "The coast."])
    ).only
    model = mini.model.in_library_layers().with_spec(mini.spec.changed(signal_tokens="query"))
    relevant = np.array([True, False, False])
    found = prompt_shares(model, request, relevant, 1000, np.random.default_rng(0))
    layout = pack([request], model.spec)
    readable = plain_mask(layout)
    assert readable.all()
    mask = torch.zeros(1, 1, layout.tokens, layout.tokens)
    weights = eager_weights(model, layout, attention_mask=mask, position_ids=torch.arange(layout.tokens)[None])
    expected = [expected_figures(item, layout, readable, relevant.tolist()) for item in weights[:-1]]  # the last is cut
    np.testing.assert_allclose(found.layers_LF[:-1], expected, atol=2e-6)
    assert found.layers_LF.shape == (7, 12)
    long = mini.tokenise(RankRequest("who", ["word " * 250, "text " * 250, "coast " * 30])).only
    assert prompt_shares(model, long, relevant, 8, np.random.default_rng(0)).positions == "restarting"


def test_heads_in_chunks_and_few_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = full_attention(random_layout(LENGTHS, golden_spec(query_offset=None)), None).layout
    rows = np.array([8, 14, 30, 36])
    q, k = torch.randn(4, 6, 16), torch.randn(layout.tokens, 2, 16)
    allowed = torch.from_numpy(readable_rows(layout, rows))
    owner = torch.eye(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS), 0)
    whole = segment_shares(q, k, 0.25, allowed, owner)
    monkeypatch.setattr("blockrank.analyze.shares._CHUNK_WEIGHTS", 1)
    for one, other in zip(whole, segment_shares(q, k, 0.25, allowed, owner), strict=True):
        torch.testing.assert_close(one, other)
    assert whole[0].sum(1).tolist() == pytest.approx([1] * 4)


def observe(model: RankModel, layout: PackedLayout, last: int, *readers: Callable[[LayerCapture], None]) -> None:
    """Show every layer up to the last to all readers."""
    with torch.inference_mode():
        model.forward(
            layout, Wanted(tuple(range(last + 1)), observer=lambda layer: [reader(layer) for reader in readers])
        )


def test_every_layer_is_observed_and_nothing_is_changed() -> None:
    model = rank_model("qwen3", spec=golden_spec(layer=3))
    layout = random_layout(LENGTHS, model.spec)
    seen = {}
    observe(model, layout, 3, lambda layer: seen.update({layer.layer: layer}))
    assert list(seen) == [0, 1, 2, 3]
    for index, layer in seen.items():
        alone = RankModel(model.weights, golden_spec(layer=index), model.backend).forward(layout).only
        torch.testing.assert_close((layer.q_GNH, layer.k_PKH), (alone.q_GNH, alone.k_PKH))
        assert layer.scale == alone.scale


# Measures


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_measures_are_those_of_ir_measures(data: st.DataObject) -> None:
    documents = data.draw(st.integers(1, 25))
    relevance = np.array(data.draw(st.lists(st.integers(0, 3), min_size=documents, max_size=documents)))
    scores = np.array(data.draw(st.lists(st.integers(0, 6), min_size=documents, max_size=documents)), dtype=float)
    outside = data.draw(st.lists(st.integers(1, 3), max_size=4))
    ideal = sorted([*relevance[relevance > 0].tolist(), *outside], reverse=True)
    order = sorted(range(documents), key=lambda place: -scores[place])
    run = {"q": {f"d{place}": float(documents - rank) for rank, place in enumerate(order)}}
    qrels = {"q": {f"d{place}": int(value) for place, value in enumerate(relevance)}}
    qrels["q"] |= {f"x{place}": value for place, value in enumerate(outside)}
    wanted = [ir_measures.parse_measure(name) for name in MEASURES]
    expected = {str(item.measure): item.value for item in ir_measures.iter_calc(wanted, qrels, run)}
    found = measure(np.stack([scores, scores - 1]), relevance, ideal)
    assert found.shape == (len(MEASURES), 2)
    for name, values in zip(MEASURES, found, strict=True):
        assert values.tolist() == pytest.approx([expected[name]] * 2), name


def test_what_was_not_read_has_no_measure() -> None:
    assert np.isnan(measure(np.full((2, 3), np.nan), np.array([1, 0, 0]), [1])).all()


# The grid


def graded(documents: int, seed: int = 0) -> JudgedRequest:
    relevance = np.random.default_rng(seed).integers(0, 3, documents)
    relevance[0] = 1
    request = RankRequest("q", [f"d{place}" for place in range(documents)])
    return JudgedRequest(request, relevance, np.arange(documents), tuple(sorted(relevance[relevance > 0])[::-1]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"signal_pooling": "geometric", "length_norm": 0.5},
        {"softmax_over": "all"},
        {"cosine": "both", "logit_scale": 12.0, "length_norm": 1.0},
        {"joined_heads": True, "cosine": "both", "logit_scale": 45.0, "signal_pooling": "geometric"},
        {"joined_heads": True, "softmax_over": "all"},
        {"document_attention": "bidirectional", "query_attention": "bidirectional", "query_reads": "own"},
    ],
)
def test_the_grid_ranks_as_the_read_out_does(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell against `log_scores` of a spec that reads it: layers, sets, single heads."""
    monkeypatch.setattr("blockrank.analyze.readouts._SIGNALS", 3)  # fewer than there are: in parts
    spec = golden_spec(layer=3, signal_tokens="query", **changes)
    model = rank_model("llama", spec=spec)
    layout = random_layout((5, 7, 4, 9, 3, 6, 8), spec, seed=3)
    judged = graded(5)
    axes = Axes(4, 4, 10, (1, 2, 4, "query"))
    reader = GridReader(layout, spec, judged, axes)
    every = [Setting(layer, tokens) for layer in range(4) for tokens in axes.sets]
    closer = SettingReader(layout, spec, judged, every)
    observe(model, layout, 3, reader, closer)
    assert np.isnan(reader.pooled_MLT[:, :, 8:10]).all(), "the query segment has eight tokens"
    assert not np.isnan(reader.pooled_MLT[:, :, axes.singles :]).any()
    for place, setting in enumerate(every):
        read = setting.spec(spec)
        capture = RankModel(model.weights, read, model.backend).forward(pack_like(layout, read))
        scores = log_scores(capture.only.q_GNH, capture.only.k_PKH, pack_like(layout, read), read, capture.only.scale)
        expected = measure(scores.detach().numpy(), judged.relevance_C, judged.ideal)
        column = axes.column(setting.tokens)
        np.testing.assert_allclose(reader.pooled_MLT[:, setting.layer, column], expected, rtol=1e-6)
        np.testing.assert_allclose(closer.values_SM[place], expected)
        for head in range(4):
            alone = read.changed(heads=(head,), joined_heads=False)
            scores = log_scores(
                capture.only.q_GNH, capture.only.k_PKH, pack_like(layout, read), alone, capture.only.scale
            )
            expected = measure(scores.detach().numpy(), judged.relevance_C, judged.ideal)
            np.testing.assert_allclose(reader.heads_MLNT[:, setting.layer, head, column], expected, rtol=1e-6)
    assert np.array_equal(reader.pooled_MLT[:, :, 0], reader.pooled_MLT[:, :, axes.column(1)])


def pack_like(layout: PackedLayout, spec: RankSpec) -> PackedLayout:
    """The same prompt with the signal tokens of another spec."""
    ids = [layout.ids_T[a:b] for a, b in zip(layout.starts_S, layout.ends_S, strict=True)]
    return pack([tokenised(ids)], spec)


def test_the_own_column_of_the_grid_ranks_as_the_ranker(mini: Ranker, collection: Collection) -> None:
    """For the model's own layer and tokens the values are those of `Ranker`, ties apart."""
    judged = judged_requests(collection, FirstStage("bm25"), SMALL)
    axes = Axes(7, 12, 2, (1, "query"))
    for item in judged:
        layout = pack([mini.tokenise(item.request).only], mini.spec)
        reader = GridReader(layout, mini.spec, item, axes)
        observe(mini.model, layout, 6, reader)
        ranked = [entry.index for entry in mini.rank_many([item.request])[0]]
        expected = measure(-np.argsort(ranked).astype(float), item.relevance_C, item.ideal)
        np.testing.assert_allclose(reader.pooled_MLT[:, 6, axes.column("query")], expected, rtol=1e-6)


def test_values_that_are_not_finite_are_refused() -> None:
    spec = golden_spec(layer=3, signal_tokens="query")
    layout = random_layout(LENGTHS, spec)
    reader = GridReader(layout, spec, graded(3), Axes(4, 4, 1, (1, "query")))
    with pytest.raises(ModelError, match="layer 1 yields attention that is not finite"):
        reader(LayerCapture(1, torch.full((7, 4, 16), torch.nan), torch.randn(layout.tokens, 2, 16), 0.25))


def test_token_sets() -> None:
    assert token_sets([9, 9, 12], None) == (1, 2, 4, 8, "query")
    assert token_sets([8, 8], 3) == (1, 2, 3, 4, "query")
    assert token_sets([1], "query") == (1, "query")


# The sample


def test_the_sample_is_judged_and_reproducible(collection: Collection) -> None:
    one, again = (judged_requests(collection, FirstStage("bm25"), SMALL) for _ in range(2))
    assert [item.request for item in one] == [item.request for item in again]
    assert {item.request.query_id for item in one} == {f"q{place}" for place in range(6)}
    for item in one:
        ids = [document.doc_id for document in item.request.candidates]
        assert item.ideal == (2, 1)
        qrels = collection.qrels[item.request.query_id]
        assert item.relevance_C.tolist() == [qrels.get(str(doc_id), 0) for doc_id in ids]
        few = item.some(4, np.random.default_rng(0))
        assert ((few.relevance_C > 0).sum(), len(few.request.candidates)) == (1, 4)
        best = item.first_stage_C[item.relevance_C > 0].min()
        assert few.first_stage_C[few.relevance_C > 0].tolist() == [best]
    other = judged_requests(collection, FirstStage("bm25"), replace(SMALL, seed=1))
    assert [item.request for item in one] != [item.request for item in other]
    given_order = judged_requests(collection, FirstStage("bm25"), replace(SMALL, shuffle=False))
    assert all((np.diff(item.first_stage_C) == 1).all() for item in given_order)
    with pytest.raises(InputError, match="at least two"):
        judged_requests(replace(collection, qrels={"q0": {"d00": 1}}), FirstStage("bm25"), SMALL)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="documents must be at least 2, not 1"):
        AnalysisSettings(documents=1)
    with pytest.raises(InputError, match="seed must not be negative"):
        AnalysisSettings(seed=-1)


# The choice


def table(values: list[float]) -> np.ndarray[Any, Any]:
    return np.repeat(np.array(values)[:, None], len(MEASURES), 1)


def test_the_own_setting_stays_unless_another_is_better_beyond_noise() -> None:
    generator = np.random.default_rng(0)
    queries = 60
    is_dev = split_halves(queries, 0)
    base = generator.uniform(0.2, 0.8, queries)
    own, better = Setting(3, 2), Setting(5, "query")
    noise = {Setting(layer, 1): table(base + generator.normal(0, 0.05, queries)) for layer in range(40)}
    choice = choose({own: table(base), **noise}, is_dev, own, 40, 0)
    assert choice.chosen == own != choice.best
    assert choice.p is not None
    assert choice.p > 0.05
    assert "not beyond noise" in choice.rule
    clear = table(base + 0.1 + generator.normal(0, 0.05, queries))
    choice = choose({own: table(base), **noise, better: clear}, is_dev, own, 40, 0)
    assert choice.chosen == choice.best == better
    assert "replaced" in choice.rule
    choice = choose({own: table(base + 1), **noise}, is_dev, own, 40, 0)
    assert choice.chosen == choice.best == own
    assert "it was kept" in choice.rule


def test_without_an_own_setting_the_best_is_taken_and_the_cheapest_told() -> None:
    is_dev = split_halves(8, 0)
    base = np.linspace(0.1, 0.8, 8)
    wobble = np.where(np.arange(8) % 2, 0.1, -0.1)
    low, high, poor = Setting(2, 1), Setting(6, 1, (0, 3)), Setting(0, 1)
    wobble[is_dev] -= wobble[is_dev].mean() + 0.01  # a little worse on the development half, far within noise
    values = {poor: table(base - 0.3), low: table(base + wobble), high: table(base)}
    choice = choose(values, is_dev, None, 8, 0)
    assert isinstance(choice, Choice)
    assert (choice.own, choice.p, choice.baseline) == (None, None, Setting(4, 1))
    assert choice.chosen == choice.best == high
    assert choice.cheapest == low


def test_the_test_of_many_settings_keeps_its_level() -> None:
    """With nothing but noise, p is below 0.05 in about one of twenty samples, however many settings are tried."""
    generator = np.random.default_rng(0)
    found = []
    for seed in range(60):
        differences = generator.normal(0, 1, (20, 30))
        found.append(chance_of_best(differences, int(differences.mean(0).argmax()), seed))
    assert np.mean(np.array(found) < 0.05) <= 0.15
    assert 0.25 < np.median(found) < 0.85
    assert chance_of_best(np.zeros((5, 3)), 0, 0) == 1.0


def test_halves_differ_by_one_at_most() -> None:
    for queries in range(2, 9):
        is_dev = split_halves(queries, 3)
        assert 0 <= is_dev.sum() - (~is_dev).sum() <= 1
        assert np.array_equal(is_dev, split_halves(queries, 3))


# From start to end


@pytest.fixture(scope="module")
def encoder() -> Analysed:
    return load_analysed("embedded", device="cpu", probe=False)


def figures_of(found: Analysis) -> dict[str, Any]:
    made = found.to_dict()
    made.pop("environment")
    return made


def test_an_encoder_from_start_to_end(encoder: Analysed, collection: Collection, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    found = analyze(encoder, collection, FirstStage("bm25"), SMALL, progress=lambda *step: steps.append(step))
    assert [step for step in steps if step[1] == step[2]] == [
        ("full attention", 2, 2), ("every layer, token and head", 3, 3), ("chosen settings", 6, 6)
    ]  # fmt: skip
    assert encoder.own is not None
    assert not np.isnan(found.grid.pooled_QMLT[..., found.grid.axes.singles :]).any()
    # The own setting's values are those of the checkpoint as it is.
    ranker = Ranker.from_pretrained(device="cpu", probe=False)
    for place, item in enumerate(judged_requests(collection, FirstStage("bm25"), SMALL)):
        ranked = [entry.index for entry in ranker.rank_many([item.request])[0]]
        expected = measure(-np.argsort(ranked).astype(float), item.relevance_C, item.ideal)
        np.testing.assert_allclose(found.values[Setting.of(encoder.own)][place], expected, rtol=1e-6)
    if found.choice.chosen == found.choice.own:
        assert found.spec == encoder.own
    assert figures_of(found) == figures_of(analyze(encoder, collection, FirstStage("bm25"), SMALL))
    written = write_analysis(found, tmp_path / "out")
    check_files(written, found, None)


def test_a_decoder_from_start_to_end(decoder: Path, collection: Collection, tmp_path: Path) -> None:
    analysed = load_analysed(decoder, template="query-free", device="cpu")
    assert (analysed.own, analysed.layers, analysed.heads, analysed.base.pattern.query_offset) == (None, 4, 4, 16384)
    found = analyze(analysed, collection, FirstStage("bm25"), replace(SMALL, queries=4))
    assert found.choice.chosen == found.choice.best
    assert found.choice.baseline == Setting(2, 1)
    assert "query-free" in found.spec.to_dict()["template"]
    assert set(found.shares.positions) == {"continuing"}
    assert len(found.grid.axes.sets) > 3
    written = write_analysis(found, tmp_path / "out")
    check_files(written, found, decoder)


def check_files(written: list[Path], found: Analysis, model: Path | None) -> None:
    """Everything is there, and the spec ranks."""
    names = {path.name for path in written}
    assert {"analysis.json", "analysis.html", "blockrank.json"} < names
    pictures = {name for name in names if name.endswith(".png")}
    assert pictures == {"attention.png", "evidence.png", "tokens.png", "heads.png", "head-subsets.png"}
    folder = written[0].parent
    assert {path.name for path in folder.iterdir()} == names
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    stored = json.loads((folder / "analysis.json").read_text(encoding="utf-8"))
    assert stored["choice"]["figures"]["chosen"]["test"].keys() == set(MEASURES)
    page = (folder / "analysis.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/png') == len(pictures)
    spec = RankSpec.load(folder)
    assert (spec, spec.notes) == (found.spec, found.spec.notes)
    request = RankRequest("who painted the whale", ["Ada painted it.", "Nobody knows.", "The winter."])
    cut = Ranker.from_pretrained(model, spec=spec, device="cpu", probe=False).rank_many([request])[0]
    whole = Ranker(load_analysed(model or "embedded", template=None, device="cpu", probe=False).model)
    same = whole.with_spec(**spec.fields)
    assert same.rank_many([request])[0].doc_ids == cut.doc_ids


def test_wrong_models_and_templates_are_told(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a template is for models that do not"):
        load_analysed("embedded", template="blockrank")
    with pytest.raises(InputError, match="'nonsense' is unknown"):
        load_analysed(decoder, template="nonsense")
    with pytest.raises(ModelError, match="cannot be read"):
        load_analysed(tmp_path)
    (tmp_path / "blockrank.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"blockrank.json:1: not valid JSON"):
        load_analysed(tmp_path)


def test_a_prompt_over_the_position_table_is_told() -> None:
    model = rank_model("mistral", spec=golden_spec(layer=3, query_offset=40_000))
    model.module.config.max_position_embeddings = 30
    request = tokenised([np.arange(3, 3 + n) for n in LENGTHS])
    with pytest.raises(InputError, match="look at fewer documents"):
        prompt_shares(model, request, np.array([True, False, False]), 5, np.random.default_rng(0))


def test_a_short_position_table_moves_the_query(decoder: Path, tmp_path: Path) -> None:
    for path in decoder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    assert load_analysed(tmp_path, device="cpu").base.pattern.query_offset is None
    assert load_analysed(tmp_path, device="cpu").model.device == CPU
