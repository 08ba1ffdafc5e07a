"""Weights are held once; views over them read in different ways, at once, and share what is kept of documents."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from conftest import CPU, TOLERANCE, golden_spec, random_decoder, random_layout
from torch import nn

from blockrank import Document, Ranker, RankRequest
from blockrank.attention import get_backend
from blockrank.engine import Graphs
from blockrank.layout import plan_alike
from blockrank.model import LoadedModel, RankModel
from blockrank.reuse.keys import reuse_context
from blockrank.reuse.memory import MemoryStore

POOL = [Document(f"{place} is the capital of {land} " * (1 + n % 3), f"d{n}") for n, (place, land) in enumerate(
    [("Oslo", "Norway"), ("Rome", "Italy"), ("Lima", "Peru"), ("Cairo", "Egypt"), ("Kyiv", "Ukraine"), ("Bern", "none")]
)]  # fmt: skip
REQUESTS = [RankRequest(query, POOL, query) for query in ("Oslo", "Where is Lima", "capital of Egypt")]
# What of a spec decides the keys of a document, and what does not.
READ_ANOTHER_WAY: list[dict[str, Any]] = [
    {"layer": 2},
    {"document_attention": "causal"},
    {"max_segment_tokens": 5},
    {"template": "query-free"},
]
READ_OUT_ANOTHER_WAY: list[dict[str, Any]] = [
    {"length_norm": 0.25},
    {"signal_tokens": 1},
    {"query_offset": 40},
    {"max_query_tokens": 20},
]


@pytest.fixture
def remembering(mini: Ranker) -> Ranker:
    """A ranker over the embedded model that has encoded the pool."""
    ranker = mini.with_spec()
    assert ranker.remember(POOL, 1 << 24)
    return ranker


def scores(ranker: Ranker) -> list[float]:
    rankings = ranker.rank_many(REQUESTS)
    return [entry.score for ranking in rankings for entry in sorted(ranking, key=lambda entry: entry.index)]


def encoded(ranker: Ranker, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Documents in each forward while a ranker ranks."""
    seen: list[int] = []
    forward = RankModel.forward

    def counting(self: RankModel, layout: Any, **options: Any) -> Any:
        seen.append(len(layout.document_segment_C))
        return forward(self, layout, **options)

    with monkeypatch.context() as patch:
        patch.setattr(RankModel, "forward", counting)
        scores(ranker)
    return seen


@pytest.mark.parametrize("changes", READ_ANOTHER_WAY, ids=str)
def test_a_view_that_reads_otherwise_shares_the_store_and_takes_nothing_wrong_from_it(
    mini: Ranker, remembering: Ranker, changes: dict[str, Any]
) -> None:
    before = scores(remembering)
    other = remembering.with_spec(**changes)
    assert other.model.store is remembering.model.store
    kept = len(remembering.model.store)  # type: ignore[arg-type]
    for _ in range(2):  # filling the store, then reading from it
        assert scores(other) == pytest.approx(scores(mini.with_spec(**changes)), abs=TOLERANCE["float32"])
        assert scores(remembering) == before
    assert len(remembering.model.store) == 2 * kept  # type: ignore[arg-type]  # entries of its own


@pytest.mark.parametrize("changes", READ_OUT_ANOTHER_WAY, ids=str)
def test_a_view_that_reads_out_otherwise_encodes_no_document_again(
    mini: Ranker, remembering: Ranker, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = remembering.with_spec(**changes)
    assert set(encoded(other, monkeypatch)) == {0}
    assert scores(other) == pytest.approx(scores(mini.with_spec(**changes)), abs=TOLERANCE["float32"])


@pytest.mark.parametrize("changes", [{"query_reads": "all"}, {"prune": ((3, 0.5),)}], ids=str)
def test_a_view_whose_documents_cannot_be_reused_leaves_the_store_alone(
    mini: Ranker, remembering: Ranker, changes: dict[str, Any]
) -> None:
    other, kept = remembering.with_spec(**changes), len(remembering.model.store)  # type: ignore[arg-type]
    assert scores(other) == pytest.approx(scores(mini.with_spec(**changes)), abs=TOLERANCE["float32"])
    assert len(remembering.model.store) == kept  # type: ignore[arg-type]
    assert not other.remember(POOL, 1 << 24)


def test_what_computes_otherwise_takes_no_bits_of_another(mini: Ranker, remembering: Ranker) -> None:
    views = [
        remembering.model.in_library_layers(),
        remembering.model.with_backend(get_backend("reference", CPU, torch.float32)),
    ]
    for count, view in enumerate(views, 2):
        found = scores(Ranker(view))
        assert len(remembering.model.store) == count * len(POOL)  # type: ignore[arg-type]
        assert found == pytest.approx(scores(mini), abs=TOLERANCE["float32"])


def test_forgetting_and_another_store_are_of_one_ranker_alone(remembering: Ranker) -> None:
    other, third = remembering.with_spec(), remembering.with_spec()
    other.forget()
    third.reuse(1 << 20)
    assert other.model.store is None
    assert other.model.memo is None
    assert third.model.store is not remembering.model.store
    assert len(remembering.model.store) == len(POOL)  # type: ignore[arg-type]


def test_views_keep_the_store_but_behind_a_wrapper_that_may_train(remembering: Ranker) -> None:
    model = remembering.model
    (alone,) = model.on_each_device()
    for view in (alone, model.with_turns(lambda: None)):
        assert view.store is model.store
        assert view.memo is model.memo
    wrapped = model.through(nn.Module())
    assert wrapped.store is None
    assert wrapped.memo is None


def test_weights_are_held_once_whatever_views_there_are(mini: Ranker) -> None:
    model = mini.model
    views = [
        mini.with_spec(layer=3).model, mini.with_spec(heads=(0, 1)).model, *model.on_each_device(),
        model.with_turns(lambda: None), model.in_library_layers(),
    ]  # fmt: skip
    assert all(view.weights is model.weights for view in views)
    assert all(view.module is model.module and view.tokenizer is model.tokenizer for view in views)
    assert (views[0].spec.readout.layer, views[1].spec.readout.heads, model.spec.readout.heads) == (
        3,
        (0, 1),
        mini.spec.readout.heads,
    )
    assert views[-1].decoder is None
    assert model.decoder is views[0].decoder is model.weights.decoder


def test_what_is_done_to_weights_shows_in_every_view_of_them() -> None:
    weights = LoadedModel(random_decoder("qwen3"), name="tiny")
    spec = golden_spec(softmax_over="all")  # every row's keys
    one = RankModel(weights, spec, get_backend("sdpa", CPU, torch.float32))
    two, library = RankModel(weights, golden_spec(layer=1), one.backend), one.in_library_layers()
    assert (one.decoder, two.decoder) == (None, None)
    weights.fuse()
    assert one.decoder is two.decoder is weights.decoder
    assert library.decoder is None
    layout = random_layout([3, 5, 4, 3], spec)
    with torch.inference_mode():
        torch.testing.assert_close(one.forward(layout).only.k_PKH, library.forward(layout).only.k_PKH)


def test_the_way_back_to_a_spec_is_the_first_view(mini: Ranker) -> None:
    there = mini.with_spec(layer=2, length_norm=0.0, max_segment_tokens=7)
    back = there.with_spec(**{name: mini.spec.fields[name] for name in ("layer", "length_norm", "max_segment_tokens")})
    assert back.spec == mini.spec
    assert scores(back) == scores(mini)


def test_views_over_the_same_weights_may_be_used_at_once(mini: Ranker, remembering: Ranker) -> None:
    """Several threads, each with a view of its own, over one store that is too small for all of them."""
    remembering.reuse(1 << 17)
    views = [remembering.with_spec(**changes) for changes in ({}, *READ_ANOTHER_WAY, *READ_OUT_ANOTHER_WAY)]
    expected = [scores(mini.with_spec(**changes)) for changes in ({}, *READ_ANOTHER_WAY, *READ_OUT_ANOTHER_WAY)]
    together = Barrier(len(views))

    def work(view: Ranker) -> list[list[float]]:
        together.wait()
        return [scores(view) for _ in range(3)]

    with ThreadPoolExecutor(len(views)) as pool:
        for found, wanted in zip(pool.map(work, views), expected, strict=True):
            for each in found:
                assert each == pytest.approx(wanted, abs=TOLERANCE["float32"])


def test_views_take_turns_in_captured_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """All graphs write to the same place: what one thread is given stays its own."""
    weights = LoadedModel(random_decoder("qwen3"))
    weights.fuse()
    assert weights.graphs is not None
    place, spec, together = torch.empty(64, 1, 1), golden_spec(query_offset=64), Barrier(2)

    class Replayed:
        def replay(self, padded: Any, tables: Any) -> tuple[torch.Tensor, torch.Tensor]:
            place.fill_(float(padded.ids_T[0]))
            time.sleep(0.01)
            return place, place

    monkeypatch.setattr(Graphs, "_fits", lambda *_: True)
    monkeypatch.setattr(Graphs, "_capture", lambda self, size, *_: self._captured.update({size: Replayed()}))
    backend = get_backend("sdpa", CPU, torch.float32)

    def work(seed: int) -> bool:
        layout, found = random_layout([3, 5, 4, 3], spec, seed), list[Any]()
        together.wait()
        for _ in range(8):
            found.append(weights.graphs.forward(layout, 2, spec, backend))  # type: ignore[union-attr]
        return all(bool(keys.eq(float(layout.ids_T[0])).all()) for _, keys in found[1:])

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(work, (1, 2)))


def test_a_store_is_whole_whatever_threads_do() -> None:
    """What is found stays as it was found, though others push it out in the meantime."""
    store, threads = MemoryStore(8 * 64), 4
    together = Barrier(threads)

    def work(own: int) -> bool:
        together.wait()
        for step in range(400):
            key = b"%d" % ((own + step) % 40)
            found = store.find([key])
            store.write(key, torch.full((1 + int(key) % 3, 1, 4), float(key)))
            if not all(bool(entry.eq(float(key)).all()) for entry in found.values()):
                return False
        return True

    with ThreadPoolExecutor(threads) as pool:
        assert all(pool.map(work, range(threads)))
    assert store.hits + store.misses == threads * 400
    assert store.used_bytes <= 8 * 64


def test_entries_of_layers_of_another_width_lie_apart() -> None:
    store = MemoryStore(1 << 12)
    store.write(b"wide", torch.ones(2, 2, 4))
    store.write(b"slim", torch.ones(2, 1, 4))
    assert {key: tuple(entry.shape) for key, entry in store.find([b"wide", b"slim"]).items()} == {
        b"wide": (2, 2, 4), b"slim": (2, 1, 4),
    }  # fmt: skip


def test_quantised_weights_take_no_keys_of_exact_ones() -> None:
    weights = LoadedModel(random_decoder("llama"))
    model = RankModel(weights, golden_spec(), get_backend("sdpa", CPU, torch.float32))
    weights.fuse()
    exact = model.arithmetic
    weights.quantise(torch.int8)
    assert reuse_context(model.spec, model.arithmetic) != reuse_context(model.spec, exact)


def test_groups_hold_items_of_similar_length_whatever_their_order() -> None:
    lengths = [9, 1, 5, 1, 30, 4, 6]
    groups = plan_alike(lengths, 10)
    assert [group.tolist() for group in groups] == [[1, 3, 5], [2], [6], [0], [4]]
    assert plan_alike([], 10) == []
