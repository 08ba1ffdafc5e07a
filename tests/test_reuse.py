"""Documents encoded once: same scores as without, entries by content, and a bounded memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TOLERANCE, golden_spec, random_layout, tokenised
from hypothesis import given, settings
from hypothesis import strategies as st

from blockrank import Document, InputError, Ranker, RankRequest
from blockrank.attention.reference import dense_mask
from blockrank.layout import pack
from blockrank.reuse.keys import content_keys
from blockrank.reuse.memory import MemoryStore

WORDS = ("egg", "boil", "ten", "minutes", "Oslo", "fjord", "is", "the", "capital", "of", "Norway", "42")
POOL = [Document(" ".join(WORDS[i % 5 : 6 + i % 7]) + f" {i}", f"d{i}") for i in range(12)]


@pytest.fixture
def reusing(mini: Ranker) -> Ranker:
    """A ranker of its own over the same weights, so that no other test meets its store."""
    return mini.with_spec()


def scores(ranker: Ranker, requests: list[RankRequest]) -> list[float]:
    return [entry.score for ranking in ranker.rank_many(requests) for entry in sorted(ranking, key=lambda e: e.index)]


requests_over_pool = st.lists(
    st.tuples(st.sampled_from(WORDS), st.lists(st.integers(0, 11), min_size=1, max_size=8, unique=True)),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=15)
@given(asked=requests_over_pool)
def test_reuse_changes_no_score(mini: Ranker, asked: list[tuple[str, list[int]]]) -> None:
    requests = [RankRequest(word, [POOL[i] for i in at], str(n)) for n, (word, at) in enumerate(asked)]
    reusing = mini.with_spec()
    reusing.model.store = MemoryStore(1 << 24)
    expected = scores(mini, requests)
    for _ in range(2):  # filling the store, then reading from it
        assert scores(reusing, requests) == pytest.approx(expected, abs=TOLERANCE["float32"])
    assert len(reusing.model.store) == len({i for _, at in asked for i in at})  # type: ignore[arg-type]


def test_tokens_of_documents_are_kept_as_long_as_their_keys(reusing: Ranker) -> None:
    requests = [RankRequest(word, POOL[n : n + 4], word, evidence=n % 2 == 0) for n, word in enumerate(WORDS[:6])]
    expected = [reusing.rank_many([request])[0] for request in requests]
    assert reusing.model.memo is None
    reusing.reuse(1 << 24)
    for _ in range(2):
        for request, before in zip(requests, expected, strict=True):
            found = reusing.rank_many([request])[0]
            assert [entry.doc_id for entry in found] == [entry.doc_id for entry in before]
            assert [entry.tokens for entry in found] == [entry.tokens for entry in before]
            for one, other in zip(found, before, strict=True):
                assert [(e.start, e.end) for e in one.evidence or ()] == [
                    (e.start, e.end) for e in other.evidence or ()
                ]
    assert reusing.model.memo is not None
    assert len(reusing.model.memo) == len({(d.text, n % 2) for n in range(6) for d in POOL[n : n + 4]})
    reusing.forget()
    assert reusing.model.memo is None


def test_remembered_documents_score_the_same_bits_whatever_came_before(reusing: Ranker) -> None:
    requests = [RankRequest(word, POOL[n:], word) for n, word in enumerate(WORDS[:6])]
    seen: list[tuple[int, int]] = []
    assert reusing.remember([*POOL, replace(POOL[0], doc_id="twin")], 1 << 24, lambda *done: seen.append(done))
    assert seen[-1] == (12, 12)
    whole = [scores(reusing, [request]) for request in requests]
    reusing.forget()
    assert reusing.model.store is None
    assert reusing.remember(list(reversed(POOL)), 1 << 24)
    assert [scores(reusing, [request]) for request in requests[3:]] == whole[3:]


def test_remembered_documents_are_not_encoded_again(reusing: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reusing.remember(POOL, 1 << 24)
    tokens: list[int] = []
    forward = type(reusing.model).forward
    monkeypatch.setattr(
        type(reusing.model), "forward", lambda self, layout: tokens.append(layout.tokens) or forward(self, layout)
    )
    reusing.rank("Oslo", POOL)
    assert tokens == [3]  # the query alone
    reusing.rank("Oslo", [*POOL, "new words", "new words"])
    assert tokens == [3, 3 + 4]


def test_remember_declines_what_it_cannot_do(mini: Ranker, reusing: Ranker) -> None:
    assert not reusing.remember(POOL, 1000)
    assert not reusing.remember([], 1 << 24)
    assert not mini.with_spec(query_reads="all").remember(POOL, 1 << 24)
    assert not mini.with_spec(template="query-first-bert").remember(POOL, 1 << 24)
    assert reusing.model.store is None


def test_evidence_survives_reuse(mini: Ranker, reusing: Ranker) -> None:
    reusing.remember(POOL, 1 << 24)
    for one, two in zip(reusing.rank("Oslo", POOL, evidence=True), mini.rank("Oslo", POOL, evidence=True), strict=True):
        assert [e.share for e in one.evidence] == pytest.approx(
            [e.share for e in two.evidence], abs=TOLERANCE["float32"]
        )


def test_the_key_of_a_document_is_its_content() -> None:
    spec = golden_spec(query_reads="own")
    layout = random_layout([3, 4, 4, 2], spec)
    one, two = content_keys(layout, b"")
    assert set(content_keys(layout, b"another reading")).isdisjoint({one, two})
    assert one != two
    same = layout.ids_T.copy()
    same[7:11] = same[3:7]
    assert len(set(content_keys(replace(layout, ids_T=same), b""))) == 1
    other = layout.ids_T.copy()
    other[0] += 1
    assert set(content_keys(replace(layout, ids_T=other), b"")).isdisjoint({one, two})


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=5), min_size=1, max_size=3),
    reads=st.sampled_from(["all", "own"]),
    data=st.data(),
)
def test_a_layout_without_documents_is_the_rest_of_its_mask(
    lengths: list[list[int]], reads: str, data: st.DataObject
) -> None:
    spec = golden_spec(query_reads=reads)

    layout = pack([tokenised([np.arange(3, 3 + n) for n in (2, *item, 3)]) for item in lengths], spec)
    dropped = np.zeros(len(layout.starts_S), dtype=bool)
    for segment in layout.document_segment_C:
        dropped[segment] = data.draw(st.booleans())
    lean = layout.without(dropped)
    kept = torch.from_numpy(np.repeat(~dropped, layout.ends_S - layout.starts_S))
    assert torch.equal(dense_mask(lean), dense_mask(layout)[kept][:, kept])
    assert lean.ids_T.tolist() == layout.ids_T[kept.numpy()].tolist()
    assert lean.positions_T.tolist() == layout.positions_T[kept.numpy()].tolist()
    assert lean.ids_T[lean.signal_G].tolist() == layout.ids_T[layout.signal_G].tolist()
    assert len(lean.document_segment_C) == int((~dropped[layout.document_segment_C]).sum())


def test_a_store_drops_the_oldest_slab() -> None:
    entry = torch.arange(4.0).reshape(1, 1, 4)  # 16 bytes; a slab holds two
    store = MemoryStore(8 * 32)
    for number in range(16):
        store.write(b"%d" % number, entry + number)
    assert (len(store), store.used_bytes) == (16, 256)
    assert torch.equal(store.find([b"5"])[b"5"], entry + 5)
    store.write(b"16", entry + 16)
    assert list(store.find([b"0", b"1", b"2", b"16"])) == [b"2", b"16"]
    assert (store.hits, store.misses) == (3, 2)
    assert (len(store), store.used_bytes) == (15, 256)
    store.write(b"large", torch.zeros(17, 1, 4))
    store.write(b"5", torch.zeros(1, 1, 4))
    assert (len(store), store.used_bytes) == (15, 256)
    assert torch.equal(store.find([b"5"])[b"5"], entry + 5)
    store.write(b"wide", torch.zeros(9, 1, 4))
    assert b"wide" in store.find([b"wide"])
    assert store.used_bytes <= 256


def test_a_store_refuses_a_size_that_holds_nothing() -> None:
    with pytest.raises(InputError, match="max_bytes must be positive"):
        MemoryStore(0)


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(1, 9), max_size=60), most=st.integers(1, 40))
def test_a_store_stays_within_its_limit_and_keeps_the_newest(sizes: list[int], most: int) -> None:
    store = MemoryStore(16 * most)
    for number, size in enumerate(sizes):
        store.write(b"%d" % number, torch.full((size, 1, 4), float(number)))
        assert store.used_bytes <= 16 * most
        assert len(store.find([b"%d" % number])) == (size <= most)
    for number in range(len(sizes)):
        assert all(found.eq(number).all() for found in store.find([b"%d" % number]).values())
