"""`blockrank eval`: the command as its users meet it, and that a kill costs nothing but the shard in hand."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import TOLERANCE, failed
from typer.testing import CliRunner

from blockrank import Document, Ranker
from blockrank.cli import app
from blockrank.cli.systems import labelled
from blockrank.data import read_run, write_collection, write_qrels, write_run
from blockrank.evaluate import aggregate
from blockrank.model import EMBEDDED_MODEL

WORDS = ("harbour", "engine", "willow", "copper", "lantern", "meadow", "signal", "anchor", "quartz", "river")
QUERIES, CANDIDATES = 480, 6


# The command, killed as soon as its second shard is on disk.
KILLED = """
import os, signal
from blockrank.cli import main
from blockrank.evaluate.journal import Journal

append_shard = Journal.append_shard

def append_and_end(journal, outcomes):
    append_shard(journal, outcomes)
    if journal.shards == 2:
        os.kill(os.getpid(), signal.SIGKILL)

Journal.append_shard = append_and_end
main()
"""


def run(*arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, ["eval", *arguments], input=stdin)


def write(folder: Path, queries: int) -> Path:
    source = random.Random(5)
    documents = [Document(" ".join(source.choices(WORDS, k=6)), f"d{i}") for i in range(40)]
    texts = {f"q{i}": " ".join(source.choices(WORDS, k=3)) for i in range(queries)}
    qrels = {query_id: {f"d{d}": 1 for d in source.sample(range(40), 3)} for query_id in texts}
    write_collection(folder, documents, texts, qrels)
    candidates = {q: {f"d{d}": -float(at) for at, d in enumerate(source.sample(range(40), CANDIDATES))} for q in texts}
    (folder / "runs").mkdir()
    write_run(folder / "runs" / "given.trec", candidates)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("small") / "small", 12)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A run and judgements: one query is missing in each."""
    write_run(tmp_path / "run.trec", {"a": {"x": 2.0, "y": 1.0}, "b": {"z": 1.0}, "unjudged": {"x": 1.0}})
    write_qrels(tmp_path / "qrels.txt", {"a": {"y": 1}, "b": {"z": 2, "w": 1}, "missing": {"x": 1}})
    return str(tmp_path / "run.trec"), str(tmp_path / "qrels.txt")


# A run


def test_a_run_is_measured(files: tuple[str, str]) -> None:
    result = run(*files, "P@1", "RR@10", "--ceiling")
    assert result.exit_code == 0
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["measure", "all", "ceiling"], ["P@1", "0.3333", "0.6667"], ["RR@10", "0.5000", "0.6667"],
    ]  # fmt: skip
    assert result.stderr == (
        "blockrank: 1 of 3 judged queries are not in the run; they count as empty rankings.\n"
        "blockrank: 1 queries of the run are not judged; they do not count.\n"
    )
    assert run(*files, "--measure", "P@1").stdout.split() == ["P@1", "0.3333"]
    assert [line.split()[0] for line in run(*files).stdout.splitlines()] == [
        "nDCG@10", "RR@10", "P@1", "R@100", "Judged@10",
    ]  # fmt: skip


def test_a_run_query_by_query(files: tuple[str, str]) -> None:
    lines = [line.split() for line in run(*files, "P@1", "--per-query").stdout.splitlines()]
    assert lines == [["query_id", "P@1"], ["a", "0.0000"], ["b", "1.0000"], ["missing", "0.0000"], ["all", "0.3333"]]
    found = json.loads(run(*files, "P@1", "--per-query", "--json").stdout)
    assert found == {
        "queries": 3, "measures": {"P@1": pytest.approx(1 / 3)},
        "per_query": {"a": {"P@1": 0.0}, "b": {"P@1": 1.0}, "missing": {"P@1": 0.0}},
    }  # fmt: skip


def test_a_run_from_standard_input(files: tuple[str, str]) -> None:
    content = Path(files[0]).read_text(encoding="utf-8")
    assert run("-", files[1], "P@1", stdin=content).stdout == run(*files, "P@1").stdout


def test_runs_and_judgements_come_through_pipes(files: tuple[str, str], tmp_path: Path) -> None:
    expected = run(*files, "P@1").stdout
    qrels = Path(files[1]).read_text(encoding="utf-8")
    assert run(files[0], "-", "P@1", stdin=qrels).stdout == expected
    pipes = [tmp_path / "run.pipe", tmp_path / "qrels.pipe"]
    for pipe, name in zip(pipes, files, strict=True):
        os.mkfifo(pipe)
        threading.Thread(target=pipe.write_bytes, args=[Path(name).read_bytes()], daemon=True).start()
    assert run(*map(str, pipes), "P@1").stdout == expected
    assert run("-", "-", "P@1", stdin=qrels).exit_code == 2


def test_a_grade_that_one_measure_cannot_take(files: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "graded.txt"
    path.write_text("a 0 y 1\nb 0 z 5\n", encoding="utf-8")
    result = run(files[0], str(path), "ERR@3", "P@1")
    assert (result.exit_code, result.stdout.split()) == (1, ["P@1", "0.5000"])
    place = f"blockrank: error: {path}:2: the relevance 5 of the doc_id 'z' for the query_id 'b' is above 4, "
    assert result.stderr.splitlines()[-1].startswith(place)
    assert failed(run(files[0], str(path), "ERR@3")).startswith(place)
    assert run(files[0], str(path), "P@1").exit_code == 0
    stream = run(files[0], "-", "ERR@3", stdin=path.read_text(encoding="utf-8"))
    assert "the relevance 5 of the doc_id 'z'" in stream.stderr


def test_ids_of_queries_do_not_matter_to_err(tmp_path: Path) -> None:
    write_run(tmp_path / "run.trec", {"1": {"d": 1.0}, "x-1": {"d": 1.0}})
    write_qrels(tmp_path / "qrels.txt", {"1": {"d": 1}, "x-1": {"d": 1}})
    result = run(str(tmp_path / "run.trec"), str(tmp_path / "qrels.txt"), "nDCG(dcg='exp-log2')@10", "ERR@10")
    assert [line.split()[-1] for line in result.stdout.splitlines()] == ["1.0000", "0.0625"]


def test_judgements_of_other_documents_are_told(files: tuple[str, str], tmp_path: Path) -> None:
    write_qrels(tmp_path / "other.txt", {"a": {"p": 1}, "b": {"q": 2, "r": 1}})
    result = run(files[0], str(tmp_path / "other.txt"), "P@1")
    assert (result.exit_code, result.stdout.split()) == (0, ["P@1", "0.0000"])
    assert "the run holds none of the 3 judged documents: is it of another collection?" in result.stderr
    assert "none of the" not in run(*files).stderr


def test_measuring_a_run_needs_no_torch(files: tuple[str, str]) -> None:
    code = (
        "import sys\nfrom blockrank.cli import app\n"
        f"app(['eval', {files[0]!r}, {files[1]!r}, 'nDCG@10', '--ceiling'], standalone_mode=False)\n"
        "print(*{'torch', 'transformers', 'matplotlib'} & set(sys.modules), 'end')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "end"


def test_mistakes_with_runs(files: tuple[str, str], tmp_path: Path) -> None:
    assert "measure 'nope' is unknown; some known ones are" in failed(run(*files, "nope"))
    assert "none.txt: cannot be read" in failed(run(files[0], str(tmp_path / "none.txt")))
    (tmp_path / "broken.trec").write_text("a Q0 x 1 nan t\n", encoding="utf-8")
    assert "broken.trec:1: " in failed(run(str(tmp_path / "broken.trec"), files[1]))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["{run}"],
        ["{run}", "{qrels}", "--output", "x"],
        ["{run}", "{qrels}", "--model", "x"],
        ["no-such-file", "{qrels}"],
        ["no-such-file", "--output", "x", "--ceiling"],
        ["one", "two", "--output", "x", "--qrels", "{qrels}"],
        ["{run}", "{qrels}", "--depth", "0"],
    ],
)
def test_wrong_usage_is_told(arguments: list[str], files: tuple[str, str]) -> None:
    result = run(*(argument.format(run=files[0], qrels=files[1]) for argument in arguments))
    assert (result.exit_code, result.stdout) == (2, "")


# Collections


def test_a_collection_is_evaluated_in_one_line(folder: Path, tmp_path: Path) -> None:
    result = run(str(folder), "--output", str(tmp_path / "out"), "--latency-queries", "1", "--no-report")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "small: 12 queries, first stage bm25"
    assert [line.split()[0] for line in lines[1:5]] == ["system", "bm25", "mini", "ceiling@100"]
    stored = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    reranked = read_run(tmp_path / "out" / "small" / "runs" / "mini.trec")
    from blockrank.data import open_collection

    collection = open_collection(folder)
    assert stored["collections"][0]["systems"][1]["measures"] == pytest.approx(
        aggregate(reranked, collection.qrels, stored["measures"])
    )
    texts = {document.doc_id: document for document in collection.corpus.documents()}
    ranker = Ranker.from_pretrained()
    first = read_run(tmp_path / "out" / "small" / "runs" / "bm25.trec")
    for query_id, ranked in list(first.items())[:3]:
        alone = ranker.rank(collection.queries[query_id], [texts[doc_id] for doc_id in ranked])
        found = {entry.doc_id: entry.score for entry in alone}
        assert reranked[query_id] == pytest.approx(found, abs=TOLERANCE["float32"])


def test_options_reach_the_evaluation(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        str(folder), "--output", str(out), "--model", f"one={EMBEDDED_MODEL}", "--model", str(EMBEDDED_MODEL),
        "--first-stage", "runs/given.trec", "--depth", "2", "--depth", "5", "--measure", "P@1", "--measure", "AP",
        "--max-queries", "7", "--latency-queries", "0", "--no-report", "--max-segment-tokens", "5", "--json",
    ]  # fmt: skip
    found = json.loads(run(*arguments).stdout)
    (collection,) = found["collections"]
    assert (found["measures"], collection["queries"], collection["first_stage"]) == (["P@1", "AP"], 7, "given")
    names = [system["name"] for system in collection["systems"]]
    assert names == ["given", "one@2", "one@5", "mini@2", "mini@5"]
    assert [system["latency_ms"] for system in collection["systems"]] == [None] * 5
    assert collection["systems"][2]["cut_documents"] == collection["systems"][2]["documents"] == 35
    assert collection["systems"][1]["measures"] == collection["systems"][3]["measures"]
    told = failed(run(*arguments, "--dtype", "bfloat16"))
    assert "other settings of one@2: options.dtype was None, now 'bfloat16'. Choose another --output" in told
    assert "measure 'x' is unknown" in failed(run(*arguments, "--measure", "x"))


def test_a_query_over_the_limit_is_told_before_anything_is_ranked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shutil.copytree(folder, tmp_path / "small")
    lines = (place / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    lines[6] = json.dumps({"_id": "q6", "text": "harbour " * 700})
    (place / "queries.jsonl").write_text("\n".join(lines), encoding="utf-8")
    arguments = [str(place), "-o", str(tmp_path / "out"), "--latency-queries", "0", "--no-report"]
    with monkeypatch.context() as patch:
        patch.setattr(Ranker, "from_pretrained", None)  # not even loaded
        told = failed(run(*arguments))
    assert re.search(r"small/queries\.jsonl:7: query is (about )?7\d\d tokens long and the limit is \d+", told)
    assert "(--cut-queries)" in told
    assert "long_queries" not in told
    result = run(*arguments, "--cut-queries", "--json")
    assert json.loads(result.stdout)["collections"][0]["systems"][1]["cut_queries"] == 1
    assert "--cut-queries" in failed(run(*arguments))  # what was cut is not passed on as whole


def test_documents_that_cannot_be_ranked_are_told_before_anything_is(folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(EMBEDDED_MODEL, tmp_path / "framed")
    spec = json.loads((place / "blockrank.json").read_text(encoding="utf-8"))
    spec["template"] = {"instruction": [], "document": ["a document: {text}"], "query": ["{query}"]}
    (place / "blockrank.json").write_text(json.dumps(spec), encoding="utf-8")
    arguments = (str(folder), "-o", str(tmp_path / "out"), "--max-segment-tokens", "3", "--model", str(place))
    told = failed(run(*arguments))
    assert re.search(r"small/corpus\.jsonl:\d+: documents\[0\] does not fit: its frame alone takes", told)


def test_the_report_is_written(folder: Path, tmp_path: Path) -> None:
    arguments = [str(folder), "--output", str(tmp_path / "out"), "--max-queries", "3", "--latency-queries", "0"]
    result = run(*arguments)
    assert result.stderr == f"blockrank: {tmp_path / 'out' / 'report.html'} shows the same with figures.\n"
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000


def test_mistakes_with_collections(folder: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert "'mini'" in failed(
        run(str(folder), "-o", out, "--model", str(EMBEDDED_MODEL), "--model", f"mini={EMBEDDED_MODEL}")
    )
    assert "has no blockrank.json" in failed(run(str(folder), "-o", out, "--model", str(tmp_path)))
    assert "its splits are test" in failed(run(str(folder), "-o", out, "--split", "dev"))
    assert "is no BEIR folder with corpus.jsonl" in failed(run(str(tmp_path), "-o", out))
    assert not Path(out).exists()


def test_labels(tmp_path: Path) -> None:
    assert labelled(None) == (None, None)
    assert labelled("org/name") == (None, "org/name")
    assert labelled("x=org/name") == ("x", "org/name")
    assert labelled("out/lr=3") == (None, "out/lr=3")
    (tmp_path / "a=b").mkdir()
    assert labelled(str(tmp_path / "a=b")) == (None, str(tmp_path / "a=b"))


def test_killed_half_way_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    place = write(tmp_path / "large", QUERIES)
    options = [str(place), "--first-stage", "runs/given.trec", "--latency-queries", "0", "--no-report"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    journal, result = killed / "large" / "mini.journal.jsonl", killed / "large" / "runs" / "mini.trec"
    ended = subprocess.run([sys.executable, "-c", KILLED, "eval", *options, "--output", str(killed)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert journal.read_bytes().count(b"\n") == 2
    assert not result.exists()
    with journal.open("ab") as stream:
        stream.write(b'{"shard": 99, "outco')  # as a kill in the middle of writing leaves it
    modified = os.stat(killed / "large" / "runs" / "given.trec").st_mtime_ns
    outputs = [run(*options, "--output", str(out)).stdout for out in (killed, whole)]
    assert outputs[0] == outputs[1]
    assert result.read_bytes() == (whole / "large" / "runs" / "mini.trec").read_bytes()
    assert journal.read_bytes() == (whole / "large" / "mini.journal.jsonl").read_bytes()
    assert os.stat(killed / "large" / "runs" / "given.trec").st_mtime_ns == modified
