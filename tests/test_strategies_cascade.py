"""The cascade, and the names that its first ranker can have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whims import KINDS, Careless, Whim, check_ranking, request_of

from blockrank import InputError, ModelError, Ranker, RankRequest, RequestRanker
from blockrank.ranker import Ranker as LoadedRanker
from blockrank.retrieve.lexical import Bm25Ranker
from blockrank.strategies import STRATEGIES
from blockrank.strategies.cascade import Cascade
from blockrank.strategies.first import OrderRanker
from blockrank.types import ScoreKind

TEXTS = [
    "Rain is common at the coast.",
    "A castle in Transylvania.",
    "Dracula was written by Bram Stoker.",
    "Frankenstein was written by Mary Shelley.",
    "Who wrote Dracula? Bram Stoker wrote it.",
]
QUERY = "who wrote Dracula"


@settings(deadline=None, max_examples=60)
@given(
    count=st.sampled_from([1, 2, 4, 5, 6, 17, 100]),
    seeds=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    tokens=st.tuples(st.booleans(), st.booleans()),
    unreadable=st.sets(st.integers(1, 20), max_size=3),
    top_k=st.one_of(st.none(), st.integers(1, 120)),
)
def test_whatever_rankers_say_all_documents_come_back_once(
    count: int,
    seeds: tuple[int, int],
    kinds: tuple[ScoreKind, ScoreKind],
    tokens: tuple[bool, bool],
    unreadable: set[int],
    top_k: int | None,
) -> None:
    request = request_of(count, unreadable=unreadable, top_k=top_k)
    first, ranker = (Whim(*pair, tokens=counts) for *pair, counts in zip(seeds, kinds, tokens, strict=True))
    cascade = Cascade(ranker, first, keep=5)
    [ranking] = cascade.rank_many([request])
    check_ranking(request, ranking)
    readable = len(request.readable)
    assert [len(call) for call in ranker.calls] == [min(readable, 5)]
    assert [len(call) for call in first.calls] == ([readable] if readable > 5 else [])
    assert ranking.kind == "order"
    assert cascade.rank_many([request]) == [ranking]


def test_the_ranker_ranks_what_the_first_one_chose() -> None:
    request, first, ranker = request_of(30), Whim(1), Whim(2)
    [ranking] = Cascade(ranker, first, keep=8).rank_many([request])
    [cheap] = Whim(1).rank_many([request])
    chosen = [entry.text for entry in cheap[:8]]
    assert ranker.calls == [chosen], "best first"
    assert sorted(entry.text for entry in ranking[:8]) == sorted(chosen)
    assert [entry.index for entry in ranking[8:]] == [entry.index for entry in cheap[8:]]
    assert [entry.tokens for entry in ranking] == [len(entry.text) for entry in ranking]


def test_what_was_not_asked_about_is_no_silent_document() -> None:
    """The first ranker counts no tokens, the second does: the rest is neither warned of nor put behind others."""
    [ranking] = Cascade(Whim(), "order", keep=2).rank_many([request_of(6, unreadable=[1])])
    assert [entry.index for entry in ranking[2:]] == [3, 4, 5, 1]
    assert [entry.tokens > 0 for entry in ranking] == [True, True, False, False, False, False]
    assert len(ranking.warnings) == 1


def test_bm25_chooses_by_words() -> None:
    whim = Whim()
    ranking = STRATEGIES.make("cascade:keep=2,first=bm25", whim).rank(QUERY, TEXTS)
    assert set(whim.calls[0]) == {TEXTS[4], TEXTS[2]}
    assert [entry.index for entry in ranking[2:]] == [0, 1, 3], "no word shared: in the order given"


def test_the_embedded_model_can_be_first(mini: Ranker) -> None:
    cascade = STRATEGIES.make("cascade:keep=1,first=embedded", Whim())
    ranking = cascade.rank(QUERY, TEXTS, evidence=True)
    expected = mini.rank(QUERY, TEXTS)
    assert ranking.doc_ids == expected.doc_ids
    assert [entry.tokens for entry in ranking[1:]] == [entry.tokens for entry in expected[1:]]
    assert cascade.identity()["first"]["files"]


def test_a_folder_and_a_hub_name_are_checkpoints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded: list[str] = []

    def load(name: str, **_: Any) -> RequestRanker:
        loaded.append(name)
        return Whim()

    monkeypatch.setattr(LoadedRanker, "from_pretrained", load)
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("x", f".{os.sep}x", "owner/name", "embedded"):
        assert isinstance(Cascade(Whim(), name).first, Whim)
    assert loaded == ["x", f".{os.sep}x", "owner/name", "embedded"]


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no blockrank"):
        STRATEGIES.make(f"cascade:first={tmp_path}", Whim())


def test_identity_covers_both_rankers_and_settings() -> None:
    cascade = STRATEGIES.make("cascade", Whim(3))
    assert isinstance(cascade, Cascade)
    assert isinstance(cascade.first, OrderRanker)
    assert cascade.identity() == {
        "ranker": "cascade", "first": {"ranker": "order"}, "keep": 20, "of": Whim(3).identity(),
    }  # fmt: skip
    named = STRATEGIES.make("cascade:first=bm25", Whim(3)).identity()
    assert named == Cascade(Whim(3), Bm25Ranker()).identity()
    assert named["first"]["ranker"] == "bm25"
    others = [Cascade(Whim(3), Whim(1)), Cascade(Whim(3), Whim(2)), Cascade(Whim(3), Whim(1), 3)]
    assert len({str(item.identity()) for item in others}) == 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cascade:keep=0", r"keep must be positive, not 0\."),
        ("cascade:keep=some", "strategy 'cascade': keep must be an integer, not 'some'"),
        ("cascade:first=bm52", "first is 'order', 'bm25', or a checkpoint's folder or hub name, not 'bm52'"),
        ("cascade:keep=0,first=nobody/nothing", "keep must be positive"),
    ],
)
def test_settings_are_refused_before_anything_is_loaded(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        STRATEGIES.make(text, Whim())
    with pytest.raises(InputError, match="first must be a RequestRanker or a string, not 3"):
        Cascade(Whim(), 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 5, 6, 40])
def test_rankings_that_lack_and_repeat_documents_lose_none(count: int) -> None:
    ranking = Cascade(Careless(), Careless(), keep=5).rank_many([request_of(count)])[0]
    assert sorted(entry.index for entry in ranking) == list(range(count))


@pytest.mark.parametrize("first", ["order", "bm25"])
def test_a_limit_of_a_request_is_for_those_who_read_tokens(mini: Ranker, first: str) -> None:
    documents = [f"{text} {'and so on ' * 20}" for text in TEXTS]
    cascade = STRATEGIES.make(f"cascade:keep=2,first={first}", mini)
    request = RankRequest(QUERY, documents)
    tokens = cascade.tokenise(request, 12)
    [scored] = cascade.score([request], [tokens])
    ranking = cascade.ranking(request, tokens, scored)
    limited: Any = STRATEGIES.make(f"cascade:keep=2,first={first}", mini.with_spec(max_segment_tokens=12))
    assert [(entry.index, entry.tokens) for entry in ranking] == [
        (entry.index, entry.tokens) for entry in limited.rank(QUERY, documents)
    ]
    assert all(entry.cut_tokens for entry in ranking.top(2))
