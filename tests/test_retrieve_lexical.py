"""BM25 over the candidates of a request alone."""

from __future__ import annotations

import sys

import pytest

from blockrank import Document, MissingExtraError, RankRequest
from blockrank.retrieve import Bm25Index
from blockrank.retrieve.lexical import Bm25Ranker

TEXTS = ["The coast is rainy.", "Bram Stoker wrote Dracula.", "", "Vampires wrote nothing.", "Dracula, Dracula!"]


def test_candidates_are_ranked_as_a_corpus_of_their_own() -> None:
    ranking = Bm25Ranker().rank("who wrote about Dracula", TEXTS)
    index = Bm25Index.build(Document(text, str(place)) for place, text in enumerate(TEXTS) if text)
    expected = index.search("who wrote about Dracula", 10)
    assert ranking.doc_ids == [*expected, "0", "2"]
    total = sum(expected.values())
    assert [entry.score for entry in ranking] == pytest.approx([*(s / total for s in expected.values()), 0.0, 0.0])
    assert ranking.kind == "share"


def test_without_a_shared_word_the_order_stays() -> None:
    ranking = Bm25Ranker().rank("zebra", TEXTS)
    assert [entry.index for entry in ranking] == [0, 1, 3, 4, 2]
    assert [entry.score for entry in ranking] == [0.25] * 4 + [0.0]


def test_titles_count_and_ids_may_repeat() -> None:
    documents = [Document("a text", "x"), Document("a text", "x", title="Dracula")]
    ranking = Bm25Ranker().rank("dracula", documents)
    assert [entry.index for entry in ranking] == [1, 0]
    assert [len(each) for each in Bm25Ranker().rank_many([RankRequest("dracula", documents, top_k=1)])] == [1]


def test_identities_tell_settings_apart() -> None:
    assert Bm25Ranker().identity() == Bm25Ranker().identity() != Bm25Ranker(b=0.75).identity()
    assert Bm25Ranker(k1=1.2).identity()["k1"] == 1.2


def test_a_missing_extra_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingExtraError, match="BM25 needs bm25s and PyStemmer"):
        Bm25Ranker()
