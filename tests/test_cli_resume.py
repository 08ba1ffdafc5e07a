"""`blockrank rank --resume`: a kill costs only what was in hand, and the output is that of a run without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import failed
from typer.testing import CliRunner

from blockrank import Ranker
from blockrank.cli import app
from blockrank.types import ModelError

WORDS = ("harbour", "engine", "willow", "copper", "lantern", "meadow", "signal", "anchor", "quartz", "river")


def write_requests(path: Path, count: int) -> Path:
    texts = [[f"{word} {i}" for word in WORDS[: 2 + i % 5]] for i in range(count)]
    rows = [{"query": f"{WORDS[i % 10]} {i}", "query_id": f"q{i}", "documents": texts[i]} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["rank", *arguments])


def test_a_run_that_failed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests, output = str(write_requests(tmp_path / "r.jsonl", 150)), tmp_path / "out.trec"
    assert run("--requests", requests, "--trec", "-o", str(tmp_path / "plain.trec")).exit_code == 0
    arguments = ("--requests", requests, "--trec", "-o", str(output), "--resume")
    rank_many, seen = Ranker.rank_many, []

    def broken(self: Ranker, group: Any) -> Any:
        seen.append(len(group))
        if len(seen) == 2:
            raise ModelError("no more.")
        return rank_many(self, group)

    monkeypatch.setattr(Ranker, "rank_many", broken)
    assert failed(run(*arguments)).endswith("no more.\n")
    assert not output.exists(), "no half of an output"
    other = failed(run(*arguments, "--top-k", "2"))
    assert "out.trec.resume was made with other settings of out.trec: top_k was None, now 2." in other
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert seen == [64, 64, 64, 22], "what was finished is not ranked again"
    assert output.read_bytes() == (tmp_path / "plain.trec").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.trec", "plain.trec", "r.jsonl"]


def test_cuts_are_told_at_the_end(tmp_path: Path) -> None:
    requests = str(write_requests(tmp_path / "r.jsonl", 5))
    output = tmp_path / "out.jsonl"
    result = run(
        "--requests", requests, "--json", "-k", "1", "-o", str(output), "--resume", "--max-segment-tokens", "3"
    )
    assert result.stderr.startswith("blockrank: 20 of 20 documents were cut to fit 3 tokens"), result.stderr
    assert [len(json.loads(line)["results"]) for line in output.read_text(encoding="utf-8").splitlines()] == [1] * 5


def test_usage(tmp_path: Path) -> None:
    requests = str(write_requests(tmp_path / "r.jsonl", 1))
    for arguments in (["q", requests, "--resume"], ["--requests", requests, "--ray"], ["--requests", "-", "--resume"]):
        result = run(*arguments)
        assert (result.exit_code, "--requests FILE and --output FILE" in " ".join(result.stderr.split())) == (2, True)
    assert run("--requests", requests, "--ray-workers", "2").exit_code == 2
    output = ["-o", str(tmp_path / "o"), "--ray"]
    assert run("--requests", requests, *output, "--device", "cuda:1").exit_code == 2
