"""`blockrank validate`: every problem by line on standard output, what was found on standard error."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import failed
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from blockrank import Document, InputError, RankRequest
from blockrank.cli import app
from blockrank.data import read_run, request_line, run_lines, validate_run

GOOD = ["q Q0 a 1 2 t", "q Q0 b 2 1 t"]


def run(*arguments: str, stdin: bytes | None = None) -> Any:
    return CliRunner().invoke(app, ["validate", *arguments], input=stdin)


def written(folder: Path, *lines: str) -> str:
    path = folder / "file"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
    return str(path)


def problems(folder: Path, *lines: str, kind: str = "run") -> list[str]:
    """What is wrong with lines, each without the name of the file; exit code and summary agree with it."""
    path = written(folder, *lines)
    result = run(path, "--kind", kind)
    found = [line.removeprefix(f"{path}:") for line in result.stdout.splitlines()]
    assert result.exit_code == any(": error: " in f":{line}" for line in found)
    assert run(path, "--kind", kind, "--strict").exit_code == bool(found)
    assert ("no problems" in result.stderr) == (not found)
    return found


def test_a_clean_run_is_counted(tmp_path: Path) -> None:
    path = written(tmp_path, *GOOD, "r Q0 a 1 -3 t")
    result = run(path)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.splitlines() == [
        f"blockrank: {path} was taken for a run; --kind says otherwise.",
        f"blockrank: {path}: 2 queries, 3 documents, 1 to 2 a query; no problems.",
    ]


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["q Q0 c 3 1"], ["3: error: a run has six fields, query_id Q0 doc_id rank score tag; here are 5."]),
        (["q Q0 c 3 nan t"], ["3: error: the score 'nan' is not a finite number."]),
        (["q Q0 c x 0 t"], ["3: error: the rank 'x' is not a whole number."]),
        (["q Q0 a 3 0 t"], ["3: error: the doc_id 'a' of the query_id 'q' is that of line 1."]),
        (["q Q0 c 3 1.5 t"], ["2: error: rank 2 has a lower score than rank 3 of line 3."]),
        (["q Q0 c 4 0 t"], ["3: warning: rank 4 comes after rank 2 for the query_id 'q'."]),
        (["q Q0 c 2 0 t"], ["3: warning: rank 2 comes after rank 2 for the query_id 'q'."]),
        (["r Q0 a 0 1 t"], ["3: warning: the ranks of the query_id 'r' start at 0, not at 1."]),
        (["q Q0 c 3 0 u", "q Q0 d 4 -1 u"], ["3: warning: the tag 'u' is not the 't' of line 1."]),
        (
            ["r Q0 a 1 1 t", "q Q0 c 3 0 t"],
            ["4: warning: the query_id 'q' was left at line 2 and comes back."],
        ),
        (
            ["q Q0 c 3 1.00000001 t", "q Q0 d 4 1 t"],
            [
                "2: error: 3 documents of the query_id 'q' tie at this score in float32 (the next is line 3): "
                "evaluators order them by doc_id."
            ],
        ),
    ],
)
def test_every_kind_of_problem_of_a_run(tmp_path: Path, lines: list[str], found: list[str]) -> None:
    assert problems(tmp_path, *GOOD) == []
    assert problems(tmp_path, *GOOD, *lines) == found


def test_warnings_alone_are_no_failure(tmp_path: Path) -> None:
    """Runs that BEIR writes have rank 0 on every line."""
    beir = written(tmp_path, "q Q0 a 0 2 t", "q Q0 b 0 1 t")
    result = run(beir)
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 2)
    assert "0 documents" not in result.stderr
    assert "2 warnings." in result.stderr
    assert run(beir, "--strict").exit_code == 1
    assert run(beir, "--limit", "0").exit_code == 0  # what is not shown counts as what is
    assert run(written(tmp_path, *GOOD), "--strict").exit_code == 0
    assert run(written(tmp_path, *GOOD, "q Q0 c 3 x t"), "--limit", "0").exit_code == 1


@pytest.mark.parametrize("name", ["run", "run.txt", "run.xz", "run.gz"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_what_is_packed_is_known_by_its_bytes_whatever_its_name(tmp_path: Path, name: str, pack: Any) -> None:
    path = tmp_path / name
    path.write_bytes(pack("\n".join(GOOD).encode()))
    assert run(str(path)).exit_code == 0
    assert read_run(path) == {"q": {"a": 2.0, "b": 1.0}}
    assert read_run(io.BytesIO(path.read_bytes())) == {"q": {"a": 2.0, "b": 1.0}}
    assert run("-", stdin=path.read_bytes()).exit_code == 0


@pytest.mark.parametrize(
    ("pack", "packer"),
    [
        (bz2.compress, "bzip2"),
        (lambda content: b"\x28\xb5\x2f\xfd" + content, "zstandard"),
        (lambda content: b"PK\x03\x04" + content, "zip"),
    ],
)
def test_what_is_packed_otherwise_is_one_sentence(tmp_path: Path, pack: Any, packer: str) -> None:
    path = tmp_path / "run.trec"
    path.write_bytes(pack("\n".join(GOOD).encode()))
    assert f"run.trec: it is packed by {packer}; gzip and xz are read, others are not." in failed(run(str(path)))


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[gzip.compress("\n".join(GOOD).encode())], daemon=True)
    writer.start()
    assert run(str(pipe)).exit_code == 0
    writer.join(10)
    assert not writer.is_alive()


def test_all_problems_come_in_the_order_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "run.gz"
    rows = [b"\xef\xbb\xbfq Q0 a 1 1 t", b"q Q0 \xff 2 1 t", b"", b"q Q0 b 2 1 u", b"nonsense", b"q Q0 c x 2 t"]
    path.write_bytes(gzip.compress(b"\r\n".join(rows)))
    result = run(str(path))
    assert [line.removeprefix(f"{path}:").split(":")[:2] for line in result.stdout.splitlines()] == [
        ["1", " error"], ["2", " error"], ["4", " warning"], ["5", " error"], ["6", " error"],
    ]  # fmt: skip
    assert "1 query, 3 documents, 3 a query; 4 errors and 1 warning." in result.stderr


def test_the_rest_is_counted(tmp_path: Path) -> None:
    path = written(tmp_path, *["x"] * 5)
    result = run(path, "--kind", "run", "--limit", "2")
    assert result.exit_code == 1
    assert [line.split(": ")[0] for line in result.stdout.splitlines()] == [
        f"{path}:1", f"{path}:2", "3 more problems not shown.",
    ]  # fmt: skip
    assert run(path, "--kind", "run", "--limit", "0").stdout == "5 more problems not shown.\n"
    assert "0 documents; 5 errors." in result.stderr


@given(
    st.dictionaries(
        st.sampled_from("qr"),
        st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([0.0, 1.0, 1 + 1e-9, 2.0]), min_size=1),
        min_size=1,
    )
)
def test_what_we_write_is_clean(run: dict[str, dict[str, float]]) -> None:
    lines = [line for query_id, scores in run.items() for line in run_lines(query_id, scores)]
    assert validate_run(as_stream(lines)) == []


@given(st.lists(st.tuples(*map(st.sampled_from, ("qr", "ab", "012", ("0", "1", "nan"), "tu"))), max_size=6))
def test_what_has_no_error_is_read_in_the_order_of_its_ranks(rows: list[tuple[str, ...]]) -> None:
    lines = [f"{query_id} Q0 {doc_id} {rank} {score} {tag}" for query_id, doc_id, rank, score, tag in rows]
    errors = [problem for problem in validate_run(as_stream(lines)) if problem.severity == "error"]
    try:
        read = read_run(as_stream(lines))
    except InputError:
        assert errors
        return
    if not errors:
        ranks = {(row[0], row[1]): int(row[2]) for row in rows}
        for query_id, scores in read.items():
            assert sorted(scores, key=lambda doc_id: ranks[query_id, doc_id]) == list(scores)


def as_stream(lines: list[str]) -> Any:
    return io.BytesIO("\n".join(lines).encode())


# Other kinds


@pytest.mark.parametrize(
    ("lines", "kind", "summary"),
    [
        (["q 0 a 1", "q 0 b 0"], "judgements", "1 query, 2 documents, 2 a query"),
        (["query-id\tcorpus-id\tscore", "q\ta\t1"], "judgements", "1 query, 1 document, 1 a query"),
        (['{"query": "q", "documents": ["x", "y"]}'], "requests", "1 query, 2 documents, 2 a query"),
        (["", '{"_id": "d", "text": "x"}'], "documents", "1 document"),
        (["{", '{"_id": "d", "text": "x"}'], "documents", None),  # told by the next line
    ],
)
def test_the_kind_is_told_from_the_lines(tmp_path: Path, lines: list[str], kind: str, summary: str | None) -> None:
    path = written(tmp_path, *lines)
    result = run(path)
    assert f"{path} was taken for {kind}; " in result.stderr
    if summary:
        assert f"{path}: {summary}; no problems.\n" in result.stderr
    assert result.exit_code == (0 if summary else 1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", ""),
        ("two words\n", ""),
        ("{\n", " (line 1: not valid JSON: Expecting property name enclosed in double quotes at column 2)"),
        ('\n{"query": "a", "query": "b"}\n{\n', " (line 2: the key 'query' is there twice)"),
    ],
)
def test_a_kind_that_cannot_be_told_is_asked_for(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    result = run(str(path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"blockrank: error: {path}: its lines do not tell what it is{reason}; give its kind.\n"


def test_problems_of_judgements(tmp_path: Path) -> None:
    lines = ["query-id\tcorpus-id\tscore", "q\ta\t1", "q\ta\t1", "q\tb\t0.5", "q b 1", "q\tc\t1.0"]
    assert problems(tmp_path, *lines, kind="qrels") == [
        "3: error: the doc_id 'a' of the query_id 'q' is that of line 2.",
        "4: error: the relevance '0.5' is not a whole number.",
        "5: error: judgements have 3 fields, query_id doc_id relevance; here are 1.",
    ]


def test_problems_of_requests(tmp_path: Path) -> None:
    good = request_line(RankRequest("q", [Document("x", "a")], "1"))
    lines = [
        good,
        good,
        "{",
        json.dumps({"query": "q"}),
        json.dumps({**json.loads(good), "query_id": 2, "positives": [1]}),
    ]
    assert problems(tmp_path, *lines, kind="requests") == [
        "2: error: the query_id '1' is that of line 1.",
        "3: error: not valid JSON: Expecting property name enclosed in double quotes at column 2.",
        "4: error: there is no 'documents'; the keys are ['query'].",
        "5: error: positives lists 1, which is no candidate.",
    ]


def test_problems_of_documents(tmp_path: Path) -> None:
    lines = ['{"text": "x", "id": 1}', '{"text": ""}', '{"_id": "1", "text": "y"}']
    assert problems(tmp_path, *lines, kind="documents") == [
        "2: warning: documents[1] has no readable character: it is ranked last.",
        "3: warning: the doc_id '1' is that of line 1.",
    ]


@pytest.mark.parametrize("kind", ["run", "qrels", "requests", "documents"])
def test_nothing_is_a_problem_of_the_whole(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, "", " ")
    result = run(path, "--kind", kind)
    assert (result.exit_code, result.stdout) == (1, f"{path}: error: there is nothing in it.\n")


def test_standard_input_and_files_that_are_not_there(tmp_path: Path) -> None:
    result = run("-", stdin="\n".join(GOOD).encode())
    assert (result.exit_code, result.stdout) == (0, "")
    assert "1 query, 2 documents, 2 a query; no problems." in result.stderr
    missing = run(str(tmp_path / "missing"))
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert missing.stderr == f"blockrank: error: {tmp_path / 'missing'}: cannot be read: No such file or directory.\n"
    assert run("x", "--kind", "prose").exit_code == 2
