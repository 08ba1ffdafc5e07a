"""`blockrank rank --resume`: a kill costs only what was in hand, and the output is that of a run without one."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import failed
from typer.testing import CliRunner

from blockrank import FakeRanker, Ranker, Ranking, RankRequest
from blockrank.cli import app
from blockrank.data import json_line, read_requests
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


class Stopping(FakeRanker):
    """A ranker that takes note of the groups it is given, and fails at one of them."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.groups, self.last = list[list[str]](), last

    def rank_many(self, requests: Iterable[RankRequest]) -> list[Ranking]:
        group = list(requests)
        self.groups.append([request.query_id for request in group])
        if len(self.groups) == self.last:
            raise ModelError("no more.")
        return super().rank_many(group)


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Stopping]:
    """150 requests of which a failure left two groups of three finished: the file, the output, and who goes on."""
    requests, output, first, second = (
        write_requests(tmp_path / "r.jsonl", 150),
        tmp_path / "out",
        Stopping(3),
        Stopping(0),
    )
    rankers = iter((first, second))
    monkeypatch.setattr("blockrank.cli.cluster.load_ranker", lambda *_, **__: next(rankers))
    assert failed(run("--requests", str(requests), "--json", "-o", str(output), "--resume")).endswith("no more.\n")
    assert [len(group) for group in first.groups] == [64, 64, 22]
    return requests, output, second


def ranked_again(stopped: tuple[Path, Path, Stopping], *options: str) -> list[str]:
    """Go on; the queries that were ranked. The output is that of all the requests."""
    requests, output, ranker = stopped
    result = run("--requests", str(requests), "--json", "-o", str(output), "--resume", *options)
    assert result.exit_code == 0, result.stderr
    expected = map(json_line, FakeRanker().rank_many(read_requests(requests)))
    assert output.read_text(encoding="utf-8").splitlines() == list(expected)
    assert not output.with_name("out.resume").exists()
    return [query_id for group in ranker.groups for query_id in group]


def test_going_on_with_long_queries_cut(stopped: tuple[Path, Path, Stopping]) -> None:
    assert ranked_again(stopped, "--cut-queries") == [f"q{i}" for i in range(128, 150)]


@pytest.mark.parametrize(
    ("correct", "again"),
    [
        (lambda rows: [*rows[:140], {**rows[140], "query": "river"}, *rows[141:]], range(128, 150)),
        (lambda rows: rows[:140] + rows[141:], [*range(128, 140), *range(141, 150)]),
        (lambda rows: rows[:5] + rows[6:], range(128, 150)),  # what stands is where it was not
        (lambda rows: [*rows[:5], {**rows[5], "query": "river"}, *rows[6:]], [5, *range(128, 150)]),
        (lambda rows: [*rows[:5], {**rows[5], "documents": ["river", "copper"]}, *rows[6:]], [5, *range(128, 150)]),
        (lambda rows: rows[::-1], range(149, 127, -1)),
        (lambda rows: rows[:100], []),
        (lambda rows: [{**row, "note": "x"} for row in rows], range(128, 150)),  # nothing that matters
    ],
)
def test_a_corrected_file_keeps_what_is_finished(
    stopped: tuple[Path, Path, Stopping], correct: Callable[[list[Any]], list[Any]], again: Iterable[int]
) -> None:
    rows = [json.loads(line) for line in stopped[0].read_text(encoding="utf-8").splitlines()]
    stopped[0].write_text("\n".join(map(json.dumps, correct(rows))), encoding="utf-8")
    assert ranked_again(stopped) == [f"q{i}" for i in again]


def test_a_ranking_that_was_changed_on_disk_is_not_passed_on(stopped: tuple[Path, Path, Stopping]) -> None:
    kept = stopped[1].with_name("out.resume") / "rankings.jsonl"
    content = kept.read_bytes()
    kept.write_bytes(content.replace(b'\\"rank\\": 1', b'\\"rank\\": 7', 1))
    assert kept.read_bytes() != content
    told = failed(run("--requests", str(stopped[0]), "--json", "-o", str(stopped[1]), "--resume"))
    assert "rankings.jsonl:1: the journal is broken here; delete" in told


@pytest.mark.parametrize("resume", [True, False])
def test_what_can_be_known_is_told_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    monkeypatch.setattr(Ranker, "from_pretrained", None)
    requests, output = write_requests(tmp_path / "r.jsonl", 100), tmp_path / "out"
    rows = [json.loads(line) for line in requests.read_text(encoding="utf-8").splitlines()]
    options = ["-o", str(output), *(["--resume"] if resume else [])]
    for change, form, sentence in (
        ({"query": "river " * 700}, "--json", r"r\.jsonl:81: query is (about )?7\d\d tokens .*\(--cut-queries\)\."),
        ({"query_id": "q 80"}, "--trec", r"r\.jsonl:81: the query_id 'q 80' is empty or holds white space"),
        ({"documents": {"a b": "x"}}, "--trec", r"r\.jsonl:81: the doc_id 'a b' is empty or holds white space"),
        ({"query_id": "q3"}, "--json", r"r\.jsonl:81: the query_id 'q3' is that of line 4"),
        ({"documents": 3}, "--json", r"r\.jsonl:81: documents must be"),
    ):
        wrong = [*rows[:80], {**rows[80], **change}, *rows[81:]]
        requests.write_text("\n".join(map(json.dumps, wrong)), encoding="utf-8")
        assert re.search(sentence, failed(run("--requests", str(requests), form, *options)))
        assert not output.exists()
    nowhere = str(tmp_path / "none" / "out")
    told = failed(run("--requests", str(requests), "--json", *options, "-o", nowhere))
    assert f"{nowhere}: cannot be written: No such file or directory." in told
    assert "cannot be written: Is a directory" in failed(
        run("--requests", str(requests), "--json", *options, "-o", str(tmp_path))
    )


@pytest.mark.parametrize("options", [["--json"], ["--trec", "--resume"]])
def test_requests_come_through_a_pipe(tmp_path: Path, options: list[str]) -> None:
    requests, pipe = write_requests(tmp_path / "r.jsonl", 70), tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_bytes, args=[requests.read_bytes()], daemon=True).start()
    result = run("--requests", str(pipe), *options, "-o", str(tmp_path / "piped"))
    assert (result.exit_code, result.stderr) == (0, "")
    assert run("--requests", str(requests), *options, "-o", str(tmp_path / "plain")).exit_code == 0
    assert (tmp_path / "piped").read_bytes() == (tmp_path / "plain").read_bytes()


def test_standard_input_is_checked_to_its_end_before_anything_is_ranked(tmp_path: Path) -> None:
    lines = write_requests(tmp_path / "r.jsonl", 3).read_text(encoding="utf-8") + "\n{"
    result = CliRunner().invoke(app, ["rank", "--requests", "-", "--json"], input=lines)
    assert ":4: not valid JSON" in failed(result)


def test_documents_of_one_query_are_checked_for_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranker, "from_pretrained", None)
    (tmp_path / "my file.txt").write_text("x", encoding="utf-8")
    assert "my file.txt' is empty or holds white space" in failed(run("q", str(tmp_path / "my file.txt"), "--trec"))
    (tmp_path / "d.jsonl").write_text('{"text": "x", "doc_id": "a b"}', encoding="utf-8")
    told = failed(run("q", "--documents", str(tmp_path / "d.jsonl"), "--trec"))
    assert "d.jsonl: the doc_id 'a b' is empty or holds white space" in told


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
