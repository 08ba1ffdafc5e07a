"""`--strategy`: the same option of every command that loads a ranker, and the same rankings as in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from blockrank import Document, FakeRanker, InputError, Ranker
from blockrank.cli import app
from blockrank.cli.console import load_check
from blockrank.data import read_requests, read_training_requests, write_collection
from blockrank.strategies import STRATEGIES, in_strategies
from blockrank.strategies.checking import StrategyCheck
from blockrank.types import RankRequest

QUERY = "who wrote Dracula"
TEXTS = [
    "The Irish coast is rainy.", "Bram Stoker wrote Dracula in 1897.", "Mary Shelley wrote Frankenstein.",
    "A harbour has a lantern.", "Copper is a metal.",
]  # fmt: skip


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    rows = [{"query": QUERY, "query_id": f"q{i}", "documents": TEXTS[i:]} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)])


def lines_of(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def ids(rows: list[dict[str, Any]]) -> list[list[int]]:
    return [[item["index"] for item in row["results"]] for row in rows]


def test_rank_asks_as_the_strategy_does(requests: Path, mini: Ranker) -> None:
    found = lines_of(run("rank", "--requests", requests, "--json", "--strategy", "sliding:size=2,step=1"))
    expected = STRATEGIES.make("sliding:size=2,step=1", mini).rank_many(read_requests(requests))
    assert ids(found) == [[entry.index for entry in ranking] for ranking in expected]
    assert [row["calls"] for row in found] == [4, 3, 2]
    assert [row["kind"] for row in found] == ["order"] * 3


def test_several_wrap_each_other_from_the_inside(requests: Path, mini: Ranker) -> None:
    text = "sliding:size=2,step=1+heap:size=3,top=1"
    rows = lines_of(run("rank", "--requests", requests, "--json", "--strategy", text))
    ranker: Any = in_strategies(mini, text)
    assert (ranker.name, ranker.ranker.name) == ("heap", "sliding")
    expected = ranker.rank_many(read_requests(requests))
    assert ids(rows) == [[entry.index for entry in ranking] for ranking in expected]
    assert [row["calls"] for row in rows] == [ranking.calls for ranking in expected]
    assert rows[-1]["calls"] == 2, "a family of three, in two windows"


def test_full_is_no_strategy(requests: Path, tmp_path: Path, mini: Ranker) -> None:
    assert in_strategies(mini, "full") is in_strategies(mini, None) is mini
    options = ("rank", "--requests", requests, "--json", "--resume", "-o", tmp_path / "out.jsonl")
    assert run(*options).exit_code == 0
    plain = (tmp_path / "out.jsonl").read_bytes()
    assert run(*options, "--strategy", "full").exit_code == 0, "the same settings as without the option"
    assert (tmp_path / "out.jsonl").read_bytes() == plain


def test_a_plus_stands_between_strategies_and_in_values() -> None:
    ranker: Any = in_strategies(FakeRanker(), " heap:top=2,size=3 + fusion:weight=0.5e+0,k=7 + sliding ")
    assert (ranker.name, ranker.ranker.name, ranker.ranker.ranker.name) == ("sliding", "fusion", "heap")
    assert ranker.ranker.weight == 0.5
    with pytest.raises(InputError, match="'full' means no strategy: it stands alone"):
        in_strategies(FakeRanker(), "full+sliding")
    with pytest.raises(InputError, match="strategy '' is unknown"):
        in_strategies(FakeRanker(), "+sliding")


def test_ranking_goes_on_only_under_the_same_strategy(requests: Path, tmp_path: Path, mini: Ranker) -> None:
    options = ("rank", "--requests", requests, "--json", "--resume", "-o", tmp_path / "out.jsonl")
    assert run(*options, "--strategy", "heap:size=3,top=2").exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = STRATEGIES.make("heap:size=3,top=2", mini).rank_many(read_requests(requests))
    assert ids(rows) == [[entry.index for entry in ranking] for ranking in expected]


def test_eval_ranks_with_a_strategy_and_keeps_it(tmp_path: Path) -> None:
    texts = {f"d{i}": text for i, text in enumerate(TEXTS)}
    folder, output = tmp_path / "small", tmp_path / "out"
    documents = [Document(text, doc_id) for doc_id, text in texts.items()]
    write_collection(folder, documents, {"q": QUERY}, {"q": {"d1": 1}})
    options = ("eval", folder, "--output", output, "--no-report", "--device", "cpu", "--latency-queries", 0)
    done = run(*options, "--strategy", "sliding:size=2,step=1", "--json")
    assert done.exit_code == 0, done.stderr
    settings = json.loads((output / "settings.json").read_text(encoding="utf-8"))
    assert "sliding:size=2,step=1" in json.dumps(settings)
    (path,) = output.rglob("mini*.journal.jsonl")
    journal = path.read_bytes()
    assert run(*options, "--strategy", "sliding:size=3,step=1", "--strategy", "full").exit_code == 0
    assert path.read_bytes() == journal
    assert {found.name for found in output.rglob("mini*.trec")} == {
        "mini.trec", "mini+sliding.size2.step1.trec", "mini+sliding.size3.step1.trec",
    }  # fmt: skip


def test_search_and_teach_take_one(requests: Path, tmp_path: Path, mini: Ranker) -> None:
    (tmp_path / "notes").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "notes" / f"{number}.txt").write_text(text, encoding="utf-8")
    found = lines_of(
        run("search", tmp_path / "notes", "who wrote Dracula", "--json", "--strategy", "bubble:size=2,top=1")
    )
    assert found[0]["score"] == -1.0
    taught = tmp_path / "taught.jsonl"
    options = ("data", "teach", requests, "--output", taught, "--strategy", "sliding:size=2,step=1")
    done = run(*options, "--teacher", "embedded", "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    for item in read_training_requests(taught, judged=False):
        ranking = STRATEGIES.make("sliding:size=2,step=1", mini).rank(item.query, item.request.candidates)
        assert item.teacher is not None
        assert [int(index) for index in np.argsort(-np.array(item.teacher))] == [entry.index for entry in ranking]
    wrong = run(*options, "--encoder", "x")
    assert wrong.exit_code == 2
    assert "--strategy is for --teacher" in wrong.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("windows", "is unknown"),
        ("sliding+windows", "is unknown"),
        ("sliding:width=3", "unknown key"),
        ("sliding:size=4,step=5", "step must lie between"),
    ],
)
def test_what_there_is_not_is_told_before_a_model_is_loaded(text: str, words: str) -> None:
    for arguments in (("rank", QUERY, "a"), ("search", ".", QUERY), ("serve",), ("mcp",), ("eval", ".")):
        wrong = run(*arguments, "--strategy", text)
        assert wrong.exit_code == 2, arguments
        assert words in " ".join(wrong.stderr.replace("│", " ").split())


def test_under_a_strategy_documents_are_checked_one_by_one() -> None:
    """A scorer that takes few documents at once takes a request of many then."""
    check = load_check(None, strategy="sliding")
    assert isinstance(check, StrategyCheck)
    assert not isinstance(load_check(None, strategy="full"), StrategyCheck)
    check(RankRequest(QUERY, [*TEXTS, ""]))
    with pytest.raises(InputError, match=r"query is .* tokens long"):
        check(RankRequest("word " * 900, TEXTS))
