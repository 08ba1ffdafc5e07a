"""`blockrank analyze`: the files, the summary, and the mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_tokenizer, golden_module
from typer.testing import CliRunner

from blockrank import Document, Ranker, RankSpec
from blockrank.cli import app
from blockrank.data import write_collection, write_run

TOPICS = ("whale", "castle", "garden", "winter")
SMALL = ("--queries", "4", "--candidates", "8", "--documents", "3")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four queries with one relevant document each, and a run for them in the folder."""
    folder = tmp_path_factory.mktemp("collections") / "tiny"
    documents = [Document(f"{name} saw the {topic}.", f"{topic}-{name}") for topic in TOPICS for name in ("Ada", "Bo")]
    queries = {topic: f"who saw the {topic}" for topic in TOPICS}
    write_collection(folder, documents, queries, {topic: {f"{topic}-Bo": 1} for topic in TOPICS})
    runs = {topic: {str(item.doc_id): 9.0 - place for place, item in enumerate(documents)} for topic in TOPICS}
    write_run(folder / "first.trec", runs, "first")
    return str(folder)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Qwen with a byte tokenizer that says nothing of how it is read."""
    folder = tmp_path_factory.mktemp("decoder")
    golden_module("qwen3").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["analyze", *arguments])


def test_a_decoder_without_a_spec(decoder: str, collection: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run(
        decoder, collection, "-o", str(output), "--template", "query-free", "--first-stage", "first.trec", *SMALL
    )
    assert done.exit_code == 0, done.output
    first, *_ = done.stdout.splitlines()
    assert first.startswith("chosen: layer ")
    assert "first stage" in done.stdout
    assert "ceiling of the candidates" in done.stdout
    assert str(output / "analysis.html") in done.stderr
    assert sorted(path.name for path in output.iterdir()) == [
        "analysis.html", "analysis.json", "attention.png", "blockrank.json", "evidence.png", "head-subsets.png",
        "heads.png", "tokens.png",
    ]  # fmt: skip
    ranker = Ranker.from_pretrained(decoder, spec=RankSpec.load(output), device="cpu")
    assert len(ranker.rank("who saw the whale", ["Ada saw it.", "Bo did not."])) == 2


def test_the_embedded_model_as_json(collection: str, tmp_path: Path) -> None:
    arguments = ("embedded", collection, "-o", str(tmp_path), "--first-stage", "first.trec", "--keep-order", *SMALL)
    one, again = run(*arguments, "--json"), run(*arguments, "--json")
    assert one.exit_code == 0, one.output
    found = json.loads(one.stdout)
    assert found == json.loads(again.stdout), "the same seed gives the same choice"
    assert (found["model"], found["collection"], found["first_stage"]) == ("embedded", "tiny", "first")
    assert found["queries"] == {"development": 2, "test": 2}
    assert found["choice"]["settings"]["own setting"] == {"layer": 6, "tokens": "query", "heads": None}
    assert found["choice"]["figures"].keys() > {"own setting", "chosen", "middle layer, last token"}
    assert found["chosen_spec"] == RankSpec.load(tmp_path).to_dict()
    page = (tmp_path / "analysis.html").read_text(encoding="utf-8")
    assert "<h1>Attention of embedded</h1>" in page
    assert "given order" in page


def failed(result: Any) -> str:
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert result.stderr.startswith("blockrank: error: ")
    return str(result.stderr)


def test_mistakes_are_one_sentence(
    decoder: str, collection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = ("-o", str(tmp_path / "out"))
    assert "is no folder" in failed(run("embedded", str(tmp_path / "no"), *output))
    assert "for models that do not" in failed(run("embedded", collection, *output, "--template", "blockrank"))
    assert "nothing.trec" in failed(run(decoder, collection, *output, "--first-stage", "nothing.trec"))
    assert "cannot be made" in failed(run(decoder, collection, "-o", f"{collection}/corpus.jsonl/out"))
    assert not any((tmp_path / "out").iterdir())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "blockrank[eval]" in failed(run("embedded", collection, *output))
    assert run("embedded", collection).exit_code == 2
