"""The evaluation loop: what is ranked, what is written, and that it goes on after a kill at any moment."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockrank import Document, FakeRanker, Ranking, RankRequest
from blockrank.data import Collection, open_collection, read_run, write_collection, write_run
from blockrank.evaluate import EvaluationResult, FirstStage, Plan, Reranker, aggregate, evaluate, per_query, text_table
from blockrank.evaluate.journal import Journal, Outcome
from blockrank.evaluate.settings import RankingSettings
from blockrank.evaluate.work import SHARD_QUERIES
from blockrank.fake import word_overlap
from blockrank.retrieve import Bm25Index
from blockrank.strategies import in_strategies
from blockrank.types import InputError

WORDS = ("tide", "harbour", "engine", "willow", "copper", "lantern", "meadow", "signal", "anchor", "quartz")
QUERIES = 3 * SHARD_QUERIES + 5
MEASURES = ("nDCG@10", "P@1", "R@100")


def write(folder: Path, queries: int = QUERIES) -> Path:
    """A collection of random words with a run: one query without candidates, one with a single one, one not judged."""
    source = random.Random(7)
    documents = [Document(" ".join(source.choices(WORDS, k=8)), f"d{i}", title="t" * (i % 2)) for i in range(60)]
    texts = {f"q{i}": " ".join(source.choices(WORDS, k=2)) for i in range(queries)}
    qrels = {query_id: {f"d{d}": source.randint(0, 2) for d in source.sample(range(60), 6)} for query_id in texts}
    del qrels["q3"]
    write_collection(folder, documents, texts, qrels)
    run = {q: {f"d{d}": 9.0 - at for at, d in enumerate(source.sample(range(60), 12))} for q in texts if q != "q1"}
    run["q2"] = dict(list(run["q2"].items())[:1])
    (folder / "runs").mkdir()
    write_run(folder / "runs" / "given.trec", run)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("collections") / "small")


@pytest.fixture
def collection(folder: Path) -> Collection:
    return open_collection(folder)


def plan(*depths: int, rankers: Sequence[Reranker] = (), **changes: Any) -> Plan:
    found = tuple(rankers) or (Reranker("fake", FakeRanker),)
    return replace(Plan(found, FirstStage("runs/given.trec"), depths or (10,), MEASURES, latency_queries=0), **changes)


def test_a_query_that_is_a_document_can_be_left_out(tmp_path: Path) -> None:
    texts = {"a": "red apple pie", "b": "green apple tart", "c": "blue sky", "q": "an apple"}
    documents = [Document(texts[doc_id], doc_id) for doc_id in "abc"]
    write_collection(tmp_path / "own", documents, texts, {"a": {"b": 1}, "b": {"a": 1}})
    own = open_collection(tmp_path / "own")
    first = {drop: FirstStage(drop_own=drop).search(own, {q: texts[q] for q in "abq"}, 1) for drop in (False, True)}
    assert {query: list(found) for query, found in first[False].items()} == {"a": ["a"], "b": ["b"], "q": ["a"]}
    assert {query: list(found) for query, found in first[True].items()} == {"a": ["b"], "b": ["a"], "q": ["a"]}
    result = evaluate([own], plan(first_stage=FirstStage(drop_own=True)), tmp_path / "out")
    assert result.collections[0].systems[0].measures["nDCG@10"] == 1.0
    with pytest.raises(InputError, match="first_stage_drops_own"):
        evaluate([own], plan(first_stage=FirstStage()), tmp_path / "out")


def files(folder: Path) -> dict[str, bytes]:
    """Runs and per-query tables of an evaluation."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*.*"))
        if path.suffix in (".trec", ".csv")
    }


class Remembering(FakeRanker):
    """A ranker that takes note of what it is asked to remember, and when."""

    def __init__(self, able: bool = True) -> None:
        super().__init__()
        self.able, self.log = able, list[Any]()

    def remember(
        self, documents: Sequence[Document], max_bytes: int, progress: Callable[[int, int], None] | None = None
    ) -> bool:
        self.log.append(("remember", [document.doc_id for document in documents], max_bytes))
        if progress is not None:
            progress(len(documents), len(documents))
        return self.able

    def forget(self) -> None:
        self.log.append(("forget",))

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        found = list(requests)
        self.log.append(("rank", [request.query_id for request in found]))
        yield from super().rank_iter(found)


# What is ranked and measured


def test_runs_hold_every_candidate_and_only_the_first_are_reranked(collection: Collection, tmp_path: Path) -> None:
    evaluate([collection], plan(4, 10), tmp_path / "out")
    first = read_run(tmp_path / "out" / "small" / "runs" / "given.trec")
    assert list(first) == [f"q{i}" for i in range(QUERIES) if i not in (1, 3)]  # no candidates; not judged
    documents = {document.doc_id: document for document in collection.corpus.documents()}
    for depth in (4, 10):
        run = read_run(tmp_path / "out" / "small" / "runs" / f"fake@{depth}.trec")
        assert list(run) == list(first)
        for query_id, ranked in run.items():
            head, rest = list(first[query_id])[:depth], list(first[query_id])[depth:]
            alone = FakeRanker().rank(collection.queries[query_id], [documents[doc_id] for doc_id in head])
            assert list(ranked) == [*alone.doc_ids, *rest]


def test_results_are_measured_from_the_files(collection: Collection, tmp_path: Path) -> None:
    result = evaluate([collection], plan(4, 10, latency_queries=2), tmp_path)
    (found,) = result.collections
    assert (found.name, found.queries, found.first_stage) == ("small", QUERIES - 1, "given")
    assert [(system.name, system.depth) for system in found.systems] == [("given", 12), ("fake@4", 4), ("fake@10", 10)]
    for system in found.systems:
        run = read_run(tmp_path / "small" / "runs" / f"{system.name}.trec")
        assert system.per_query == per_query(run, collection.qrels, MEASURES)
        assert system.measures == pytest.approx(aggregate(run, collection.qrels, MEASURES))
        assert system.per_query["q1"] == dict.fromkeys(MEASURES, 0.0)
        assert system.measures["R@100"] == pytest.approx(found.systems[0].measures["R@100"])
    assert found.systems[1].documents == 4 * (QUERIES - 3) + 1
    assert found.systems[0].latency_ms is None
    assert all((system.latency_ms or 0) > 0 for system in found.systems[1:])
    for depth, system in ((4, found.systems[1]), (10, found.systems[2])):
        assert all(found.ceilings[depth][name] >= system.measures[name] for name in MEASURES)
    assert found.ceilings[10]["nDCG@10"] > found.ceilings[4]["nDCG@10"]
    assert [(c.a, c.b, c.measure) for c in found.comparisons] == [
        ("fake@4", "given", "nDCG@10"), ("fake@10", "given", "nDCG@10"), ("fake@10", "fake@4", "nDCG@10"),
    ]  # fmt: skip
    assert result.environment["notes"] == [
        f"small: 1 of {QUERIES - 1} judged queries have no candidates; they count 0."
    ]
    stored = EvaluationResult.from_dict(json.loads((tmp_path / "results.json").read_text(encoding="utf-8")))
    assert stored.to_dict() == json.loads(json.dumps(result.to_dict()))
    assert "fake@10" in (tmp_path / "results.md").read_text(encoding="utf-8")
    assert (tmp_path / "small" / "per_query.csv").read_text(encoding="utf-8") == found.per_query_csv()


def test_candidates_and_queries_without_text_are_told(tmp_path: Path) -> None:
    place = write(tmp_path / "small", 20)
    lines = (place / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    empty = {f"d{i}" for i in range(0, 60, 7)}
    rows = [row | ({"title": " ", "text": ""} if row["_id"] in empty else {}) for row in map(json.loads, lines)]
    (place / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    queries = [json.loads(line) for line in (place / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    queries[5]["text"] = " "
    (place / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)), encoding="utf-8")
    result = evaluate([open_collection(place)], plan(10), tmp_path / "out")
    first, run = (read_run(tmp_path / "out" / "small" / "runs" / f"{name}.trec") for name in ("given", "fake"))
    skipped = sum(doc_id in empty for ranked in first.values() for doc_id in list(ranked)[:10])
    assert skipped > 0
    for query_id, ranked in run.items():
        assert ranked.keys() == first[query_id].keys()
        assert list(ranked)[10 - len(empty & set(list(first[query_id])[:10])) :][-2:] == list(first[query_id])[10:][-2:]
    assert "q5" not in run
    assert result.collections[0].systems[1].per_query["q5"]["nDCG@10"] == 0
    assert result.environment["notes"][0] == "small: 1 of 19 judged queries have no text; they count 0."
    assert result.environment["notes"][-1] == (
        f"small: {skipped} candidates of fake have no text; they were not reranked."
    )


def test_documents_are_remembered_once_a_collection_and_not_for_the_clock(
    collection: Collection, tmp_path: Path
) -> None:
    ranker = Remembering()
    told: list[tuple[str, int, int]] = []
    evaluate(
        [collection], plan(4, 10, rankers=[Reranker("fake", lambda: ranker)], latency_queries=2), tmp_path / "a",
        progress=lambda *state: told.append(state),
    )  # fmt: skip
    kinds = [entry[0] for entry in ranker.log]
    shards = -(-(QUERIES - 2) // SHARD_QUERIES)
    assert kinds == ["remember", *["rank"] * 2 * shards, "forget", *["rank"] * 6]
    first = read_run(tmp_path / "a" / "small" / "runs" / "given.trec")
    wanted = dict.fromkeys(doc_id for ranked in first.values() for doc_id in list(ranked)[:10])
    assert ranker.log[0] == ("remember", list(wanted), 4 << 30)
    assert ranker.log[1] == ("rank", list(first)[:SHARD_QUERIES])
    assert ("small: fake@4", QUERIES - 2, QUERIES - 2) in told
    unable, without = Remembering(able=False), Remembering()
    evaluate([collection], plan(4, 10, rankers=[Reranker("fake", lambda: unable)]), tmp_path / "b")
    evaluate([collection], plan(4, 10, rankers=[Reranker("fake", lambda: without)], reuse_bytes=0), tmp_path / "c")
    assert "remember" not in [entry[0] for entry in without.log]
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")


def test_several_collections_and_rankers(folder: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", 20)
    shutil.copy(other / "runs" / "given.trec", tmp_path / "run-other.trec")
    shutil.copy(folder / "runs" / "given.trec", tmp_path / "run-small.trec")
    rankers = [Reranker("overlap", FakeRanker), Reranker("length", lambda: FakeRanker(lambda _, text: len(text)))]
    stage = FirstStage(str(tmp_path / "run-{name}.trec"))
    collections = [open_collection(folder), open_collection(other)]
    result = evaluate(collections, plan(10, rankers=rankers, first_stage=stage), tmp_path / "out")
    assert stage.name == "run"
    assert [found.name for found in result.collections] == ["small", "other"]
    assert list(result.means()) == ["run", "overlap", "length"]
    assert files(tmp_path / "out").keys() >= {"small/runs/length.trec", "other/runs/run.trec", "other/per_query.csv"}
    with pytest.raises(InputError, match="two collections have the same name"):
        evaluate([collections[0], collections[0]], plan(), tmp_path / "twice")


def test_bm25_is_the_first_stage_unless_another_is_given(collection: Collection, tmp_path: Path) -> None:
    result = evaluate([collection], Plan((Reranker("fake", FakeRanker),), latency_queries=0), tmp_path / "out")
    assert result.collections[0].first_stage == "bm25"
    run = read_run(tmp_path / "out" / "small" / "runs" / "bm25.trec")
    text = {document.doc_id: document.text.split() for document in collection.corpus.documents()}
    assert all(set(collection.queries[q].split()) & set(text[d]) for q, ranked in run.items() for d in ranked)


def test_a_look_at_the_first_queries(collection: Collection, tmp_path: Path) -> None:
    result = evaluate([collection], plan(max_queries=4), tmp_path)
    assert result.collections[0].queries == 4
    assert list(result.collections[0].systems[1].per_query) == ["q0", "q1", "q2", "q4"]


# Interrupted


class StopError(Exception):
    """What a ranker of these tests raises to end an evaluation."""


class Stopping(FakeRanker):
    """Scores as a `FakeRanker` until it fails, which changes no score."""

    def identity(self) -> dict[str, Any]:
        return FakeRanker().identity()


def stopping(after: int) -> Stopping:
    """A ranker that scores so many documents and then fails."""
    left = iter(range(after))

    def score(query: str, text: str) -> float:
        if next(left, None) is None:
            raise StopError
        return word_overlap(query, text)

    return Stopping(score)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation that nothing interrupted."""
    place = tmp_path_factory.mktemp("evaluations") / "whole"
    evaluate([open_collection(folder)], plan(4, 10), place)
    return place


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(stops=st.lists(st.integers(0, 14 * QUERIES), max_size=3), torn=st.integers(0, 400))
def test_an_interrupted_evaluation_ends_with_the_same_bytes(
    stops: list[int], torn: int, folder: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place, collection = tmp_path_factory.mktemp("evaluations") / "stopped", open_collection(folder)
    for stop in stops:
        try:
            rankers = [Reranker("fake", partial(stopping, stop))]
            evaluate([collection], plan(4, 10, rankers=rankers), place)
        except StopError:
            journals = sorted(place.rglob("*.journal.jsonl"))
            if journals and torn:  # the last record reached the disk in part
                content = journals[-1].read_bytes()
                last = content[:-1].rfind(b"\n") + 1
                journals[-1].write_bytes(content[: max(last, len(content) - torn)])
    evaluate([collection], plan(4, 10), place)
    assert files(place) == files(whole)


@pytest.mark.parametrize("stops", [(40, 700), (1200,), (3000, 100)])
def test_under_a_strategy_and_with_shuffled_orders_too(stops: tuple[int, ...], folder: Path, tmp_path: Path) -> None:
    """Journals and results are the same to the last byte, wherever it was ended."""
    collection, text = open_collection(folder), "sliding:size=4,step=2"

    def start(load: Callable[[], FakeRanker], place: Path) -> EvaluationResult:
        rankers = [Reranker("full", load), Reranker("slid", lambda: in_strategies(load(), text))]
        return evaluate([collection], plan(9, rankers=rankers, order_queries=3), place)

    result = start(FakeRanker, tmp_path / "whole")
    for stop in stops:
        with suppress(StopError):
            start(partial(stopping, stop), tmp_path / "stopped")
    again = start(FakeRanker, tmp_path / "stopped")
    assert again.to_dict()["collections"] == result.to_dict()["collections"]
    for name in ("full.journal.jsonl", "slid.journal.jsonl", "runs/full.trec", "runs/slid.trec"):
        found = [(tmp_path / place / "small" / name).read_bytes() for place in ("whole", "stopped")]
        assert found[0] == found[1]


def test_what_a_system_took_is_counted(collection: Collection, tmp_path: Path) -> None:
    rankers = [
        Reranker("full", FakeRanker),
        Reranker("slid", lambda: in_strategies(FakeRanker(), "sliding:size=4,step=2")),
    ]
    found = evaluate([collection], plan(9, rankers=rankers, order_queries=50), tmp_path).collections[0]
    first, full, slid = found.systems
    assert (first.calls, first.read_tokens, first.order_tau) == (None, None, None)
    ranked = QUERIES - 2  # one of them with a single candidate
    assert full.calls == 1
    assert slid.calls == pytest.approx(((ranked - 1) * 4 + 1) / ranked)
    words = [len(document.content.split()) for document in collection.corpus.documents()]
    assert 9 * (ranked - 1) / ranked * min(words) < (full.read_tokens or 0) < 9 * max(words)
    assert (slid.read_tokens or 0) > 1.3 * (full.read_tokens or 0)
    assert -1 < (slid.order_tau or 0) < (full.order_tau or 0) < 1  # equal scores keep the given order
    head = text_table(EvaluationResult(MEASURES, (found,), {})).splitlines()[1]
    assert head.split()[-4:] == ["tokens/query", "calls/query", "order", "tau"]


def test_more_queries_of_shuffled_orders_can_be_asked_for(collection: Collection, tmp_path: Path) -> None:
    counting = FakeRanker()
    evaluate([collection], plan(order_queries=2), tmp_path)
    evaluate([collection], plan(rankers=[Reranker("fake", lambda: counting)], order_queries=4), tmp_path)
    assert len(counting.calls) == 2 * 3
    assert {len(call.candidates) for call in counting.calls} == {10}
    assert len({tuple(item.doc_id for item in call.candidates) for call in counting.calls}) == 6
    done = evaluate([collection], plan(rankers=[Reranker("fake", idle)], order_queries=3), tmp_path)
    assert done.collections[0].systems[1].order_tau is not None
    assert (
        evaluate([collection], plan(rankers=[Reranker("fake", idle)]), tmp_path).collections[0].systems[1].order_tau
        is None
    )


def test_answers_that_were_repaired_are_counted(collection: Collection, tmp_path: Path) -> None:
    class Writing(FakeRanker):
        def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
            for ranking in super().rank_iter(requests):
                yield replace(ranking, repaired=2)

    result = evaluate([collection], plan(rankers=[Reranker("fake", Writing)]), tmp_path)
    assert result.collections[0].systems[1].repaired == 2 * (QUERIES - 2)
    assert "repaired" in text_table(result)


def test_a_reranker_that_takes_fewer_documents_is_told_before_anything_is_ranked(
    collection: Collection, tmp_path: Path
) -> None:
    def few(request: RankRequest) -> None:
        if len(request.candidates) > 10:
            raise InputError(f"{len(request.candidates)} documents are too many.")

    evaluate([collection], plan(10, rankers=[Reranker("fake", FakeRanker, {}, lambda: few)]), tmp_path / "a")
    with pytest.raises(InputError, match=r"^fake: 11 documents are too many\.$"):
        evaluate([collection], plan(11, rankers=[Reranker("fake", idle, {}, lambda: few)]), tmp_path / "b")


def test_what_is_done_is_not_done_again(collection: Collection, whole: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(whole, place)

    def load() -> FakeRanker:
        raise AssertionError("nothing is left to rank")

    evaluate([collection], plan(4, 10, rankers=[Reranker("fake", load)], measures=("AP",)), place)
    (place / "small" / "runs" / "fake@4.trec").unlink()
    idle = FakeRanker()
    evaluate([collection], plan(4, 10, rankers=[Reranker("fake", lambda: idle)]), place)
    assert idle.calls == []
    assert files(place) == files(whole)
    timed = evaluate([collection], plan(4, 10, rankers=[Reranker("fake", lambda: idle)], latency_queries=3), place)
    assert len(idle.calls) == 2 * (3 + 1)
    assert (timed.collections[0].systems[1].latency_ms or 0) > 0


def test_depths_rankers_and_collections_can_be_added(folder: Path, whole: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(whole, place)
    counting = FakeRanker()
    evaluate([open_collection(folder)], plan(4, 6, 10, rankers=[Reranker("fake", lambda: counting)]), place)
    assert len(counting.calls) == QUERIES - 2
    assert len(counting.calls[0].candidates) == 6


def test_other_settings_are_refused(folder: Path, collection: Collection, whole: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(whole, place)
    before = files(place)
    with pytest.raises(InputError, match=r"other settings of fake@4: seed was None, now 1\. Choose another --output"):
        evaluate([collection], plan(4, 10, rankers=[Reranker("fake", FakeRanker, {"seed": 1})]), place)
    with pytest.raises(InputError, match=r"all systems: reuse_bytes was 4294967296, now 0\."):
        evaluate([collection], plan(4, 10, reuse_bytes=0), place)
    with pytest.raises(InputError, match=r"small: queries.count was 52, now 9; "):
        evaluate([collection], plan(4, 10, max_queries=9), place)
    with pytest.raises(InputError, match="of fake: ranker was 'FakeRanker', now 'Remembering'"):
        evaluate([collection], plan(4, 10, rankers=[Reranker("fake", Remembering)], latency_queries=1), place)
    changed = shutil.copytree(folder, tmp_path / "small")
    corpus = changed / "corpus.jsonl"
    corpus.write_text(corpus.read_text(encoding="utf-8").replace("tide", "tides"), encoding="utf-8")
    with pytest.raises(InputError, match="small: corpus was"):
        evaluate([open_collection(changed)], plan(4, 10), place)
    assert files(place) == before
    evaluate([open_collection(changed)], plan(4, 10), place, restart=True)
    assert files(place) != before
    evaluate([collection], plan(4, 10), place, restart=True)
    assert files(place) == before


def test_a_changed_first_stage_is_refused(folder: Path, whole: Path, tmp_path: Path) -> None:
    place, changed = tmp_path / "copy", tmp_path / "small"
    shutil.copytree(whole, place)
    shutil.copytree(folder, changed)
    run = read_run(changed / "runs" / "given.trec")
    run["q0"] = dict(zip(list(run["q0"])[::-1], run["q0"].values(), strict=True))
    write_run(changed / "runs" / "given.trec", run)
    with pytest.raises(InputError, match=r"first_stage_file was .* first_stage_run was"):
        evaluate([open_collection(changed)], plan(4, 10), place)


def test_candidates_that_were_found_with_other_words_are_found_again(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they are others now, what is ranked is refused; where they are the same, it stands."""
    bm25, out = plan(first_stage=FirstStage()), tmp_path / "out"
    evaluate([collection], bm25, out)
    made = files(out)
    entry = json.loads((out / "settings.json").read_text())
    del entry["collections"]["small"]["first_stage_words"]  # as before this was kept
    (out / "settings.json").write_text(json.dumps(entry))
    none = plan(rankers=[Reranker("fake", idle)], first_stage=FirstStage())
    evaluate([collection], none, out)
    assert files(out) == made
    monkeypatch.setattr("blockrank.retrieve.bm25.TERMS_VERSION", 99)
    evaluate([collection], none, out)
    words = json.loads((out / "settings.json").read_text())["collections"]["small"]["first_stage_words"]
    assert words.startswith("terms 99, bm25s ")
    monkeypatch.setattr("blockrank.retrieve.bm25.TERMS_VERSION", 100)
    search = Bm25Index.search
    monkeypatch.setattr(Bm25Index, "search", lambda index, query, depth: search(index, query.split()[0], depth))
    told = r"small: first_stage_run was .* first_stage_words was 'terms 99, .*', now 'terms 100, .*--restart\.$"
    with pytest.raises(InputError, match=told):
        evaluate([collection], none, out)
    assert files(out) == made


def idle() -> FakeRanker:
    raise AssertionError("nothing is left to rank")


@pytest.mark.parametrize("name", ["fake@4.trec", "fake@10.trec", "given.trec"])
@pytest.mark.parametrize(
    "harm",
    [
        lambda content: content[: content[:-300].rfind(b"\n") + 1],  # lines at the end are lost
        lambda content: b"".join(content.splitlines(keepends=True)[::2]),  # and in the middle
        lambda content: content[:-40],  # a line is torn
        lambda content: content.replace(b"q5 ", b"q6 "),
        lambda content: content + b"q0 Q0 more 99 -99 fake\n",
        lambda _: b"",
    ],
)
def test_a_run_that_is_not_what_was_written_is_made_again(
    name: str, harm: Callable[[bytes], bytes], collection: Collection, whole: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    place = tmp_path / "copy"
    shutil.copytree(whole, place)
    harmed = place / "small" / "runs" / name
    harmed.write_bytes(harm(harmed.read_bytes()))
    result = evaluate([collection], plan(4, 10, rankers=[Reranker("fake", idle)]), place)
    assert files(place) == files(whole)
    assert str(harmed) in caplog.text
    assert "again" in caplog.text
    stored = json.loads((whole / "results.json").read_text(encoding="utf-8"))
    assert result.to_dict()["collections"] == stored["collections"]


def test_other_judgements_of_the_same_queries_rank_nothing_again(
    folder: Path, collection: Collection, whole: Path, tmp_path: Path
) -> None:
    place = tmp_path / "copy"
    shutil.copytree(whole, place)
    other = {query_id: dict.fromkeys(judged, 1) for query_id, judged in collection.qrels.items()}
    changed = evaluate([replace(collection, qrels=other)], plan(4, 10, rankers=[Reranker("fake", idle)]), place)
    assert files(place)["small/runs/fake@4.trec"] == files(whole)["small/runs/fake@4.trec"]
    run = read_run(place / "small" / "runs" / "fake@4.trec")
    assert changed.collections[0].systems[1].measures == aggregate(run, other, MEASURES)
    del other["q0"]
    with pytest.raises(InputError, match=r"small: queries\.count was 52, now 51"):
        evaluate([replace(collection, qrels=other)], plan(4, 10), place)


def test_folders_from_before_there_were_checksums_go_on(collection: Collection, whole: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(whole, place)
    kept = json.loads((place / "settings.json").read_text(encoding="utf-8"))
    del kept["judgements"]
    kept["collections"]["small"]["judgements"] = {"count": 312, "content": "x"}
    for system in kept["systems"].values():
        system["options"] = {"cut_queries": False}
    kept["loaded"]["fake"]["spec"] = {"long_queries": "refuse"}
    (place / "settings.json").write_text(json.dumps(kept), encoding="utf-8")
    for journal in place.rglob("*.journal.jsonl"):
        journal.write_text(re.sub(r', "check": "\w+"}', "}", journal.read_text(encoding="utf-8")), encoding="utf-8")
        assert '"check"' not in journal.read_text(encoding="utf-8")
    reranker = Reranker("fake", idle, {"options": {"cut_queries": True}})
    evaluate([collection], plan(4, 10, rankers=[reranker]), place)
    assert files(place) == files(whole)


# What can be known before anything is ranked


def short_queries(most: int) -> Callable[[], Callable[[RankRequest], None]]:
    """What a reranker that refuses long queries, and unfit documents, is checked by."""

    def check(request: RankRequest) -> None:
        if len(request.query) > most:
            raise InputError("query is too long.")
        if any("unfit" in document.content for document in request.candidates):
            raise InputError("documents[0] does not fit.")

    return lambda: check


def test_queries_that_are_refused_are_told_with_their_line(folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "small")
    lines = (place / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    lines[40] = json.dumps({"_id": "q40", "text": "tide " * 30})
    (place / "queries.jsonl").write_text("\n".join(lines), encoding="utf-8")
    first, second = Reranker("first", idle, {}, short_queries(1000)), Reranker("second", idle, {}, short_queries(100))
    with pytest.raises(InputError, match=r"small/queries\.jsonl:41: query is too long\. \(query_id 'q40'\)"):
        evaluate([open_collection(place)], plan(4, 10, rankers=[first, second]), tmp_path / "out")
    rows = (place / "corpus.jsonl").read_text(encoding="utf-8").replace("quartz", "unfit")
    (place / "corpus.jsonl").write_text(rows, encoding="utf-8")
    with pytest.raises(InputError, match=r"small/corpus\.jsonl:\d+: documents\[0\] does not fit\. \(doc_id 'd\d+'\)"):
        evaluate([open_collection(place)], plan(4, rankers=[first]), tmp_path / "other")


def test_what_was_finished_stands_when_long_queries_are_cut_instead(collection: Collection, tmp_path: Path) -> None:
    place, counting = tmp_path / "out", FakeRanker()
    refusing = {"options": {"cut_queries": False}, "spec": {"long_queries": "refuse"}}
    cutting = {"options": {"cut_queries": True}, "spec": {"long_queries": "cut"}}
    with pytest.raises(StopError):
        evaluate([collection], plan(rankers=[Reranker("fake", partial(stopping, 10 * 36), refusing)]), place)
    finished = Journal(place / "small" / "fake.journal.jsonl").shards
    assert finished == 2
    evaluate([collection], plan(rankers=[Reranker("fake", lambda: counting, cutting)]), place)
    assert len(counting.calls) == QUERIES - 2 - finished * SHARD_QUERIES
    assert "cut_queries" not in (place / "settings.json").read_text(encoding="utf-8")


def test_results_with_queries_that_were_cut_are_not_passed_on_as_whole(collection: Collection, tmp_path: Path) -> None:
    class Cutting(FakeRanker):
        def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
            for ranking in super().rank_iter(requests):
                yield replace(ranking, query_cut_tokens=len(ranking.query) > 12)

    evaluate([collection], plan(rankers=[Reranker("fake", Cutting)]), tmp_path)
    evaluate([collection], plan(rankers=[Reranker("fake", idle, {}, short_queries(100))]), tmp_path)
    with pytest.raises(InputError, match=r"queries\.jsonl:\d+: query is too long"):
        evaluate([collection], plan(rankers=[Reranker("fake", idle, {}, short_queries(12))]), tmp_path)


def test_a_collection_that_will_fail_is_told_before_another_is_ranked(
    folder: Path, collection: Collection, tmp_path: Path
) -> None:
    other = write(tmp_path / "other", 20)
    run = read_run(other / "runs" / "given.trec")
    write_run(other / "runs" / "given.trec", {**run, "q9": {"nowhere": 1.0}})
    with pytest.raises(InputError, match=r"other/corpus\.jsonl: a document with the doc_id 'nowhere' is not in it"):
        evaluate([collection, open_collection(other)], plan(rankers=[Reranker("fake", idle)]), tmp_path / "out")


def test_ids_that_a_run_cannot_carry_are_told_with_their_line(tmp_path: Path) -> None:
    documents = [Document("a tide", "d1"), Document("a harbour", "d 2")]
    texts = {"q1": "harbour", "q 2": "tide"}
    for folder, qrels, sentence in (
        (
            "query",
            {"q1": {"d1": 1}, "q 2": {"d1": 1}},
            r"query/queries\.jsonl:2: the query_id 'q 2' is empty or holds white",
        ),
        ("document", {"q1": {"d1": 1}}, r"document/corpus\.jsonl:2: the doc_id 'd 2' is empty or holds white space"),
    ):
        write_collection(tmp_path / folder, documents, texts, {"q1": {"d1": 1}})
        found = replace(open_collection(tmp_path / folder), qrels=qrels)
        with pytest.raises(InputError, match=sentence):
            evaluate(
                [found], plan(rankers=[Reranker("fake", idle)], first_stage=FirstStage()), tmp_path / f"{folder}.out"
            )


def test_grades_and_measures_are_looked_at_before_anything_is_ranked(folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "small")
    qrels = place / "qrels" / "test.tsv"
    lines = qrels.read_text(encoding="utf-8").splitlines()
    query_id, doc_id, _ = lines[7].split("\t")
    qrels.write_text("\n".join([*lines[:7], f"{query_id}\t{doc_id}\t5", *lines[8:]]), encoding="utf-8")
    ranker = Reranker("fake", idle)
    with pytest.raises(InputError, match=rf"test\.tsv:8: the relevance 5 of the doc_id '{doc_id}' .* 4, .* ERR@20"):
        evaluate([open_collection(place)], plan(rankers=[ranker], measures=("P@1", "ERR@20")), tmp_path / "out")
    with pytest.raises(InputError, match="Accuracy@2 cannot be computed here"):
        evaluate([open_collection(place)], plan(rankers=[ranker], measures=("P@1", "Accuracy@2")), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert evaluate([open_collection(place)], plan(measures=("P@1",)), tmp_path / "out").measures == ("P@1",)


def test_a_measure_that_fails_in_the_end_takes_no_other_with_it(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaking(FakeRanker):
        def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
            monkeypatch.setenv("PATH", "/nonexistent")  # perl was there before
            return super().rank_iter(requests)

    ranker = Reranker("fake", Breaking)
    result = evaluate([collection], plan(rankers=[ranker], measures=("ERR@10", "P@1")), tmp_path)
    assert result.measures == ("P@1",)
    assert result.environment["notes"][-1].startswith("ERR@10 cannot be computed here: FileNotFoundError")


def test_judged_documents_that_are_not_in_the_collection_are_counted(
    collection: Collection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    qrels = {**collection.qrels, "q0": {"elsewhere": 2, "d1": 1}, "q2": {"elsewhere": 1, "nowhere": 0}}
    judged = len({doc_id for documents in qrels.values() for doc_id in documents})
    for _ in range(2):  # the second time it is known
        caplog.clear()
        result = evaluate([replace(collection, qrels=qrels)], plan(), tmp_path / "out")
        told = f"2 of {judged} judged documents are not in the collection"
        assert told in caplog.text
        assert result.environment["notes"][0] == f"small: {told}; none is found."
    other = {query_id: {"elsewhere": 1} for query_id in collection.qrels}
    with pytest.raises(InputError, match=r"qrels/test\.tsv: none of its 1 judged documents is in the collection"):
        evaluate([replace(collection, qrels=other)], plan(rankers=[Reranker("fake", idle)]), tmp_path / "other")


def test_a_restart_touches_nothing_else(collection: Collection, whole: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(whole, place)
    (place / "notes.txt").write_text("mine", encoding="utf-8")
    evaluate([collection], plan(6), place, restart=True)
    assert sorted(path.name for path in (place / "small").glob("*.jsonl")) == ["fake.journal.jsonl"]
    assert (place / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_folder_that_is_no_evaluation_is_left_alone(folder: Path, collection: Collection) -> None:
    before = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    with pytest.raises(InputError, match="is not empty and holds no settings of an evaluation"):
        evaluate([collection], plan(), folder, restart=True)
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == before


def test_one_evaluation_at_a_time(collection: Collection, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from blockrank.keep.settings import locked\n"
        f"with locked(Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another evaluation is running in this folder"):
            evaluate([collection], plan(), tmp_path)
        process.kill()
    assert evaluate([collection], plan(), tmp_path).collections  # the lock went with its process


# Parts


def test_the_journal_cuts_off_what_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "x.journal.jsonl"
    journal = Journal(path)
    outcomes = [Outcome("é", ["a", "b"], [0.1 + 0.2, 1e-17], 1, True), Outcome("q", [], [])]
    journal.append_shard(outcomes)
    journal.append_shard(outcomes[:1])
    journal.append_latency(5, [1.5, 2.5])
    content = path.read_bytes()
    again = Journal(path)
    assert (again.shards, again.latency_queries, again.latency_ms) == (2, 5, [1.5, 2.5])
    assert list(again.outcomes()) == [*outcomes, outcomes[0]]
    ends = [at + 1 for at, sign in enumerate(content) if sign == ord("\n")]
    for size in range(len(content)):
        path.write_bytes(content[:size])
        cut = Journal(path)
        assert cut.shards == sum(size >= end for end in ends[:2])
        assert path.stat().st_size == max([0, *(end for end in ends if end <= size)])
    path.write_bytes(content.replace(b"{", b"[", 1))
    with pytest.raises(InputError, match=r"x.journal.jsonl:1: the journal is broken here; start over with --restart"):
        Journal(path)


def test_records_carry_checksums(tmp_path: Path) -> None:
    path = tmp_path / "x.journal.jsonl"
    journal = Journal(path)
    for number in range(3):
        journal.append_shard([Outcome(f"q{number}", ["a", "b"], [0.75, 0.25])])
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    harmed = [
        content.replace(b"0.75", b"0.57", 1),  # a digit
        content.replace(b'"a"', b'"c"', 1),
        lines[1] + lines[2],  # a line is lost
        re.sub(rb', "check": "\w+"}', b"}", content).replace(b"[0.75, 0.25]", b"[0.75]", 1),
        lines[0] + re.sub(rb', "check": "\w+"}', b"}", lines[1]) + lines[2],  # and a checksum
    ]
    for changed in harmed:
        path.write_bytes(changed)
        with pytest.raises(InputError, match=r"x\.journal\.jsonl:[12]: the journal is broken here"):
            Journal(path)
    path.write_bytes(content.replace(b'["a", "b"], "scores": [0.75', b'["a", "b"], "scores": [0.57'))
    path.write_bytes(lines[0] + lines[1] + lines[2].replace(b"0.75", b"0.57"))
    assert Journal(path).shards == 2  # the last one is ranked again


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[]", "a JSON object is needed, not an array"),
        (b'{"systems": 3}', "these are no settings of an evaluation"),
        (b'{"systems": {"mini": ["x"]}}', "these are no settings of an evaluation"),
        (b"null", "a JSON object is needed, not null"),
        (b"{", "not valid JSON: Expecting property name"),
        (b"\xff\xfe{}", "not valid UTF-8"),
        (b"[" * 100_000, "not valid JSON: nested too deeply"),
        (b'{"systems": {"mini": {"depth": ' + b"9" * 5000 + b"}}}", "not valid JSON: a number has too many digits"),
    ],
)
def test_settings_that_are_none(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"settings\.json(:1)?: {sentence}") as error:
        RankingSettings(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"depths": ()}, "depth must be positive"),
        ({"depths": (0,)}, "depth must be positive, not 0"),
        ({"measures": ()}, "measures is empty"),
        ({"max_queries": 0}, "max_queries must be positive"),
        ({"reuse_bytes": -1}, "must not be negative"),
        ({"rerankers": (Reranker("a b", FakeRanker),)}, "label 'a b' must be"),
        ({"rerankers": (Reranker("../x", FakeRanker),)}, "label '../x' must be"),
        ({"rerankers": (Reranker("x", FakeRanker),) * 2}, "two systems are called 'x'"),
        ({"rerankers": (Reranker("given", FakeRanker),)}, "two systems are called 'given'"),
    ],
)
def test_plans_that_cannot_be(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        plan(**changes) if "depths" not in changes else replace(plan(), **changes)


def test_collections_that_cannot_be_evaluated(folder: Path, collection: Collection, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"first stage 'runs/none.trec' is neither 'bm25' nor a run file"):
        evaluate([collection], plan(first_stage=FirstStage("runs/none.trec")), tmp_path / "a")
    with pytest.raises(InputError, match="none of its 53 queries is judged"):
        evaluate([replace(collection, qrels={"x": {"d": 1}})], plan(), tmp_path / "b")
    write_run(tmp_path / "other.trec", {"x": {"d1": 1.0}})
    with pytest.raises(InputError, match=r"other.trec has candidates for none of the judged queries of small"):
        evaluate([collection], plan(first_stage=FirstStage(str(tmp_path / "other.trec"))), tmp_path / "c")
    write_run(tmp_path / "strange.trec", {"q0": {"nowhere": 1.0}})
    with pytest.raises(InputError, match="the doc_id 'nowhere'"):
        evaluate([collection], plan(first_stage=FirstStage(str(tmp_path / "strange.trec"))), tmp_path / "d")
