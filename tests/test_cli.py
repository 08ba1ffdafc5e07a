"""The command line: what goes to which stream, exit codes, and one sentence for every mistake."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import EXHAUSTED, exhaust, failed
from typer.testing import CliRunner

from blockrank import Document, MissingExtraError, Ranker, __version__
from blockrank.cli import app
from blockrank.cli.drawing import bar, drawing
from blockrank.layout import pack
from blockrank.model import EMBEDDED_MODEL
from blockrank.report.evidence import evidence_words as words
from blockrank.types import Evidence, RankedDocument

QUERY = "who wrote Dracula"
TEXTS = ("Mary Shelley wrote Frankenstein.", "Bram Stoker wrote Dracula in 1897.", "The Irish coast is rainy.")


@pytest.fixture
def lines(tmp_path: Path) -> str:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    return str(path)


@pytest.fixture
def requests(tmp_path: Path) -> str:
    path = tmp_path / "requests.jsonl"
    rows = [{"query": QUERY, "query_id": f"q{i}", "documents": TEXTS[i:]} for i in range(2)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def run(*arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, arguments, input=stdin)


def command(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    code = "from blockrank.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], input=stdin, capture_output=True, text=True, check=False
    )


# The real process


def test_the_command_ranks_standard_input() -> None:
    done = command("rank", QUERY, "--lines", "-", stdin="\n".join(TEXTS))
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()[:2]
    assert first == QUERY
    assert second.split()[0] == "1"
    assert "stdin:2  Bram Stoker" in second


def test_explain_shows_the_words_that_made_a_score(lines: str, requests: str) -> None:
    shown = run("rank", QUERY, "--lines", lines, "--explain").stdout.splitlines()
    assert [line.startswith("    evidence: ") for line in shown] == [False, *[False, True] * 3]
    assert set(re.findall(r"[A-Za-z]+(?= 0\.)", shown[2])) >= {"wrote", "Dracula"}
    entry = json.loads(run("rank", QUERY, "--lines", lines, "--explain", "--json").stdout)["results"][0]
    best = max(entry["evidence"], key=lambda item: item["share"])
    assert entry["text"][best["start"] : best["end"]] in ("wrote", "Dracula")
    wrong = run("rank", "--requests", requests, "--explain", "--trec")
    assert (wrong.exit_code, "--explain takes no --trec" in wrong.stderr) == (2, True)


def test_the_terminal_marks_evidence(mini: Ranker) -> None:
    long = " ".join(["The Irish coast is rainy."] * 30 + ["Bram Stoker wrote Dracula."])
    drawn = drawing(mini.rank(QUERY, [long, *TEXTS], evidence=True), 100)
    assert max(map(len, drawn.plain.splitlines())) <= 100
    marked = {drawn.plain[span.start : span.end].strip() for span in drawn.spans if "bright_yellow" in str(span.style)}
    assert {"wrote", "Dracula"} <= marked
    assert "\N{HORIZONTAL ELLIPSIS}" in drawn.plain


def test_tokens_of_a_word_are_put_together() -> None:
    document = Document('say "Draculas" 2x', "d", "Re reading")
    parts = [("title", 0, 2), ("title", 3, 7), ("title", 7, 10), ("text", 0, 3), ("text", 3, 5), ("text", 5, 9)]
    parts += [("text", 9, 13), ("text", 13, 14), ("text", 15, 16), ("text", 16, 17)]
    evidence = tuple(Evidence(field, start, end, 0.1) for field, start, end in parts)  # type: ignore[arg-type]
    found = words(RankedDocument(1, 1.0, 0, document, evidence=evidence))
    fields = {"title": document.title, "text": document.text}
    assert [fields[item.field][item.start : item.end] for item in found] == [
        "Re", "reading", "say", '"', "Draculas", '"', "2x",
    ]  # fmt: skip
    assert sum(item.share for item in found) == pytest.approx(1.0)


def test_a_broken_line_far_down_leaves_standard_output_empty(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    rows = [json.dumps({"query": "q", "query_id": str(i), "documents": ["x"]}) for i in range(200)]
    path.write_text("\n".join([*rows, "{"]), encoding="utf-8")
    assert "in.jsonl:201: not valid JSON" in failed(run("rank", "--requests", str(path), "--trec"))


def test_the_command_fails_in_one_sentence_and_leaves_no_file(tmp_path: Path) -> None:
    broken = tmp_path / "in.jsonl"
    broken.write_text(json.dumps({"query": "q", "documents": ["x"]}) + "\n{", encoding="utf-8")
    done = command("rank", "--requests", str(broken), "--json", "--output", str(tmp_path / "out.jsonl"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"blockrank: error: {broken}:2: not valid JSON")
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_the_command_ends_quietly_when_its_reader_leaves(requests: str) -> None:
    code = "from blockrank.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "rank", "--requests", requests, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_usage_goes_to_standard_error() -> None:
    done = command("rank", QUERY)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there are no documents" in done.stderr


# Ranking


def test_version_and_help() -> None:
    assert run("--version").stdout == f"blockrank {__version__}\n"
    commands = ("rank", "search", "eval", "analyze", "validate", "inspect", "doctor", "train")
    assert all(name in run("--help").stdout for name in commands)
    assert run().exit_code == 2


@pytest.mark.parametrize("kind", EXHAUSTED)
def test_a_device_without_memory_is_told_in_one_sentence(
    kind: str, lines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        exhaust(kind)

    monkeypatch.setattr("blockrank.cli.rank.load_ranker", load)
    assert "the device's memory does not suffice" in failed(run("rank", QUERY, "--lines", lines))


def test_json_is_an_object_a_line(requests: str) -> None:
    result = run("rank", "--requests", requests, "--json", "-k", "1")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["query_id"] for row in rows] == ["q0", "q1"]
    assert [[entry["doc_id"] for entry in row["results"]] for row in rows] == [["1"], ["0"]]
    assert rows[0]["results"][0]["text"] == TEXTS[1]


def test_trec_run_of_documents(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    rows = [{"text": text, "_id": f"d{i}"} for i, text in enumerate(TEXTS)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = run("rank", QUERY, "--documents", str(path), "--trec")
    found = [line.split() for line in result.stdout.splitlines()]
    assert [line[2] for line in found] == ["d1", "d0", "d2"]
    assert [line[3] for line in found] == ["1", "2", "3"]
    assert float(found[0][4]) > float(found[1][4]) > float(found[2][4])


def test_output_is_the_same_as_on_standard_output(tmp_path: Path, lines: str) -> None:
    place = tmp_path / "run.txt"
    result = run("rank", QUERY, "--lines", lines, "--json", "--output", str(place))
    assert (result.exit_code, result.stdout) == (0, "")
    assert place.read_text(encoding="utf-8") == run("rank", QUERY, "--lines", lines, "--json").stdout


def test_every_file_is_a_document(tmp_path: Path) -> None:
    for index, text in enumerate(TEXTS):
        (tmp_path / f"{index}.txt").write_text(text, encoding="utf-8")
    result = run("rank", QUERY, *(str(tmp_path / f"{i}.txt") for i in range(3)))
    assert [Path(line.split()[2]).name for line in result.stdout.splitlines()[1:]] == ["1.txt", "0.txt", "2.txt"]


def test_cuts_are_summed_up_and_listed_on_demand(lines: str) -> None:
    result = run("rank", QUERY, "--lines", lines, "--max-segment-tokens", "5", "-k", "1")
    assert result.exit_code == 0
    assert result.stderr == (
        "blockrank: 3 of 3 documents were cut to fit 5 tokens (at most 5 tokens were left out); --verbose lists them.\n"
    )
    listed = run("rank", QUERY, "--lines", lines, "--max-segment-tokens", "5", "--verbose")
    assert listed.stderr.count("was cut") == 3
    assert [type(handler) for handler in logging.getLogger("blockrank").handlers] == [logging.NullHandler]


def test_control_characters_do_not_reach_the_terminal() -> None:
    result = run("rank", QUERY, "--lines", "-", stdin="Dracula \x1b[31mred\nother")
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(("share", "filled"), [(0.0, 0), (1.0, 16), (0.5, 8)])
def test_bars(share: float, filled: int) -> None:
    assert bar(share) == "█" * filled + " " * (16 - filled)


# Mistakes


@pytest.mark.parametrize(
    "arguments",
    [
        ["rank"],
        ["rank", QUERY],
        ["rank", QUERY, "f.txt", "--documents", "f.jsonl"],
        ["rank", QUERY, "--documents", "f.jsonl", "--lines"],
        ["rank", QUERY, "--requests", "f.jsonl"],
        ["rank", "--requests", "f.jsonl", "--documents", "f.jsonl"],
        ["rank", "--requests", "f.jsonl", "--lines"],
        ["rank", "--requests", "f.jsonl", "--json", "--trec"],
        ["rank", QUERY, "f.txt", "--top-k", "0"],
        ["rank", QUERY, "f.txt", "--max-tokens", "0"],
        ["rank", QUERY, "f.txt", "--max-segment-tokens", "-1"],
        ["rank", QUERY, "f.txt", "--colour"],
        ["inspect", QUERY],
        ["train", "missing.toml"],
        ["rerank"],
    ],
)
def test_wrong_usage_is_told(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


def test_mistakes_in_inputs_are_one_sentence(tmp_path: Path, lines: str) -> None:
    assert "missing.txt: cannot be read: No such file" in failed(run("rank", QUERY, "missing.txt"))
    assert "query is empty" in failed(run("rank", " ", lines))
    assert "no readable character" in failed(run("rank", QUERY, "-", stdin=""))
    surrogate = tmp_path / "surrogate.jsonl"
    surrogate.write_text('{"text": "x"}\n{"text": "\\ud800"}\n', encoding="utf-8")
    assert "surrogate.jsonl:2: documents[1].text holds a lone surrogate" in failed(
        run("rank", QUERY, "--documents", str(surrogate))
    )


def test_mistakes_with_models_are_one_sentence(tmp_path: Path, lines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert f"{tmp_path} has no blockrank.json" in failed(run("rank", QUERY, lines, "--model", str(tmp_path)))
    (tmp_path / "blockrank.json").write_text("{}", encoding="utf-8")
    assert "is not a valid RankSpec" in failed(run("rank", QUERY, lines, "--model", str(tmp_path)))
    assert "'no-such-model'" in failed(run("rank", QUERY, lines, "--model", "no-such-model"))
    assert "device 'cuda:99' cannot be used" in failed(run("rank", QUERY, lines, "--device", "cuda:99"))
    assert "backend 'x' is unknown" in failed(run("rank", QUERY, lines, "--backend", "x"))


def test_a_run_refuses_ids_with_white_space(tmp_path: Path) -> None:
    path = tmp_path / "a b.txt"
    path.write_text("Bram Stoker", encoding="utf-8")
    assert "a TREC run cannot carry it" in failed(run("rank", QUERY, str(path), "--trec"))


# Inspection and doctor


def test_inspect_shows_what_the_model_would_read(lines: str) -> None:
    shown = run("inspect", QUERY, "--lines", lines).stdout
    assert "document 1" in shown
    assert "reads all of it" in shown
    found = json.loads(run("inspect", QUERY, "--lines", lines, "--json", "--max-segment-tokens", "6").stdout)
    assert [segment["kind"] for segment in found["segments"]] == ["instruction", *["document"] * 3, "query"]
    assert found["totals"]["tokens"] == sum(segment["tokens"] for segment in found["segments"])
    assert found["totals"]["cut_documents"] == 3
    assert max(segment["tokens"] for segment in found["segments"][1:4]) == 6


def test_inspect_reads_no_weights(tmp_path: Path, lines: str) -> None:
    for path in EMBEDDED_MODEL.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, tmp_path)
    shown = run("inspect", QUERY, "--lines", lines, "--model", str(tmp_path))
    assert (shown.exit_code, shown.stdout) == (0, run("inspect", QUERY, "--lines", lines).stdout)


def test_inspect_counts_the_pairs_of_the_dense_mask() -> None:
    from blockrank.attention.reference import dense_mask
    from blockrank.cli.pattern import SCORED, UNREAD, WHOLE, blocks, draw, pairs_read
    from blockrank.layout.prompt import segments
    from blockrank.spec import RankSpec
    from blockrank.types import RankRequest

    tokenizer = Ranker.from_pretrained(probe=False).model.tokenizer
    assert tokenizer is not None
    for template, reads in (("blockrank", "all"), ("query-free", "own")):
        spec = RankSpec.of(layer=0, template=template, query_reads=reads)
        tokenised = tokenizer.tokenise(segments(spec.prompt, RankRequest(QUERY, TEXTS)), spec)
        layout = pack([tokenised], spec)
        assert pairs_read(layout) == int(dense_mask(layout).sum())
        matrix = blocks(layout)
        assert (matrix[1:4, 0] == WHOLE).all()
        assert (matrix[4, 1:4] == (WHOLE if reads == "all" else SCORED)).all()
        assert matrix[1, 2] == UNREAD
    names = [f"document {i}" for i in range(60)]
    wide = draw(matrix[:1, :1].repeat(60, 0).repeat(60, 1), names)
    assert "36 segments are not drawn" in wide


def test_inspect_draws_a_picture(tmp_path: Path, lines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "pattern.png"
    assert run("inspect", QUERY, "--lines", lines, "--png", str(place)).exit_code == 0
    assert place.read_bytes().startswith(b"\x89PNG")
    place.unlink()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "install blockrank[plot]" in failed(run("inspect", QUERY, "--lines", lines, "--png", str(place)))
    assert not place.exists()
    assert issubclass(MissingExtraError, ImportError)


def test_doctor_passes_here() -> None:
    result = run("doctor")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "ok"
    found = json.loads(run("doctor", "--json").stdout)
    assert found["ok"] is True
    assert [check["name"] for check in found["checks"]] == ["load", "probe", "rank"]
    assert {item["name"]: item["reason"] for item in found["backends"]["available"]}["sdpa"] is None


def test_doctor_fails_where_the_model_does(tmp_path: Path) -> None:
    result = run("doctor", "--model", str(tmp_path), "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["ok"] is False
    assert "has no blockrank.json" in found["checks"][-1]["detail"]
