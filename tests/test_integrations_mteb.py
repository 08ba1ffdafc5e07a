"""The model object for MTEB, run by the real package on tasks that are defined here. Nothing is downloaded."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import math
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from conftest import TOLERANCE
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol, ModelMeta, SearchProtocol

from blockrank.evaluate import aggregate
from blockrank.fake import FakeRanker
from blockrank.integrations.mteb import BlockrankSearch
from blockrank.model import RankModel
from blockrank.ranker import Ranker
from blockrank.types import InputError, MissingExtraError, Ranking, RankRequest, RequestRanker

DOCUMENTS = {
    "sea": ("Tides", "The moon pulls the water of the oceans, so that the sea rises and falls twice a day."),
    "bread": ("", "Yeast eats the sugar of the dough and its gas makes the bread rise."),
    "moon": ("The moon", "It circles the earth in about a month and always shows the same face."),
    "yeast": ("Yeast", "A fungus of a single cell; bakers and brewers keep it."),
    "ocean": (None, "Oceans hold almost all the water of the earth."),
    "oven": ("", "An oven for bread is hotter at first and cooler later."),
}
QUERIES = {"q1": "why does the sea rise twice a day", "q2": "what makes bread rise", "q3": "how long is a month"}
QRELS = {"q1": {"sea": 2, "moon": 1, "bread": 0}, "q2": {"bread": 2, "yeast": 1}, "q3": {"moon": 1}}
# As some published tasks have them: relevant documents first.
TOP_RANKED = {
    "q1": ["sea", "moon", "bread", "ocean", "oven"],
    "q2": ["bread", "yeast", "oven", "sea", "ocean"],
    "q3": ["moon", "ocean", "yeast", "sea"],
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing here, and nothing in MTEB on the way, may reach for the network, not even in vain."""
    tried = []

    def refuse(_: socket.socket, address: Any) -> None:
        tried.append(address)
        raise OSError("there is no network in tests")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # its variable is read at import
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert tried == []


def metadata(kind: str, **changes: Any) -> TaskMetadata:
    fields: dict[str, Any] = {
        "name": f"Tiny{kind}", "type": kind, "description": "Six documents.", "reference": None,
        "dataset": {"path": "none", "revision": "1"}, "eval_splits": ["test"], "eval_langs": ["eng-Latn"],
        "main_score": "ndcg_at_10", "category": "t2t", "modalities": ["text"],
    }  # fmt: skip
    return TaskMetadata(**{**fields, **changes})


class TinyRetrieval(AbsTaskRetrieval):
    """A collection in memory, without candidates."""

    metadata = metadata("Retrieval")
    top_ranked: dict[str, list[str]] | None = None
    documents: dict[str, tuple[str | None, str]] = DOCUMENTS
    queries_table = Dataset.from_list([{"id": key, "text": text} for key, text in QUERIES.items()])

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        rows = [{"id": key, "title": title, "text": text} for key, (title, text) in self.documents.items()]
        data = {
            "corpus": Dataset.from_list(rows),
            "queries": self.queries_table,
            "relevant_docs": {key: dict(judged) for key, judged in QRELS.items()},
            "top_ranked": self.top_ranked,
        }
        # `convert_to_reranking` writes into it and MTEB drops it after an evaluation.
        self.dataset, self.data_loaded = {"default": {"test": data}}, True


class TinyReranking(TinyRetrieval):
    """The same with candidates."""

    metadata = metadata("Reranking")
    top_ranked = TOP_RANKED


def evaluate(model: Any, task: AbsTaskRetrieval, **options: Any) -> dict[str, Any]:
    """What MTEB reports for the test split."""
    found = mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False, **options)
    scores: dict[str, Any] = found.task_results[0].scores["test"][0]
    return scores


def predictions(model: Any, task: AbsTaskRetrieval, folder: Path) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """The run that MTEB was given, and what it reports for it."""
    scores = evaluate(model, task, prediction_folder=folder)
    return json.loads((folder / task.prediction_file_name).read_text())["default"]["test"], scores


def search(model: BlockrankSearch, **changes: Any) -> dict[str, dict[str, float]]:
    """The two calls that MTEB makes, without MTEB around them."""
    task = TinyReranking()
    task.load_data()
    data = task.dataset["default"]["test"]
    common = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default", "num_proc": None}
    common["encode_kwargs"] = {"batch_size": 32, "show_progress_bar": False}
    model.index(changes.pop("corpus", data["corpus"]), **common)
    options = {"queries": data["queries"], "top_k": 10, "top_ranked": TOP_RANKED}
    return model.search(**{**common, **options, **changes})


class FixedRanker(RequestRanker):
    """Gives every document of a request the same score."""

    def __init__(self, score: float = 0.25) -> None:
        self.score = score

    def identity(self) -> dict[str, Any]:
        return {"ranker": "FixedRanker", "score": self.score}

    def rank_iter(self, requests: Iterator[RankRequest]) -> Iterator[Ranking]:
        for request in requests:
            yield Ranking.from_scores(request, [self.score] * len(request.candidates))


def test_the_embedded_model_reranks_a_task_and_the_measures_agree(mini: Ranker, tmp_path: Path) -> None:
    run, scores = predictions(BlockrankSearch(mini), TinyReranking(), tmp_path)
    assert [next(iter(run[query_id])) for query_id in QUERIES] == ["sea", "bread", "moon"]
    ours = aggregate(run, QRELS, ["nDCG@10", "nDCG@1", "RR", "AP", "R@3"])
    assert scores["ndcg_at_10"] == scores["main_score"] == pytest.approx(ours["nDCG@10"], abs=1e-5)
    assert scores["ndcg_at_1"] == pytest.approx(ours["nDCG@1"], abs=1e-5)
    assert scores["mrr_at_1000"] == pytest.approx(ours["RR"], abs=1e-5)
    assert scores["map_at_1000"] == pytest.approx(ours["AP"], abs=1e-5)
    assert scores["recall_at_3"] == pytest.approx(ours["R@3"], abs=1e-5)
    for query_id, found in run.items():
        alone = mini.rank(QUERIES[query_id], [document(doc_id) for doc_id in TOP_RANKED[query_id]])
        assert list(found) == alone.doc_ids
        assert list(found.values()) == pytest.approx([entry.score for entry in alone], abs=TOLERANCE["float32"])


def document(doc_id: str) -> dict[str, str]:
    title, text = DOCUMENTS[doc_id]
    return {"doc_id": doc_id, "title": title or "", "text": text}


def test_measures_agree_where_the_ranking_is_bad(tmp_path: Path) -> None:
    worst = FakeRanker(lambda query, text: 1 / len(text))
    run, scores = predictions(BlockrankSearch(worst), TinyReranking(), tmp_path)
    assert 0 < scores["ndcg_at_10"] < 1
    assert scores["ndcg_at_10"] == pytest.approx(aggregate(run, QRELS, ["nDCG@10"])["nDCG@10"], abs=1e-5)


def test_a_query_is_one_request_with_all_its_candidates() -> None:
    ranker = FakeRanker()
    evaluate(BlockrankSearch(ranker), TinyReranking())
    assert [call.query for call in ranker.calls] == list(QUERIES.values())
    for call in ranker.calls:
        assert {item.doc_id for item in call.candidates} == set(TOP_RANKED[call.query_id])
        for item in call.candidates:
            assert (item.title, item.text) == (DOCUMENTS[item.doc_id][0] or "", DOCUMENTS[item.doc_id][1])


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_candidates_changes_nothing(seed: int, mini: Ranker) -> None:
    generator = np.random.default_rng(seed)
    shuffled = {key: generator.permutation(ids).tolist() for key, ids in TOP_RANKED.items()}
    for ranker in (mini, FakeRanker(), FixedRanker()):
        expected = search(BlockrankSearch(ranker))
        found = search(BlockrankSearch(ranker), top_ranked=shuffled)
        assert [list(scores.items()) for scores in found.values()] == [list(s.items()) for s in expected.values()]


def test_equal_scores_gain_nothing_from_relevant_documents_that_come_first(tmp_path: Path) -> None:
    run, scores = predictions(BlockrankSearch(FixedRanker()), TinyReranking(), tmp_path)
    assert all(list(found) == sorted(found, reverse=True) for found in run.values())
    tied = {query_id: dict.fromkeys(found, 0.25) for query_id, found in run.items()}
    assert scores["ndcg_at_10"] == pytest.approx(aggregate(tied, QRELS, ["nDCG@10"])["nDCG@10"], abs=1e-5)


def test_a_retrieval_task_needs_a_first_stage_and_takes_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"TinyRetrieval gives it no candidates .*convert_to_reranking"):
        evaluate(BlockrankSearch(FakeRanker()), TinyRetrieval())
    first = FirstStage()
    assert isinstance(first, SearchProtocol)
    evaluate(first, TinyRetrieval(), prediction_folder=tmp_path)
    ranker = FakeRanker()
    task = TinyRetrieval().convert_to_reranking(tmp_path, top_k=3)
    run, scores = predictions(BlockrankSearch(ranker), task, tmp_path / "second")
    shortest = sorted(DOCUMENTS, key=lambda doc_id: len(DOCUMENTS[doc_id][1]))[:3]
    assert [{item.doc_id for item in call.candidates} for call in ranker.calls] == [set(shortest)] * len(QUERIES)
    assert scores["previous_results_model_meta"]["model_name"] == "blockrank/first"
    assert scores["ndcg_at_10"] == pytest.approx(aggregate(run, QRELS, ["nDCG@10"])["nDCG@10"], abs=1e-5)


class FirstStage:
    """Finds the shortest documents, whatever is asked."""

    mteb_model_meta = ModelMeta.create_empty({"name": "blockrank/first", "revision": "1"})

    def index(self, corpus: Dataset, **_: Any) -> None:
        self.lengths = {row["id"]: len(row["text"]) for row in corpus}

    def search(self, queries: Dataset, **_: Any) -> dict[str, dict[str, float]]:
        return {query_id: {key: 1 / length for key, length in self.lengths.items()} for query_id in queries["id"]}


def test_documents_without_text_come_last_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    ranker = FakeRanker()
    corpus = Dataset.from_list(
        [
            {"id": "a", "title": "bread", "text": ""},
            {"id": "b", "title": "", "text": " \n"},
            {"id": "c", "title": None, "text": None},
            {"id": "d", "title": "", "text": "what makes bread rise"},
        ]
    )
    top_ranked = {"q1": ["b", "c"], "q2": ["b", "a", "c", "d"]}
    with caplog.at_level(logging.WARNING, "blockrank.integrations.mteb"):
        run = search(BlockrankSearch(ranker), corpus=corpus, top_ranked=top_ranked)
    assert [list(found) for found in run.values()] == [["c", "b"], ["d", "a", "c", "b"], []]
    assert [call.query_id for call in ranker.calls] == ["q2"]
    assert run["q2"]["a"] > run["q2"]["c"] == 0 > run["q2"]["b"]
    assert "4 candidates of 2 queries have no text" in caplog.text
    assert "1 of 3 queries have no candidates" in caplog.text
    with pytest.raises(InputError, match=r"documents\[0\].text must be a string, not list. \(query_id 'q1'\)"):
        search(BlockrankSearch(ranker), corpus=corpus.map(lambda row: {"text": [row["id"]]}), top_ranked=top_ranked)


def test_a_query_without_candidates_counts_as_nothing_found(tmp_path: Path) -> None:
    task, ranker = TinyReranking(), FakeRanker()
    task.top_ranked = {"q1": TOP_RANKED["q1"], "q2": []}
    run, scores = predictions(BlockrankSearch(ranker), task, tmp_path)
    assert run["q2"] == run["q3"] == {}
    assert len(ranker.calls) == 1
    assert 0 < scores["ndcg_at_10"] <= 1 / 3
    assert scores["ndcg_at_10"] == pytest.approx(aggregate(run, QRELS, ["nDCG@10"])["nDCG@10"], abs=1e-5)


def test_depth_and_repeated_candidates() -> None:
    run = search(BlockrankSearch(FakeRanker()), top_k=2, top_ranked={"q1": ["sea", "moon", "sea", "bread"]})
    assert [len(found) for found in run.values()] == [2, 0, 0]
    assert next(iter(run["q1"])) == "sea"


def test_queries_are_joined_as_mteb_joins_them() -> None:
    turns = [{"role": "user", "content": "bread?"}, {"role": "assistant", "content": "yes"}]
    tables = (
        [{"id": "q1", "text": "bread", "instruction": "no ovens"}, {"id": "q2", "text": "sea", "instruction": None}],
        [{"id": "q1", "text": ["bread?", "and ovens?"]}],
        [{"id": "q1", "text": turns, "instruction": "Be brief."}],
    )
    asked = []
    for table in tables:
        ranker = FakeRanker()
        search(BlockrankSearch(ranker), queries=Dataset.from_list(table))
        asked.append([call.query for call in ranker.calls])
    assert asked == [["bread no ovens", "sea"], ["bread?; and ovens?"], ["Be brief. user: bread?; assistant: yes"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_ranked": {"q1": ["sea", "lake"]}}, "top_ranked of the query 'q1' names 'lake', which the corpus lacks"),
        ({"queries": Dataset.from_list([{"id": "q1", "text": " "}])}, "the query 'q1' is empty"),
        ({"queries": Dataset.from_list([{"id": "q1", "text": None}])}, "the query 'q1' is no text but NoneType"),
        ({"corpus": Dataset.from_list([{"id": "a", "body": "b"}])}, "the corpus of TinyReranking has no 'text'"),
    ],
)
def test_what_cannot_be_ranked_is_refused_before_anything_is(changes: dict[str, Any], message: str) -> None:
    ranker = FakeRanker()
    with pytest.raises(InputError, match=message):
        search(BlockrankSearch(ranker), **changes)
    assert ranker.calls == []


def test_ids_that_occur_twice_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    corpus = Dataset.from_list([{"id": "a", "text": "old"}, {"id": "b", "text": "c"}, {"id": "a", "text": "new"}])
    ranker = FakeRanker()
    search(BlockrankSearch(ranker), corpus=corpus, top_ranked={"q1": ["a", "b"]})
    assert [item.text for item in ranker.calls[0].candidates] == ["c", "new"]
    assert "1 documents have the id of a later one" in caplog.text


def test_other_modalities_and_precision_are_refused() -> None:
    class Pictures(TinyReranking):
        metadata = metadata("Any2AnyRetrieval", category="it2it", modalities=["text", "image"])

    with pytest.raises(InputError, match="TinyAny2AnyRetrieval has image; this model reads text alone"):
        evaluate(BlockrankSearch(FakeRanker()), Pictures())
    with pytest.raises(InputError, match="precision"):
        evaluate(BlockrankSearch(FakeRanker()), TinyReranking(), encode_kwargs={"precision": "int8"})
    with pytest.raises(InputError, match="before index"):
        BlockrankSearch(FakeRanker()).search(
            TinyReranking.queries_table,
            task_metadata=TinyReranking.metadata,
            top_k=1,
            encode_kwargs={},
            top_ranked=TOP_RANKED,
        )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12), st.integers(1, 14))
def test_scores_are_told_apart_in_float32(values: list[float], top_k: int) -> None:
    texts = {f"d{index:02}": value for index, value in enumerate(values)}
    corpus = Dataset.from_list([{"id": key, "text": key} for key in texts] + [{"id": "e", "text": ""}])
    ranker = FakeRanker(lambda _, text: texts[text])
    found = search(BlockrankSearch(ranker), corpus=corpus, top_ranked={"q1": [*texts, "e"]}, top_k=top_k)["q1"]
    singles = np.asarray(list(found.values()), np.float32)
    assert len(found) == min(top_k, len(texts) + 1)
    assert all(a > b for a, b in itertools.pairwise(singles))
    assert list(found) == sorted([*texts, "e"], key=lambda key: (texts.get(key, -1), key), reverse=True)[:top_k]


def test_metadata_of_the_embedded_model(mini: Ranker) -> None:
    model = BlockrankSearch(mini)
    meta = model.mteb_model_meta
    assert isinstance(model, SearchProtocol)
    assert not isinstance(model, EncoderProtocol)
    assert isinstance(meta, ModelMeta)
    assert (meta.name, meta.languages, meta.license) == ("blockrank/mini", ["eng-Latn"], "apache-2.0")
    assert (meta.model_type, meta.framework, meta.max_tokens) == (["cross-encoder"], ["PyTorch", "Transformers"], 256)
    assert meta.n_parameters == stored_parameters(Path(mini.model.name))
    assert meta.to_dict()["revision"] == meta.revision
    assert meta.training_datasets is None


def stored_parameters(folder: Path) -> int:
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = [item["shape"] for key, item in header.items() if key != "__metadata__" and not key.endswith(".row_scale")]
    return sum(math.prod(shape) for shape in shapes)


def test_revision_follows_weights_and_settings(mini: Ranker, tmp_path: Path) -> None:
    def revision(ranker: RequestRanker) -> str | None:
        return BlockrankSearch(ranker).mteb_model_meta.revision

    def loaded_from(folder: Path) -> Ranker:
        weights = copy.copy(mini.model.weights)
        weights.name = str(folder)
        return Ranker(RankModel(weights, mini.spec, mini.model.backend))

    assert revision(mini) == revision(mini)
    assert revision(mini) != revision(mini.with_spec(max_segment_tokens=64))
    elsewhere = tmp_path / "copy"
    elsewhere.mkdir()
    for path in Path(mini.model.name).iterdir():
        (elsewhere / path.name).write_bytes(path.read_bytes())
    assert revision(loaded_from(elsewhere)) == revision(mini)
    assert BlockrankSearch(loaded_from(elsewhere)).mteb_model_meta.name == "blockrank/copy"
    with (elsewhere / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    assert revision(loaded_from(elsewhere)) != revision(mini)
    nowhere = loaded_from(tmp_path / "nowhere")
    with pytest.raises(InputError, match="give BlockrankSearch a revision"):
        revision(nowhere)
    assert BlockrankSearch(nowhere, revision="3").mteb_model_meta.revision == "3"


def test_metadata_may_be_given(tmp_path: Path) -> None:
    model = BlockrankSearch(FakeRanker(), name="me/mine", revision="7", meta={"training_datasets": {"NQ"}})
    assert model.mteb_model_meta.training_datasets == {"NQ"}
    cache = mteb.ResultCache(tmp_path)
    for _ in range(2):
        mteb.evaluate(model, TinyReranking(), cache=cache, show_progress_bar=False, co2_tracker=False)
    assert [path.parent.name for path in tmp_path.rglob("TinyReranking.json")] == ["7"]
    assert BlockrankSearch(FakeRanker()).mteb_model_meta.name == "blockrank/FakeRanker"
    with pytest.raises(InputError, match="organization/model_name"):
        BlockrankSearch(FakeRanker(), name="mine")
    with pytest.raises(InputError, match="licence"):
        BlockrankSearch(FakeRanker(), meta={"licence": "mit"})


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb.models", None)
    with pytest.raises(MissingExtraError, match=r"blockrank\[mteb\]"):
        BlockrankSearch(FakeRanker())


@pytest.mark.parametrize("module", ["blockrank.integrations", "blockrank.integrations.mteb"])
def test_importing_the_integration_brings_neither_mteb_nor_torch(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'datasets', 'mteb', 'torch', 'tqdm'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
