"""`Ranker`: batches by tokens, threads, long documents, cuts, and memory that does not suffice."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from conftest import EXHAUSTED, TOLERANCE, exhaust
from hypothesis import given, settings
from hypothesis import strategies as st

from blockrank import InputError, ModelError, Ranker, RankRequest
from blockrank.layout import PackedLayout, plan_batches
from blockrank.model import RankModel
from blockrank.scorers import AttentionScorer, Scored

QUERY = "who wrote Dracula"
TEXTS = ["Mary Shelley wrote Frankenstein.", "Bram Stoker wrote Dracula in 1897.", "The Irish coast is rainy."]


def many(count: int) -> list[RankRequest]:
    return [RankRequest(QUERY, [f"{text} {'again ' * i}" for text in TEXTS], f"q{i}") for i in range(count)]


class CrampedScorer(AttentionScorer):
    """Runs out of memory above so many documents, like a small device."""

    name = "cramped"

    def __init__(self, room: int, how: str = "cuda") -> None:
        self.room, self.how, self.batches = room, how, list[int]()

    def read(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
        documents = len(layout.document_segment_C)
        if documents > self.room:
            exhaust(self.how)
        self.batches.append(documents)
        return super().read(model, layout, evidence=evidence)


class NotFiniteScorer(CrampedScorer):
    """Yields what a broken model would."""

    def read(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
        return Scored(torch.full((len(layout.document_segment_C),), float("nan")))


def test_the_embedded_model_ranks(mini: Ranker) -> None:
    ranking = mini.rank(QUERY, TEXTS, top_k=2, query_id="7")
    assert ranking[0].index == 1
    assert (len(ranking), ranking.query, ranking.query_id) == (2, QUERY, "7")
    assert ranking[0].tokens > 0


# Batches


@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(1, 50)), budget=st.integers(1, 120))
def test_batches_respect_the_budget_and_lose_nothing(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert [length for batch in batches for length in lengths[batch]] == lengths
    for batch in batches:
        assert sum(lengths[batch]) <= budget or batch.stop - batch.start == 1
    for one, two in pairwise(batches):
        assert sum(lengths[one]) + lengths[two][0] > budget


def test_a_stream_is_ranked_lazily_and_in_order(mini: Ranker) -> None:
    taken: list[str] = []

    def stream() -> Iterator[RankRequest]:
        for index in range(70):
            taken.append(f"q{index}")
            yield RankRequest("q", ["a", "b"], f"q{index}")

    rankings = mini.rank_iter(stream())
    assert next(rankings).query_id == "q0"
    assert len(taken) == 64
    assert [ranking.query_id for ranking in rankings] == [f"q{i}" for i in range(1, 70)]


def test_the_budget_does_not_change_scores(mini: Ranker) -> None:
    tight, wide = (Ranker(mini.model, max_tokens=tokens).rank_many(many(5)) for tokens in (1, 100_000))
    for one, two in zip(tight, wide, strict=True):
        assert one.doc_ids == two.doc_ids
        assert [entry.score for entry in one] == pytest.approx([entry.score for entry in two], abs=TOLERANCE["float32"])
    with pytest.raises(InputError, match="max_tokens must be positive"):
        Ranker(mini.model, max_tokens=0)


# Memory


@pytest.mark.parametrize("kind", EXHAUSTED)
def test_a_batch_that_does_not_fit_runs_in_halves(mini: Ranker, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    scorer = CrampedScorer(6, kind)
    with caplog.at_level(logging.INFO, "blockrank"):
        found = Ranker(mini.model, scorer).rank_many(many(5))
    assert scorer.batches == [6, 3, 6]
    assert "5 requests do not fit into memory together" in caplog.text
    for one, two in zip(found, mini.rank_many(many(5)), strict=True):
        assert [entry.score for entry in one] == pytest.approx([entry.score for entry in two], abs=TOLERANCE["float32"])


@pytest.mark.parametrize("kind", EXHAUSTED)
def test_a_request_that_does_not_fit_is_told(mini: Ranker, kind: str) -> None:
    with pytest.raises(ModelError, match=r"query_id 'q1': its \d+ tokens do not fit into the memory of cpu"):
        Ranker(mini.model, CrampedScorer(2, kind)).rank_many(many(2)[1:])


def test_scores_that_are_not_finite_are_told(mini: Ranker) -> None:
    with pytest.raises(ModelError, match="query_id 'q0': the model's scores are not finite"):
        Ranker(mini.model, NotFiniteScorer(room=9)).rank_many(many(1))


# Threads


def test_threads_share_a_ranker(mini: Ranker) -> None:
    requests = many(24)
    expected = [mini.rank_many([request])[0] for request in requests]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda request: mini.rank_many([request])[0], requests))
    for one, two in zip(found, expected, strict=True):
        assert one.doc_ids == two.doc_ids
        assert [entry.score for entry in one] == pytest.approx([entry.score for entry in two], abs=TOLERANCE["float32"])


# Limits


def test_a_long_document_is_cut_and_the_cut_told(mini: Ranker, caplog: pytest.LogCaptureFixture) -> None:
    megabyte = ("Bram Stoker wrote Dracula. " * 40_000)[:1_000_000]
    ranking = mini.rank(QUERY, [*TEXTS, megabyte], query_id="7")
    entry = next(entry for entry in ranking if entry.index == 3)
    assert entry.tokens <= mini.spec.limits.max_segment_tokens
    assert entry.cut_tokens > 100_000
    assert entry.to_dict()["cut_tokens"] == entry.cut_tokens
    [record] = [record for record in caplog.records if record.name == "blockrank.ranker"]
    assert record.getMessage() == (
        f"query_id '7': documents[3] (doc_id '3') was cut from about {entry.tokens + entry.cut_tokens} to "
        f"{entry.tokens} tokens of its own (max_segment_tokens {mini.spec.limits.max_segment_tokens})."
    )
    assert entry.to_dict()["cut_is_estimate"]
    whole = len(mini.model.weights.hf_tokenizer(megabyte, add_special_tokens=False).input_ids)
    assert entry.tokens + entry.cut_tokens == pytest.approx(whole, rel=0.02)


def test_a_query_over_the_limit_names_its_request(mini: Ranker) -> None:
    with pytest.raises(InputError, match=r"query is 9 tokens long and the limit is 8.*query_id '7'"):
        mini.with_spec(max_query_tokens=8).rank("word " * 9, TEXTS, query_id="7")


def test_a_spec_can_be_changed_over_the_same_weights(mini: Ranker) -> None:
    shorter = mini.with_spec(max_segment_tokens=6)
    assert shorter.model.module is mini.model.module
    assert {entry.tokens for entry in shorter.rank(QUERY, TEXTS)} == {4}
    with pytest.raises(ModelError, match="layer 99"):
        mini.with_spec(layer=99)


def test_a_long_query_is_refused_or_cut_as_asked(mini: Ranker, caplog: pytest.LogCaptureFixture) -> None:
    long, documents = "why is mars red " * 200, ["Iron oxide makes Mars look red.", "Venus is hot."]
    with pytest.raises(InputError, match=r"query is 800 tokens long and the limit is 510: .*query_id '0'"):
        mini.rank(long, documents)
    ranking = mini.with_spec(long_queries="cut").rank(long, documents)
    assert ranking.query_cut_tokens == 800 - 510
    assert ranking.query == long
    assert ranking.to_dict()["query_cut_tokens"] == 290
    assert "the query lost its last 290 tokens" in caplog.text
    short = mini.with_spec(long_queries="cut").rank("why is mars red", documents)
    assert short.query_cut_tokens == 0
    assert [entry.score for entry in short] == [entry.score for entry in mini.rank("why is mars red", documents)]
