"""What holds for every strategy that is built in, whatever the ranker does that it asks; and how often it asks."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockrank import Document, FakeRanker, InputError, ModelError, Ranking, RankRequest, RequestRanker
from blockrank.mine import RankerTeacher
from blockrank.scorers import SCORERS
from blockrank.strategies import FULL, STRATEGIES, Strategy, in_strategies
from blockrank.strategies.blocks import Blocks, block_of, pagerank, win_rate
from blockrank.types import ScoreKind

COUNTS = (1, 2, 19, 20, 21, 95, 100)
PLAIN = ("sliding", "multipass", "partition", "heap", "bubble", "topdown", "blocks")
SMALL = (
    "sliding:size=4,step=2", "sliding:size=4,step=3,passes=2", "multipass:size=4,step=2,freeze=2", "partition:size=4",
    "partition:size=2,repeats=3", "heap:size=4,top=3", "heap:size=2,top=50", "bubble:size=4,top=3",
    "bubble:size=2,top=50", "topdown:size=4,pivot=2", "topdown:size=4,pivot=4", "topdown:size=4,pivot=1",
    "blocks:size=4", "blocks:size=2,repeats=5", "blocks:size=4,merge=win_rate",
)  # fmt: skip
EXACT = ("sliding", "sliding:passes=3", "multipass", "partition", "partition:repeats=6", "blocks", "blocks:repeats=3")
OTHER: dict[str, Any] = {
    "size": 22, "step": 6, "passes": 2, "freeze": 5, "repeats": 4, "seed": 1, "top": 5, "pivot": 5, "merge": "win_rate",
}  # fmt: skip


class Whims(RequestRanker):
    """Ranks in an order that its seed, the query and the documents decide, another for each set of documents. Keeps
    what it was asked; loses documents, and names some twice, where it is careless."""

    def __init__(self, seed: int = 0, *, careless: bool = False) -> None:
        self.seed, self.careless, self.calls = seed, careless, list[list[RankRequest]]()

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        self.calls.append(list(requests))
        for request in self.calls[-1]:
            source = random.Random(f"{self.seed} {request.query} {[item.doc_id for item in request.candidates]}")
            scores = [source.random() for _ in request.readable]
            ranking = Ranking.from_scores(request, scores, [3] * len(scores))
            if self.careless:
                kept = [entry for entry in ranking if source.random() < 0.7]
                ranking = replace(ranking, ranked=tuple(kept + kept[:1]))
            yield ranking

    def identity(self) -> dict[str, Any]:
        return {"ranker": "whims", "seed": self.seed}


class Known(RequestRanker):
    """Knows the relevance of each text, which is a number; its scores are of the kind that is asked for."""

    def __init__(self, kind: ScoreKind = "share") -> None:
        self.kind, self.calls = kind, list[list[RankRequest]]()

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        self.calls.append(list(requests))
        for request in self.calls[-1]:
            values = [float(request.candidates[index].text) for index in request.readable]
            total = sum(values) + 1 if self.kind == "share" else 1000
            yield Ranking.from_scores(request, [value / total for value in values], kind=self.kind)

    def identity(self) -> dict[str, Any]:
        return {"ranker": "known", "kind": self.kind}


def request_of(numbers: Iterable[int], query: str = "high", **options: Any) -> RankRequest:
    return RankRequest(query, [Document(str(n), f"d{n}") for n in numbers], **options)


def shuffled(count: int, seed: int = 7) -> list[int]:
    return [int(number) for number in np.random.default_rng(seed).permutation(count)]


def asked(ranker: Whims | Known) -> list[RankRequest]:
    return [request for call in ranker.calls for request in call]


def test_these_are_there() -> None:
    assert set(PLAIN) <= set(STRATEGIES.names)


@settings(deadline=None, max_examples=60)
@given(
    text=st.sampled_from((*PLAIN, *SMALL)),
    count=st.one_of(st.integers(1, 12), st.sampled_from(COUNTS)),
    top_k=st.one_of(st.none(), st.integers(1, 12)),
    seed=st.integers(0, 99),
    careless=st.booleans(),
    empty=st.sets(st.integers(1, 11), max_size=3),
)
def test_every_candidate_comes_once_whatever_the_ranker_does(
    text: str, count: int, top_k: int | None, seed: int, careless: bool, empty: set[int]
) -> None:
    texts = ["" if index in empty else f"text {index}" for index in range(count)]
    request = RankRequest("any", texts, top_k=top_k)
    ranker = Whims(seed, careless=careless)
    strategy: Any = STRATEGIES.make(text, ranker)
    [whole], [ranking] = strategy.rank_many([replace(request, top_k=None)]), strategy.rank_many([request])
    assert sorted(entry.index for entry in whole) == list(range(count))
    assert [entry.index for entry in ranking] == [entry.index for entry in whole][:top_k]
    unread = empty & set(range(count))
    if not careless:
        assert [entry.index for entry in whole][count - len(unread) :] == sorted(unread)
        assert [entry.score for entry in whole] == [-float(rank) for rank in range(1, count + 1)]
    assert unread <= {entry.index for entry in whole if not entry.tokens}
    assert [entry.rank for entry in whole] == list(range(1, count + 1))
    assert all(entry.document == request.candidates[entry.index] for entry in whole)
    assert all(len(part.candidates) <= strategy.size for part in asked(ranker))
    assert ranking.calls == len(asked(ranker)) // 2 <= strategy.calls(count - len(unread))
    assert ranking.query_id == request.query_id


@pytest.mark.parametrize("text", [*PLAIN, *SMALL])
def test_a_ranking_is_that_of_its_request_alone(text: str) -> None:
    """Whatever was ranked before or beside it, and whatever its id: a killed evaluation goes on identically."""
    requests = [request_of(shuffled(count), f"query {count}") for count in COUNTS]
    together = STRATEGIES.make(text, Whims()).rank_many(requests)
    for request, ranking in zip(requests, together, strict=True):
        alone = STRATEGIES.make(text, Whims()).rank_many([replace(request, query_id="other")])[0]
        assert replace(alone, query_id=ranking.query_id) == ranking


@pytest.mark.parametrize("text", ["sliding", "multipass", "heap", "bubble", "topdown", "blocks", *SMALL])
def test_the_best_is_found_by_a_ranker_that_knows_it(text: str) -> None:
    for count in COUNTS:
        [ranking] = STRATEGIES.make(text, Known()).rank_many([request_of(shuffled(count))])
        best = [int(entry.text) for entry in ranking[: 1 + count // 2]]
        ties = text.startswith(("partition", "blocks"))  # those that win all of their groups may be several
        assert count - 1 in (best if ties else best[:1]), count


@pytest.mark.parametrize(
    ("text", "best"),
    [("sliding", 10), ("multipass", 100), ("heap", 10), ("bubble", 10), ("topdown", 9), ("heap:top=100", 100)],
)
def test_the_best_are_in_order(text: str, best: int) -> None:
    [ranking] = STRATEGIES.make(text, Known()).rank_many([request_of(shuffled(100))])
    assert [int(entry.text) for entry in ranking[:best]] == list(range(99, 99 - best, -1))


@pytest.mark.parametrize("text", ["heap", "bubble:size=5,top=3"])
def test_what_is_not_among_the_best_keeps_its_order(text: str) -> None:
    strategy: Any = STRATEGIES.make(text, Whims())
    ranking = strategy.rank_many([request_of(shuffled(60))])[0]
    others = [entry.index for entry in ranking[strategy.top :]]
    assert others == sorted(others)


@pytest.mark.parametrize("text", EXACT)
@pytest.mark.parametrize("count", [1, 19, 20, 21, 95, 100])
def test_so_many_calls_are_made(text: str, count: int) -> None:
    ranker = Whims()
    strategy: Any = STRATEGIES.make(text, ranker)
    [ranking] = strategy.rank_many([request_of(shuffled(count))])
    assert len(asked(ranker)) == ranking.calls == strategy.calls(count)
    assert ranking.read_tokens == 3 * sum(len(request.candidates) for request in asked(ranker))
    windows, groups = 1 + ceil(max(0, count - 20) / 10), ceil(count / 20)
    expected = {"sliding": windows, "sliding:passes=3": 3 * windows, "partition": groups, "blocks": 2 * groups}
    assert ranking.calls == expected.get(text, ranking.calls)
    assert ranking.to_dict().get("calls", 1) == ranking.calls


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("heap", {1: 1, 19: 10, 20: 10, 21: 12, 95: 24, 100: 25}),
        ("bubble", {1: 1, 19: 10, 20: 10, 21: 11, 95: 50, 100: 54}),
        ("topdown", {1: 1, 19: 1, 20: 1, 21: 3, 95: 27, 100: 31}),
        ("multipass", {1: 1, 19: 1, 20: 1, 21: 3, 95: 45, 100: 45}),
    ],
)
def test_at_most_so_many_calls_are_made(text: str, most: dict[int, int]) -> None:
    strategy: Any = STRATEGIES.make(text, FakeRanker())
    assert {count: strategy.calls(count) for count in most} == most
    for count, bound in most.items():
        found = [STRATEGIES.make(text, Whims(seed)).rank_many([request_of(shuffled(count))])[0] for seed in range(8)]
        found += STRATEGIES.make(text, Known()).rank_many([request_of(range(count)), request_of(range(count)[::-1])])
        assert 0 < max(ranking.calls for ranking in found) <= bound
        assert count > 1 or found[0].calls == 1


def test_calls_of_a_strategy_over_a_strategy_are_those_of_the_ranker() -> None:
    ranker = Whims()
    inner = STRATEGIES.make("sliding:size=5,step=3", ranker)
    [ranking] = STRATEGIES.make("partition:size=10,repeats=2", inner).rank_many([request_of(shuffled(30))])
    assert ranking.calls == len(asked(ranker)) == 6 * 3
    assert FakeRanker().rank("q", ["a"]).calls == 1
    assert "calls" not in FakeRanker().rank("q", ["a"]).to_dict()


@pytest.mark.parametrize("text", ["partition:repeats=3", "blocks:repeats=3"])
def test_all_groups_are_asked_for_at_once(text: str) -> None:
    ranker = Whims()
    STRATEGIES.make(text, ranker).rank_many([request_of(shuffled(95))])
    assert len(ranker.calls) == 1
    assert {len(request.candidates) for request in asked(ranker)} == {19}
    STRATEGIES.make(text, ranker).rank_many([request_of(shuffled(21))])
    assert {len(request.candidates) for request in ranker.calls[-1]} == {10, 11}, "none is alone"


def test_parents_that_do_not_depend_on_each_other_are_asked_about_together() -> None:
    ranker = Whims()
    STRATEGIES.make("heap:size=4,top=1", ranker).rank_many([request_of(shuffled(40))])
    assert len(ranker.calls[0]) == 9, "all parents of the level above the leaves"


def test_a_settled_window_is_not_asked_about_again() -> None:
    [ranking] = STRATEGIES.make("bubble", Known()).rank_many([request_of(range(100)[::-1])])
    assert ranking.calls == 6 + 9 - 1, "all windows once, and the head for each of the others but one, which was whole"


@pytest.mark.parametrize("kind", ["probability", "logit"])
def test_scores_that_mean_the_same_everywhere_are_averaged(kind: ScoreKind) -> None:
    request = request_of(shuffled(50), top_k=7)
    [ranking] = STRATEGIES.make("partition:repeats=2", Known(kind)).rank_many([request])
    assert [(int(entry.text), entry.score) for entry in ranking] == [(n, n / 1000) for n in range(49, 42, -1)]
    assert ranking.kind == kind


@pytest.mark.parametrize("kind", ["share", "order"])
def test_of_scores_of_different_prompts_the_places_are_taken(kind: ScoreKind) -> None:
    ranker = Known(kind)
    [ranking] = STRATEGIES.make("partition", ranker).rank_many([request_of(shuffled(40))])
    groups = [sorted((int(item.text) for item in part.candidates), reverse=True) for part in asked(ranker)]
    found = [int(entry.text) for entry in ranking]
    assert [{*found[at : at + 2]} for at in range(0, 40, 2)] == [{*pair} for pair in zip(*groups, strict=True)]
    assert ranking.kind == "order"


def test_places_count_as_parts_of_a_group() -> None:
    """Of groups of 11 and 10 the first and the last of the longer one are before and behind those of the other."""
    ranker = Known()
    [ranking] = STRATEGIES.make("partition", ranker).rank_many([request_of(shuffled(21))])
    longer, shorter = asked(ranker)
    assert (len(longer.candidates), len(shorter.candidates)) == (11, 10)
    found = [entry.document in longer.candidates for entry in ranking]
    assert found == [place % 2 == 0 for place in range(21)]


@pytest.mark.parametrize("name", ["partition", "blocks"])
def test_shuffles_are_those_of_seed_and_query(name: str) -> None:
    def groups(text: str, request: RankRequest) -> list[list[str]]:
        ranker = Whims()
        STRATEGIES.make(text, ranker).rank_many([request])
        return [[str(item.doc_id) for item in part.candidates] for part in asked(ranker)]

    request, state = request_of(range(50)), random.getstate()
    first = groups(name, request)
    assert first == groups(f"{name}:seed=0", replace(request, query_id="9"))
    assert first != groups(f"{name}:seed=1", request)
    assert first != groups(name, replace(request, query="other"))
    assert random.getstate() == state


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 130), size=st.integers(2, 25), repeats=st.integers(2, 5), seed=st.integers(0, 3))
def test_blocks_are_balanced_and_connected(count: int, size: int, repeats: int, seed: int) -> None:
    ranker = Whims()
    Blocks(ranker, size, repeats, seed=seed).rank_many([request_of(range(count))])
    blocks = [{int(item.text) for item in part.candidates} for part in asked(ranker)]
    per = len(blocks) // repeats
    assert per == ceil(count / size)
    for repeat in range(repeats):
        ones = blocks[repeat * per : (repeat + 1) * per]
        assert sorted(number for block in ones for number in block) == list(range(count))
        assert max(map(len, ones)) - min(map(len, ones)) <= 1
        assert max(map(len, ones)) <= size
    reached, before = {0}, set[int]()
    while reached != before:
        before = set(reached)
        reached |= {number for block in blocks if block & reached for number in block}
    assert len(reached) == count, "any two are compared, over others if need be"


@pytest.mark.parametrize(("count", "places"), [(5, 125), (7, 49), (2, 4)])
def test_two_documents_share_fewer_blocks_than_digits(count: int, places: int) -> None:
    digits = next(n for n in range(1, 9) if count**n >= places)
    held = [tuple(block_of(place, repeat, count) for repeat in range(count)) for place in range(places)]
    shared = [sum(a == b for a, b in zip(held[i], held[j], strict=True)) for i in range(places) for j in range(i)]
    assert max(shared) < digits


def wins_of(orders: Sequence[Sequence[int]], count: int) -> Any:
    wins_CC = np.zeros((count, count))
    for order in orders:
        for place, winner in enumerate(order):
            wins_CC[winner, list(order[place + 1 :])] += 1
    return wins_CC


def test_merges_follow_who_won() -> None:
    wins_CC = wins_of([[0, 1, 2], [2, 3, 4]], 5)
    assert win_rate(wins_CC) == pytest.approx([1, 1 / 2, 1 / 2, 1 / 2, 0])
    weights_C = pagerank(wins_CC)
    assert weights_C.sum() == pytest.approx(1)
    assert weights_C.argmax() == 0
    assert weights_C[2] > weights_C[3] > weights_C[4]
    assert pagerank(np.zeros((1, 1))) == pytest.approx([1])
    assert win_rate(np.zeros((2, 2))) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("name", PLAIN)
def test_identities_differ_for_each_setting(name: str) -> None:
    plain: Any = STRATEGIES.make(name, FakeRanker()).identity()
    keys = plain.keys() - {"ranker", "of"}
    assert plain["ranker"] == name
    assert keys
    for key in keys:
        other = STRATEGIES.make(f"{name}:{key}={OTHER[key]}", FakeRanker()).identity()
        assert other == {**plain, key: OTHER[key]} != plain
    assert STRATEGIES.make(name, FakeRanker(max_segment_tokens=3)).identity() != plain


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sliding:size=1,step=1", "size must be at least 2, not 1"),
        ("sliding:step=21", "step must lie between 1 and size 20, not 21"),
        ("sliding:passes=0", "passes must be positive, not 0"),
        ("multipass:freeze=11", "freeze must lie between 1 and size - step, 10, not 11"),
        ("multipass:step=0", "step must lie between 1 and size 20, not 0"),
        ("partition:size=1", "size must be at least 2, not 1"),
        ("partition:repeats=0", "repeats must be positive, not 0"),
        ("heap:size=1", "size must be at least 2, not 1: there is nothing to choose from"),
        ("heap:top=0", "top must be positive, not 0"),
        ("bubble:top=-1", "top must be positive, not -1"),
        ("topdown:size=1,pivot=1", "size must be at least 2, not 1"),
        ("topdown:pivot=21", "pivot must lie between 1 and size 20, not 21"),
        ("blocks:size=1", "size must be at least 2, not 1"),
        ("blocks:repeats=1", "repeats must be at least 2, not 1: blocks would not overlap"),
        ("blocks:merge=mean", "merge must be one of"),
    ],
)
def test_settings_are_checked(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        STRATEGIES.make(text, FakeRanker())


def test_documents_without_a_token_are_last() -> None:
    """Those of which the asked ranker says that it read nothing, wherever it ranked them."""

    class Deaf(Whims):
        def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
            for ranking in super().rank_iter(requests):
                ranked = (replace(entry, tokens=0 if entry.doc_id == "d9" else 3) for entry in ranking)
                yield replace(ranking, ranked=tuple(ranked))

    for name in PLAIN:
        strategy: Strategy = STRATEGIES.make(name, Deaf())
        [ranking] = strategy.rank_many([request_of(range(30))])
        assert ranking[-1].doc_id == "d9"
        assert "d9" in ranking.warnings[0]


class Silent(RequestRanker):
    """Gives each text, a number, half its value as a grade; has none for numbers under 0.2, and says so."""

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        for request in requests:
            grades = [float(document.text) for document in request.candidates]
            unscored = [index for index, grade in enumerate(grades) if grade < 0.2]
            scores = [grade / 2 for grade in grades]
            yield replace(
                Ranking.from_scores(request, scores, [3] * len(scores), kind="probability", unscored=unscored),
                repaired=bool(unscored),
            )

    def identity(self) -> dict[str, Any]:
        return {"ranker": "silent"}


def test_documents_that_got_no_grade_are_none_of_the_graded() -> None:
    texts = [str(grade / 10) for grade in range(10)]
    ranking = STRATEGIES.make("partition:size=4,repeats=2", Silent()).rank("q", texts)
    assert [entry.text for entry in ranking] == [*reversed(texts[2:]), *texts[:2]]
    assert [entry.score for entry in ranking[:8]] == pytest.approx([grade / 20 for grade in range(9, 1, -1)])
    assert sorted(ranking.unscored) == [0, 1]
    assert ranking.repaired > 0
    assert any("could not be taken as they were" in warning for warning in ranking.warnings)


def test_a_teacher_scores_every_document_or_says_that_it_does_not() -> None:
    request = RankRequest("q", ["0.5", "0.1", "0.9"], query_id="a")
    with pytest.raises(ModelError, match=r"query_id 'a': silent gave no score to 1 of 3 documents"):
        RankerTeacher(Silent(), "silent").scores([request])


def test_the_page_on_methods_names_all_of_them_with_examples_that_can_be_made() -> None:
    text = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
    examples = re.findall(r"^blockrank .*(?:\\\n.*)*", text, re.MULTILINE)
    given = {
        option: {item.strip('"') for line in examples for item in re.findall(rf"--{option} (\S+)", line)} - {"S"}
        for option in ("scorer", "strategy")
    }
    for scorer in given["scorer"]:
        SCORERS.make(scorer)
    for strategy in given["strategy"]:
        in_strategies(FakeRanker(), strategy)
    made = [*map(SCORERS.make, SCORERS.names), *(STRATEGIES.make(name, FakeRanker()) for name in STRATEGIES.names)]
    names = {item.name for item in made if type(item).__module__.startswith("blockrank.")}  # not those of other tests
    assert set(re.findall(r"^\| \[?`(\w+)`", text, re.MULTILINE)) == {*names, FULL}
    shown = {item.partition(":")[0] for items in given.values() for item in items}
    assert shown == {*names, FULL}
