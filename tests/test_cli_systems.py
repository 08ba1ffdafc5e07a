"""`blockrank eval` over several models, scorers and strategies: what they are called, loaded once, told before anything
is ranked, and the same bytes wherever it was ended."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import failed
from labelled import saved_model
from typer.testing import CliRunner

import blockrank.model
from blockrank import Document
from blockrank.cli import app
from blockrank.cli.systems import shortened, systems
from blockrank.data import write_collection
from blockrank.evaluate import EvaluationResult
from blockrank.evaluate.journal import Journal, Outcome

WORDS = ("harbour", "engine", "willow", "copper", "lantern", "meadow", "signal", "anchor", "quartz", "river")
QUERIES, CANDIDATES = 20, 6
SLIDING = "sliding:size=3,step=1"
OPTIONS = ("--depth", CANDIDATES, "--latency-queries", 0, "--order-queries", 2, "--no-report")
COMPARED = (
    "--scorer", "setwise", "--scorer", "icr:layers=0..1", "--scorer", "listwise:top=2",
    "--strategy", "full", "--strategy", f"{SLIDING}+cascade:keep=4,first=bm25",
)  # fmt: skip


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, place = random.Random(5), tmp_path_factory.mktemp("collections") / "small"
    documents = [Document(" ".join(source.choices(WORDS, k=4)), f"d{i}") for i in range(60)]
    texts = {f"q{i}": " ".join(source.choices(WORDS, k=2)) for i in range(QUERIES)}
    write_collection(place, documents, texts, {q: {f"d{d}": 1 for d in source.sample(range(60), 3)} for q in texts})
    return place


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def arguments(folder: Path, model: Path) -> list[Any]:
    return [folder, "--model", model, *OPTIONS]


@pytest.fixture(scope="module")
def whole(folder: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of all systems that nothing interrupted, for which weights were loaded once."""
    place, loads = tmp_path_factory.mktemp("evaluations") / "whole", list[Any]()
    load_model = blockrank.model.load_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockrank.model, "load_model", lambda *a, **k: loads.append(a) or load_model(*a, **k))
        done = run(folder, "--model", model, *OPTIONS, *COMPARED, "-o", place)
    assert done.exit_code == 0, done.stderr
    assert len(loads) == 1
    return place


def files(place: Path) -> dict[str, bytes]:
    found = sorted(path for path in place.rglob("*") if path.suffix in (".trec", ".jsonl", ".csv"))
    return {str(path.relative_to(place)): path.read_bytes() for path in found}


# Names


def test_every_model_with_every_scorer_and_strategy_is_a_system(model: Path) -> None:
    found = systems(
        [f"small={model}", str(model)],
        ["icr", "decode:beams=1,form=list", "icr"],
        ["full", "sliding", f"{SLIDING}+heap"],
    )
    assert [item.label for item in found[:6]] == [
        "small+icr", "small+icr+sliding", "small+icr+sliding.size3.step1+heap",
        "small+decode.beams1.formlist", "small+decode.beams1.formlist+sliding",
        "small+decode.beams1.formlist+sliding.size3.step1+heap",
    ]  # fmt: skip
    assert len(found) == len({item.label for item in found}) == 2 * 2 * 3
    assert {item.model for item in found} == {str(model)}
    assert [item.label for item in systems([None], None, None)] == ["mini"]
    assert [item.label for item in systems([None], None, ["full", "topdown"])] == ["mini", "mini+topdown"]


def test_labels_are_unique_and_safe_as_names_of_files() -> None:
    texts = [f"pointwise:instruction={text}" for text in ("is it so?", "is it so!", "é/x " * 99)]
    labels = [item.label for item in systems([None], texts, ["cascade:first=a/b", "cascade:first=a b"])]
    assert len(set(labels)) == 6
    assert all(re.fullmatch(r"[\w.+-]{1,120}", label, re.ASCII) for label in labels)
    assert shortened(" sliding:size=20, step=10 ") == "sliding.size20.step10"
    assert shortened("icr:layers=8,9,heads=x") == "icr.layers8-9.headsx"
    assert len(shortened(texts[2])) <= 48


# Weights loaded once


def test_the_runs_are_those_of_each_scorer_alone(
    arguments: list[Any], whole: Path, tmp_path: Path, folder: Path
) -> None:
    result = EvaluationResult.from_dict(json.loads((whole / "results.json").read_text(encoding="utf-8")))
    names = [system.name for system in result.collections[0].systems[1:]]
    wrapped = "sliding.size3.step1+cascade.keep4.firstbm25"
    assert names == [
        f"tiny+{scorer}{strategy}"
        for scorer in ("setwise", "icr.layers0..1", "listwise.top2")
        for strategy in ("", f"+{wrapped}")
    ]
    assert [system.calls for system in result.collections[0].systems[1:3]] == [1, 3], "two windows and bm25"
    assert all(-1 <= (system.order_tau or -2) <= 1 for system in result.collections[0].systems[1:])
    found = files(whole)
    for scorer in ("setwise", "icr:layers=0..1", "listwise:top=2"):
        out = tmp_path / scorer[:3]
        assert run(*arguments, "--scorer", scorer, "--strategy", COMPARED[-1], "-o", out).exit_code == 0
        alone = {name: content for name, content in files(out).items() if "tiny" in name}
        assert len(alone) == 2
        assert all(found[name] == content for name, content in alone.items())


# Ended and begun again


class KilledError(Exception):
    """Ends an evaluation in the middle."""


@pytest.mark.parametrize("records", [(1,), (4, 3), (9, 1, 1)])
def test_ended_anywhere_it_ends_with_the_same_bytes(
    records: tuple[int, ...], arguments: list[Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Journal.append
    for count in records:
        left = iter(range(count))

        def append_and_end(journal: Journal, record: dict[str, Any], left: Any = left) -> None:
            append(journal, record)
            if next(left, None) is None:
                raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "append", append_and_end)
            ended = run(*arguments, *COMPARED, "-o", tmp_path)
        assert isinstance(ended.exception, KilledError)
    done = run(*arguments, *COMPARED, "-o", tmp_path)
    assert done.exit_code == 0, done.stderr
    assert files(tmp_path) == files(whole)
    results = [json.loads((place / "results.json").read_text(encoding="utf-8")) for place in (tmp_path, whole)]
    assert results[0]["collections"] == results[1]["collections"]


def test_a_journal_from_before_costs_were_kept_is_read(tmp_path: Path) -> None:
    saved = Path(__file__).parent / "kept" / "out" / "small" / "fake.journal.jsonl"
    place = tmp_path / "old.journal.jsonl"
    place.write_bytes(saved.read_bytes())
    journal = Journal(place)
    assert journal.shards == 1
    assert {(item.calls, item.read_tokens, item.repaired) for item in journal.outcomes()} == {(None, None, 0)}
    journal.append_shard([Outcome("q", ["d"], [1.0], calls=2, read_tokens=7)])
    journal.append_order_tau("q", None)
    again = Journal(place)
    assert (again.shards, again.order_taus) == (2, {"q": None})


# Told before anything is ranked


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scorer", "icr", "--scorer", "setwise", "--depth", "30"], r"tiny\+setwise: 30 documents are more than the"),
        (["--scorer", "setwise", "--strategy", "sliding:size=28"], "strategy 'sliding:size=28': 28 documents are more"),
        (["--scorer", "listwise", "--strategy", "fusion:method=scores,first=bm25"], "kind 'order'|order"),
        (["--scorer", "attention"], "has no blockrank.json"),
        (["--scorer", "scalar", "--scorer", "attention"], "has no blockrank.json"),
    ],
)
def test_what_does_not_go_together_is_told_before_weights_are_loaded(
    options: list[str], words: str, folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockrank.model, "load_model", None)
    told = failed(run(folder, "--model", model, *options, "-o", tmp_path / "out"))
    assert re.search(words, told)
    assert not list(tmp_path.rglob("*.journal.jsonl"))


def test_a_scorer_that_cannot_read_the_model_is_told_before_the_others_rank(
    arguments: list[Any], tmp_path: Path
) -> None:
    told = failed(run(*arguments, "--scorer", "icr", "--scorer", "pointwise:yes=maybe", "-o", tmp_path))
    assert "must be one token of this tokenizer" in told
    assert not list(tmp_path.rglob("*.journal.jsonl"))
