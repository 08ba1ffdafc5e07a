"""Adaptive search: how much is read, that scores of different prompts meet, and what is foretold of the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from whims import KINDS, Careless, Whim, check_ranking, request_of

from blockrank import Document, FakeRanker, InputError, Ranker, Ranking, RankRequest, RequestRanker
from blockrank.strategies import STRATEGIES
from blockrank.strategies.adaptive import Adaptive
from blockrank.strategies.vectors import LexicalEncoder
from blockrank.types import ScoreKind

ABSOLUTE = ("logit", "probability")


class Numbers:
    """Texts that begin with a number as points on a circle, so that neighbours are alike."""

    identity = "numbers"

    def documents(self, texts: Sequence[str]) -> NDArray[np.float64]:
        angles = np.array([float(text.split()[0]) for text in texts]) / 20
        return np.column_stack([np.cos(angles), np.sin(angles)])


class Peak(RequestRanker):
    """Logits that fall with the distance from a number; given as `kind`, of which shares depend on the prompt."""

    def __init__(self, peak: float, kind: ScoreKind = "share") -> None:
        self.peak, self.kind, self.calls = peak, kind, list[list[int]]()

    def logit(self, number: float) -> float:
        return -abs(number - self.peak) / 10

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        for request in requests:
            numbers = [int(request.candidates[index].text.split()[0]) for index in request.readable]
            self.calls.append(numbers)
            logits = np.array([self.logit(number) for number in numbers])
            scores = {
                "logit": logits,
                "relative": logits - logits.mean(),
                "probability": np.exp(logits),
                "share": np.exp(logits) / np.exp(logits).sum(),
                "order": -1.0 - np.argsort(np.argsort(-logits, kind="stable")),
            }[self.kind]
            yield Ranking.from_scores(request, scores.tolist(), [1] * len(numbers), kind=self.kind)

    def identity(self) -> dict[str, Any]:
        return {"ranker": "peak", "peak": self.peak}


def sizes_of_rounds(budget: int, size: int, anchors: int) -> list[int]:
    """What each round reads, with its anchors: full rounds, and one of what is left if that reads something new."""
    full, left = divmod(budget, size)
    return [size] * full + [left] * (left > anchors)


@settings(deadline=None, max_examples=80)
@given(
    count=st.sampled_from([1, 2, 11, 12, 13, 40, 100]),
    size=st.integers(2, 12),
    anchors=st.integers(1, 4),
    kind=st.sampled_from(KINDS),
    tokens=st.booleans(),
    seed=st.integers(0, 9),
    unreadable=st.sets(st.integers(1, 20), max_size=3),
    top_k=st.one_of(st.none(), st.integers(1, 120)),
)
def test_whatever_a_ranker_says_all_come_back_once_and_the_budget_holds(
    count: int,
    size: int,
    anchors: int,
    kind: ScoreKind,
    tokens: bool,
    seed: int,
    unreadable: set[int],
    top_k: int | None,
) -> None:
    anchors = min(anchors, size - 1)
    request = request_of(count, unreadable=unreadable, top_k=top_k)
    ranker, first = Whim(seed, kind, tokens=tokens), Whim(seed + 1)
    adaptive = Adaptive(ranker, first, 12, size, anchors)
    [ranking] = adaptive.rank_many([request])
    check_ranking(request, ranking)
    read, readable = [len(call) for call in ranker.calls], len(request.readable)
    if readable <= 12:
        assert (read, first.calls) == ([readable], [])
    else:
        assert read == sizes_of_rounds(12, size, 0 if kind in ABSOLUTE else anchors)
        assert len(first.calls) == 1
        distinct = {text for call in ranker.calls for text in call}
        again = sum(read) - len(distinct)
        assert again == (0 if kind in ABSOLUTE else anchors * (len(read) - 1))
        assert {entry.text for entry in ranking[: len(distinct)]} <= distinct, "what was read comes first"
    assert ranking.kind == "order"
    assert adaptive.rank_many([request]) == [ranking]


def test_requests_are_ranked_as_each_alone() -> None:
    requests = [request_of(count, str(count)) for count in (3, 31, 60, 100)]
    together = Adaptive(Whim()).rank_many(requests)
    assert together == [Adaptive(Whim()).rank_many([request])[0] for request in requests]


@pytest.mark.parametrize("kind", ["share", "logit", "probability"])
@pytest.mark.parametrize("anchors", [1, 3])
def test_scores_of_different_prompts_meet_on_one_scale(kind: ScoreKind, anchors: int) -> None:
    """Shares of a prompt say nothing of another's; by its anchors what was read is in the order of the logits."""
    ranker = Peak(63.2, kind)
    [ranking] = Adaptive(ranker, budget=30, size=10, anchors=anchors, vectors=Numbers()).rank_many([request_of(100)])
    read = {number for call in ranker.calls for number in call}
    assert len(ranker.calls) == 3
    assert [entry.index for entry in ranking[: len(read)]] == sorted(read, key=ranker.logit, reverse=True)


def test_rounds_of_an_order_agree_with_their_anchor() -> None:
    """Ranks alone: those before the anchor of a round are before it in the end, and those behind it behind."""
    ranker = Peak(63.2, "order")
    [ranking] = Adaptive(ranker, budget=30, size=10, vectors=Numbers()).rank_many([request_of(100)])
    place = {entry.index: entry.rank for entry in ranking}
    for anchor, *others in ranker.calls[1:]:
        for other in others:
            assert (place[other] < place[anchor]) == (ranker.logit(other) > ranker.logit(anchor))


@pytest.mark.parametrize("kind", KINDS)
def test_what_vectors_say_leads_to_the_best(kind: ScoreKind) -> None:
    """What is read comes nearer to the best than the first places of as many, which the first stage gives."""
    request = request_of(60)
    ranker = Peak(55, kind)
    [ranking] = Adaptive(ranker, budget=20, size=5, vectors=Numbers()).rank_many([request])
    assert 19 < ranking[0].index <= 55
    assert ranker.calls[0] == [0, 1, 2, 3, 4]
    read = {number for call in ranker.calls for number in call}
    unread = ranking[len(read) :]
    assert unread[0].index > unread[-1].index, "the others follow by what is expected of them"
    assert all(entry.tokens == 0 for entry in unread)


def test_the_first_ranker_says_where_to_begin() -> None:
    ranker, request = Peak(5), request_of(50)
    Adaptive(ranker, Peak(40), budget=10, size=4).rank_many([request])
    assert ranker.calls[0] == [40, 39, 41, 38]


def test_words_lead_to_texts_alike() -> None:
    """With the vectors that come without a model."""
    texts = [f"note{i} about {'vampires and castles' if i % 9 == 4 else 'rain and the coast'}" for i in range(60)]
    fake = FakeRanker(lambda _, text: 5.0 if "vampires" in text else 1.0)
    ranking = STRATEGIES.make("adaptive:budget=16,size=6", fake).rank("dracula", texts)
    assert sorted(entry.index for entry in ranking[:7]) == [4, 13, 22, 31, 40, 49, 58]
    assert sum(len(call.candidates) for call in fake.calls) == 16


def test_a_silent_document_bends_nothing_and_comes_last() -> None:
    class Deaf(Peak):
        def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
            for request in requests:
                heard = [i for i in request.readable if request.candidates[i].text.split()[0] != "1"]
                scores = [self.logit(float(request.candidates[i].text.split()[0])) for i in heard]
                yield Ranking.from_scores(request, scores, [1] * len(heard), read=heard, kind="logit")

    [ranking] = Adaptive(Deaf(30), budget=9, size=3, vectors=Numbers()).rank_many([request_of(40)])
    assert ranking[-1].index == 1
    assert ranking.warnings == ("documents[1] (doc_id 'd1'): no token of this tokenizer; ranked last.",)


def test_shares_of_nothing_are_ranked() -> None:
    """A ranker that gives nothing to some, and everything to none."""
    fake = FakeRanker(lambda _, text: float("7" in text))
    ranking = Adaptive(fake, budget=12, size=4).rank("seven", [f"number {i}" for i in range(40)])
    assert sorted(entry.index for entry in ranking) == list(range(40))
    assert ranking[0].index == 7


def test_evidence_is_asked_of_the_ranker_alone(mini: Ranker) -> None:
    texts = [f"Book {i} was written by author number {i}." for i in range(8)] + ["Bram Stoker wrote Dracula."]
    adaptive = Adaptive(mini, "bm25", budget=4, size=2)
    ranking = adaptive.rank("who wrote Dracula", texts, evidence=True)
    assert ranking[0].index == 8
    assert [bool(entry.evidence) for entry in ranking] == [bool(entry.tokens) for entry in ranking]
    assert sum(entry.tokens > 0 for entry in ranking) == 3, "two, then an anchor and one more, then the same"


def test_lexical_vectors() -> None:
    texts = ["Dracula, Dracula and Dracula", "dracula and the castle", "rain and rain", "", "and"]
    vectors_ND = LexicalEncoder().documents(texts)
    lengths = np.linalg.norm(vectors_ND, axis=1)
    assert lengths == pytest.approx([1, 1, 1, 0, 1], abs=1e-6)
    similar_NN = vectors_ND @ vectors_ND.T
    assert similar_NN[0, 1] > similar_NN[0, 2] > 0
    assert np.array_equal(vectors_ND, LexicalEncoder().documents(texts))


@pytest.mark.parametrize("wrong", [np.zeros((39, 2)), np.zeros(40), np.full((40, 2), np.nan)])
def test_vectors_are_checked(wrong: NDArray[np.float64]) -> None:
    class Wrong(Numbers):
        def documents(self, texts: Sequence[str]) -> NDArray[np.float64]:
            return wrong

    with pytest.raises(InputError, match="vectors must give a finite vector for each of 40 documents"):
        Adaptive(Whim(), vectors=Wrong()).rank_many([request_of(40)])


def test_vectors_that_are_all_equal_leave_the_first_order() -> None:
    class Same(Numbers):
        def documents(self, texts: Sequence[str]) -> NDArray[np.float64]:
            return np.ones((len(texts), 3))

    ranker = Peak(0, "logit")
    [ranking] = Adaptive(ranker, budget=10, size=5, vectors=Same()).rank_many([request_of(30)])
    assert [entry.index for entry in ranking] == list(range(30))


def test_identity_covers_vectors_and_both_rankers() -> None:
    found = Adaptive(Peak(1), Peak(2), vectors=Numbers()).identity()
    assert found == {
        "ranker": "adaptive", "first": Peak(2).identity(), "budget": 30, "size": 10, "anchors": 1,
        "vectors": "numbers", "of": Peak(1).identity(),
    }  # fmt: skip
    assert STRATEGIES.make("adaptive", Peak(1)).identity()["vectors"] == {"words": 4096}


def test_vectors_of_a_sentence_model_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from blockrank.retrieve import encoder

    monkeypatch.setattr(encoder, "SentenceEncoder", lambda name: Numbers() if name == str(tmp_path) else None)
    adaptive = STRATEGIES.make(f"adaptive:vectors={tmp_path}", Whim())
    assert adaptive.identity()["vectors"] == "numbers"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("adaptive:budget=5", r"size must lie between 1 and budget 5, not 10\."),
        ("adaptive:size=0", r"size must lie between 1 and budget 30, not 0\."),
        ("adaptive:anchors=0", r"anchors must be positive, not 0\."),
        ("adaptive:anchors=10", r"anchors must be fewer than size 10, not 10"),
        ("adaptive:vectors=nonsense", "vectors is 'lexical', a folder or hub name of sentence-transformers, or an"),
        ("adaptive:first=nonsense", "first is 'order', 'bm25', or"),
    ],
)
def test_settings_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        STRATEGIES.make(text, Whim())
    with pytest.raises(InputError, match="vectors is 'lexical'"):
        Adaptive(Whim(), vectors=Document("x"))


@pytest.mark.parametrize("count", [1, 2, 5, 6, 40])
def test_rankings_that_lack_and_repeat_documents_lose_none(count: int) -> None:
    ranking = Adaptive(Careless(), Careless(), budget=12, size=4).rank_many([request_of(count)])[0]
    assert sorted(entry.index for entry in ranking) == list(range(count))
