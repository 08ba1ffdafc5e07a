"""Documents encoded once: same scores as without, entries by content, and a bounded memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import TOLERANCE
from hypothesis import given, settings
from hypothesis import strategies as st

from blockrank import Document, Ranker, RankRequest
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
