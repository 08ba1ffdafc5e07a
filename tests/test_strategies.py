"""Strategies: rankers over rankers, from the example of the documentation to cascades of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from documented import EXAMPLES, example
from hypothesis import given, settings
from hypothesis import strategies as st

from blockrank import Document, FakeRanker, InputError, Ranker, Ranking, RankRequest, RequestRanker
from blockrank.mine import RankerTeacher
from blockrank.reuse.memory import MemoryStore
from blockrank.strategies import STRATEGIES, Ask, Steps, Strategy, merged, part


@pytest.fixture(scope="module", autouse=True)
def _halving(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The example of the documentation, registered."""
    example("halving", tmp_path_factory.mktemp("halving"))


class Numbers(RequestRanker):
    """Ranks texts by the number that they are, and records what it was asked in each call."""

    def __init__(self, most: int = 1000) -> None:
        self.most, self.calls = most, list[list[RankRequest]]()

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        self.calls.append(list(requests))
        for request in self.calls[-1]:
            assert len(request.candidates) <= self.most
            scores = [float(request.candidates[index].text) / 1000 for index in request.readable]
            tokens = [len(request.candidates[index].text) for index in request.readable]
            yield Ranking.from_scores(request, scores, tokens, query_cut_tokens=len(request.candidates))

    def identity(self) -> dict[str, Any]:
        return {"ranker": "numbers", "most": self.most}


@dataclass
class Groups(Strategy):
    """Ranks groups apart, all at once, then the best of each."""

    name = "groups"
    size: int = 3

    def steps(self, request: RankRequest) -> Steps:
        indices = list(request.readable)
        groups = [indices[start : start + self.size] for start in range(0, len(indices), self.size)]
        rankings = yield Ask([part(request, group) for group in groups])
        columns = [
            [(group[entry.index], entry) for entry in ranking] for group, ranking in zip(groups, rankings, strict=True)
        ]
        first = [column[0][0] for column in columns]
        [final] = yield Ask([part(request, first)])
        order = [(first[entry.index], entry) for entry in final]
        return merged(request, [*order, *(pair for column in columns for pair in column[1:])])


@dataclass
class Cascade(Strategy):
    """The best of one ranker, ranked by a second."""

    second: RequestRanker
    name = "cascade"
    keep: int = 2

    def steps(self, request: RankRequest) -> Steps:
        [cheap] = yield Ask([part(request, request.readable)])
        entries = [(request.readable[entry.index], entry) for entry in cheap]
        best = [index for index, _ in entries[: self.keep]]
        [dear] = yield Ask([part(request, best)], ranker=self.second)
        return merged(request, [*((best[entry.index], entry) for entry in dear), *entries[self.keep :]])


def request_of(numbers: Iterable[int], query_id: str = "0", **options: Any) -> RankRequest:
    return RankRequest("high", [Document(str(n), f"d{n}") for n in numbers], query_id, **options)


def sliding(ranker: RequestRanker, size: int = 20, step: int = 10) -> Strategy:
    return STRATEGIES.make(f"sliding:size={size},step={step}", ranker)


def test_the_example_is_one_file_of_sixty_lines() -> None:
    code = EXAMPLES["halving"]
    assert code.count("\n") <= 60
    assert code.count("STRATEGIES.add") == 1


@pytest.mark.parametrize(("count", "calls"), [(1, 1), (20, 1), (21, 3), (95, 5 + 3 + 2 + 1), (100, 5 + 3 + 2 + 1)])
def test_the_example_halves_until_the_rest_fits(count: int, calls: int) -> None:
    ranker = Numbers(most=20)
    numbers = np.random.default_rng(count).permutation(count).tolist()
    ranking = STRATEGIES.make("halving", ranker).rank_many([request_of(numbers)])[0]
    assert ranking.calls == sum(map(len, ranker.calls)) == calls
    assert sorted(entry.index for entry in ranking) == list(range(count))
    assert ranking[0].text == str(count - 1)


@pytest.mark.parametrize(("count", "calls"), [(1, 1), (19, 1), (20, 1), (21, 2), (95, 9), (100, 9)])
def test_windows_slide_over_all_candidates(count: int, calls: int) -> None:
    ranker = Numbers(most=20)
    ranking = sliding(ranker).rank_many([request_of(np.random.default_rng(count).permutation(count).tolist())])[0]
    assert len(ranker.calls) == calls
    assert sorted(entry.index for entry in ranking) == list(range(count))
    best = [int(entry.text) for entry in ranking[:10]]
    assert best == sorted(range(count), reverse=True)[:10], "the best ten rise through every window"
    assert [entry.score for entry in ranking] == [-float(rank) for rank in range(1, count + 1)]
    assert ranking.kind == "order"


@settings(deadline=None, max_examples=30)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    size=st.integers(2, 12),
    step=st.integers(1, 12),
    seed=st.integers(0, 9),
)
def test_each_ranking_is_that_of_its_request_alone(counts: list[int], size: int, step: int, seed: int) -> None:
    step = min(step, size - 1)  # so that windows overlap
    numbers = np.random.default_rng(seed)
    requests = [request_of(numbers.permutation(count).tolist(), str(i)) for i, count in enumerate(counts)]
    for strategy in (
        sliding(Numbers(size), size, step),
        Groups(Numbers(), size),
        Cascade(Numbers(), Numbers(size), size),
    ):
        together = strategy.rank_many(requests)
        assert [ranking.query_id for ranking in together] == [request.query_id for request in requests]
        for request, ranking in zip(requests, together, strict=True):
            assert ranking == strategy.rank_many([request])[0]
            assert sorted(entry.index for entry in ranking) == list(range(len(request.candidates)))
            assert ranking[0].text == str(len(request.candidates) - 1)


def test_what_requests_ask_for_is_asked_together() -> None:
    ranker = Numbers()
    sliding(ranker, 4, 2).rank_many([request_of(range(count), str(count)) for count in (4, 6, 8)])
    assert [[item.query_id for item in call] for call in ranker.calls] == [["4", "6", "8"], ["6", "8"], ["8"]]
    ranker.calls.clear()
    Groups(ranker, 3).rank_many([request_of(range(9))])
    assert [len(call) for call in ranker.calls] == [3, 1]


def test_streams_are_ranked_lazily() -> None:
    taken: list[int] = []

    def stream() -> Iterator[RankRequest]:
        for number in range(200):
            taken.append(number)
            yield request_of([number, number + 1], str(number))

    found = sliding(Numbers()).rank_iter(stream())
    assert next(found).query_id == "0"
    assert len(taken) <= 64
    assert len(list(found)) == 199


def test_what_cannot_be_read_comes_last_and_top_k_holds() -> None:
    request = RankRequest("high", ["1", " ", "3", "", "2"])
    ranking = sliding(Numbers(), 3, 1).rank_many([request])[0]
    assert [entry.index for entry in ranking] == [2, 4, 0, 1, 3]
    assert [entry.tokens for entry in ranking] == [1, 1, 1, 0, 0]
    assert ranking.warnings == request.warnings
    assert ranking.query_cut_tokens == 3, "the most that any part lost"
    assert [entry.index for entry in sliding(Numbers()).rank_many([replace(request, top_k=2)])[0]] == [2, 4]


def test_a_silent_document_is_ranked_last_with_a_warning() -> None:
    """One that has characters, of which the tokenizer makes no token."""

    class Deaf(Numbers):
        def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
            for ranking in super().rank_iter(requests):
                ranked = (replace(entry, tokens=0) if entry.text == "9" else entry for entry in ranking)
                yield replace(ranking, ranked=tuple(ranked))

    ranking = sliding(Deaf()).rank_many([request_of([9, 1, 2])])[0]
    assert [entry.text for entry in ranking] == ["2", "1", "9"]
    assert "d9" in ranking.warnings[0]
    assert "ranked last" in ranking.warnings[0]


def test_evidence_and_cuts_come_through(mini: Ranker) -> None:
    texts = ["Mary Shelley wrote Frankenstein.", "word " * 400, "Bram Stoker wrote Dracula.", "The coast is rainy."]
    ranking = sliding(mini, 2, 1).rank("who wrote Dracula", texts, evidence=True)
    assert ranking[0].index == 2
    assert all(entry.evidence for entry in ranking)
    assert [entry.cut_tokens > 0 for entry in ranking] == [entry.index == 1 for entry in ranking]
    whole = sliding(mini, 4, 4).rank("who wrote Dracula", texts)
    assert whole.doc_ids == mini.rank("who wrote Dracula", texts).doc_ids


def test_identities_nest() -> None:
    """A wrapper in a wrapper, of other settings each."""
    one, two = sliding(Numbers(), 10, 5), sliding(Numbers(), 20, 5)
    settings = {"size": 10, "step": 5, "passes": 1}
    assert one.identity() == {"ranker": "sliding", **settings, "of": {"ranker": "numbers", "most": 1000}}
    assert one.identity() != two.identity() != sliding(Numbers(9), 20, 5).identity()
    nested = Groups(one, 3)
    assert nested.identity() == {"ranker": "groups", "size": 3, "of": one.identity()}
    assert Groups(two, 3).identity() != nested.identity()
    cascade = Cascade(one, Numbers(7))
    assert cascade.identity()["second"] == {"ranker": "numbers", "most": 7}


def test_a_strategy_over_a_strategy_ranks() -> None:
    request = request_of(np.random.default_rng(3).permutation(40).tolist())
    ranking = sliding(Groups(Numbers(most=5), 5), 20, 10).rank_many([request])[0]
    assert (ranking[0].text, len(ranking)) == ("39", 40)
    assert len(FakeRanker().rank("high", ["a"])) == len(sliding(FakeRanker()).rank("high", ["a"]))


def test_what_strategies_ask_remembers_documents(mini: Ranker) -> None:
    """A strategy in a strategy, and a ranker that both ask, which is told once; another one, which keeps nothing."""
    pool = [Document(f"{number} of many letters from Transylvania", f"d{number}") for number in range(12)]
    requests = [RankRequest(query, pool[start:], query) for start, query in enumerate(("letters", "who wrote", "nine"))]
    shared, told = mini.with_spec(), list[tuple[int, int]]()
    strategy = Cascade(sliding(Groups(shared, 3), 6, 3), shared, 4)
    expected = [ranking.doc_ids for ranking in strategy.rank_many(requests)]
    assert strategy.remember(pool, 1 << 24, lambda done, of: told.append((done, of)))
    assert told[-1] == (12, 12)
    assert [done for done, _ in told].count(12) == 1
    store = shared.model.store
    assert isinstance(store, MemoryStore)
    missed = store.misses
    assert [ranking.doc_ids for ranking in strategy.rank_many(requests)] == expected
    assert (store.misses, store.hits > len(pool)) == (missed, True), "no document is encoded again"
    strategy.forget()
    assert shared.model.store is None
    assert not sliding(Groups(Numbers())).remember(pool, 1 << 24)


def test_rankers_share_the_memory_for_documents(mini: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    remember = Ranker.remember

    def recorded(self: Ranker, documents: Any, max_bytes: int, progress: Any = None) -> bool:
        given.append(max_bytes)
        return remember(self, documents, max_bytes, progress)

    monkeypatch.setattr(Ranker, "remember", recorded)
    pool = [Document(f"{number} letters", f"d{number}") for number in range(5)]
    assert Cascade(mini.with_spec(), mini.with_spec()).remember(pool, 1 << 24)
    assert given == [1 << 23, 1 << 23]
    assert Cascade(Numbers(), mini.with_spec()).remember(pool, 1 << 24), "one that can will do"


def test_a_strategy_teaches_by_its_order() -> None:
    [scores] = RankerTeacher(sliding(Numbers()), "sliding").scores([request_of([3, 9, 5])])
    assert scores == pytest.approx([-np.log(3), 0.0, -np.log(2)])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("windows", r"strategy 'windows' is unknown; there are \["),
        ("sliding:width=3", r"strategy 'sliding': unknown key 'width'; there are \['passes', 'size', 'step'\]"),
        ("sliding:ranker=mini", "unknown key 'ranker'"),
        ("sliding:size=big", "strategy 'sliding': size must be an integer, not 'big'"),
        ("sliding:size=4,step=5", "step must lie between 1 and size 4, not 5"),
    ],
)
def test_names_and_settings_are_checked(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        STRATEGIES.make(text, FakeRanker())


@pytest.mark.parametrize("wrong", [None, "mini", FakeRanker])
def test_a_strategy_needs_a_ranker(wrong: Any) -> None:
    with pytest.raises(InputError, match="ranker must be a RequestRanker"):
        Groups(wrong)
    with pytest.raises(InputError, match=r"size must be an integer, not 2\.5"):
        Groups(FakeRanker(), 2.5)  # type: ignore[arg-type]


def test_a_merged_order_holds_each_document_once() -> None:
    request = request_of([1, 2])
    ranking = Numbers().rank_many([request])[0]
    with pytest.raises(InputError, match="query_id '0': the merged order holds a document twice"):
        merged(request, [(0, ranking[0]), (0, ranking[1])])
    some = merged(request, [(1, ranking[0])])
    assert [entry.index for entry in some] == [1, 0], "what is left out comes last"


def test_an_error_of_the_ranker_is_the_strategys(mini: Ranker) -> None:
    with pytest.raises(InputError, match=r"query is .* tokens long"):
        sliding(mini).rank("word " * 900, ["a", "b"])
