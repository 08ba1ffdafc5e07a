"""Readers name the file and line of what is wrong; runs stay in order; files appear whole or not at all."""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockrank import Document, FakeRanker, InputError, RankRequest
from blockrank.data import (
    atomic_file,
    json_line,
    read_documents,
    read_requests,
    read_texts,
    strictly_decreasing,
    trec_lines,
)

GOOD = {"query": "a b", "documents": ["b", "c"]}


def jsonl(folder: Path, *lines: Any, name: str = "in.jsonl") -> Path:
    """A file of JSON lines; a line that is text already is written as it is."""
    path = folder / name
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
    return path


def test_documents_take_the_common_spellings(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"text": "x"}, "", {"text": "y", "_id": "b", "title": "t"}, {"text": "z", "id": 7, "n": 1})
    documents = read_documents(path)
    assert [(d.doc_id, d.title, d.text) for d in documents] == [("0", "", "x"), ("b", "t", "y"), ("7", "", "z")]
    assert documents[2].metadata == {"n": 1}


def test_gzip_byte_order_mark_and_streams_are_read(tmp_path: Path) -> None:
    content = "\ufeff" + json.dumps({"text": "caf\u00e9"}) + "\r\n"
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    assert read_documents(tmp_path / "in.jsonl.gz")[0].text == "caf\u00e9"
    assert read_documents(io.BytesIO(content.encode()))[0].text == "caf\u00e9"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not valid JSON: Expecting property name enclosed in double quotes at column 2."),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "a JSON object is needed, not an array."),
        ("3", "a JSON object is needed, not a number."),
        ({"texts": "x"}, "documents[1] has no 'text'; its keys are ['texts']."),
        ({"text": None}, "documents[1].text must be a string, not NoneType."),
        ({"text": " \t"}, "documents[1] is empty"),
        ('{"text": "\\ud800"}', "documents[1].text holds a lone surrogate (U+D800) at character 0"),
        ({"text": "x", "doc_id": "a"}, "the doc_id 'a' is that of line 1."),
    ],
)
def test_a_broken_document_names_file_and_line(tmp_path: Path, line: Any, complaint: str) -> None:
    path = jsonl(tmp_path, {"text": "fine", "doc_id": "a"}, "", line)
    with pytest.raises(InputError) as caught:
        read_documents(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert complaint in str(caught.value)


def test_bytes_that_are_no_text_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(InputError, match=r"in\.txt:2: not valid UTF-8 \(byte 1 of the line\)\."):
        read_texts(path)


@pytest.mark.parametrize("name", ["missing.jsonl", ".", "broken.gz", "short.gz"])
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "broken.gz").write_bytes(b"not gzip")
    (tmp_path / "short.gz").write_bytes(gzip.compress(os.urandom(1000))[:-20])
    with pytest.raises(InputError, match=r"cannot be read: .+\.$|not valid UTF-8") as caught:
        read_documents(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_source_is_refused(content: str) -> None:
    for read in (read_documents, read_texts, lambda source: list(read_requests(source))):
        with pytest.raises(InputError, match=r"there (are|is) no"):
            read(io.BytesIO(content.encode()))


def test_texts_are_files_or_lines(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("\none\n\n two \n", encoding="utf-8")
    assert read_texts(path) == [Document("one\n\ntwo", str(path))]
    assert read_texts(path, lines=True) == [Document("one", f"{path}:2"), Document("two", f"{path}:4")]


def test_requests_take_lists_and_objects_of_documents(tmp_path: Path) -> None:
    released = {"doc_id": "5", "title": "t", "text": "x"}
    path = jsonl(
        tmp_path,
        GOOD,
        {"query": "q", "query_id": "r1", "documents": [released], "answer_ids": ["5"]},
        {"query": "q", "query_id": 9, "documents": {"a": "x", "b": {"text": "y", "title": "t"}}},
    )
    requests = list(read_requests(path))
    assert [request.query_id for request in requests] == ["0", "r1", "9"]
    assert [[(d.doc_id, d.content) for d in r.candidates] for r in requests] == [
        [("0", "b"), ("1", "c")],
        [("5", "t x")],
        [("a", "x"), ("b", "t y")],
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({"query": "q"}, "there is no 'documents'; the keys are ['query']."),
        ({"documents": ["x"]}, "there is no 'query'"),
        ({"query": " ", "documents": ["x"]}, "query is empty"),
        ({"query": 3, "documents": ["x"]}, "query must be a string, not int."),
        ({"query": "q", "documents": []}, "documents is empty"),
        ({"query": "q", "documents": {}}, "documents is empty"),
        ({"query": "q", "documents": "x"}, "documents must be a sequence of documents, not str."),
        ({"query": "q", "documents": None}, "documents must be a sequence of documents, not NoneType."),
        ({"query": "q", "documents": ["x", 3]}, "documents[1] must be a string"),
        ({"query": "q", "documents": {"a": 3}}, "documents[0] must be a string"),
        (
            {"query": "q", "documents": [{"text": "x", "id": "a"}] * 2},
            "documents[1] has the doc_id 'a' of documents[0].",
        ),
        ({"query": "q", "documents": ["x"], "query_id": "0"}, "the query_id '0' is that of line 1."),
        ({"query": "q", "documents": ["x"], "query_id": [1]}, "query_id must be a string or an integer, not list."),
    ],
)
def test_a_broken_request_names_file_and_line(tmp_path: Path, line: Any, complaint: str) -> None:
    path = jsonl(tmp_path, GOOD, line)
    stream = read_requests(path)
    assert next(stream).query == "a b"  # read as a stream: what comes before is served
    with pytest.raises(InputError) as caught:
        next(stream)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert complaint in str(caught.value)


@given(st.lists(st.floats(-1, 1, width=64), max_size=40))
def test_scores_of_a_run_decrease_strictly_in_float32(scores: list[float]) -> None:
    lowered = np.array(strictly_decreasing(sorted(scores, reverse=True)), dtype=np.float32)
    assert (np.diff(lowered) < 0).all()
    written = np.array([float(f"{score:.9g}") for score in lowered], dtype=np.float32)
    assert (written == lowered).all()


def test_ties_of_a_run_are_lowered_by_the_least_step() -> None:
    one, below = strictly_decreasing([1.0, 1.0])
    assert one == 1.0
    assert np.float32(below) == np.nextafter(np.float32(1), np.float32(0))
    assert strictly_decreasing([0.75, 0.5]) == [0.75, 0.5]
    assert strictly_decreasing([]) == []


def test_trec_lines_and_json_line() -> None:
    ranking = FakeRanker().rank("b", [Document("c", "x"), Document("b", "y"), Document("c", "z")], query_id="q1")
    lines = [line.split() for line in trec_lines(ranking)]
    assert [line[:4] for line in lines] == [["q1", "Q0", "y", "1"], ["q1", "Q0", "x", "2"], ["q1", "Q0", "z", "3"]]
    assert float(lines[1][4]) > float(lines[2][4])
    assert json.loads(json_line(ranking)) == ranking.to_dict()


@pytest.mark.parametrize(("query_id", "doc_id"), [("a b", "x"), ("a", "x\ty"), ("", "x"), ("a", "")])
def test_a_run_cannot_carry_white_space_in_ids(query_id: str, doc_id: str) -> None:
    ranking = FakeRanker().rank_many([RankRequest("b", [Document("b", doc_id)], query_id)])[0]
    with pytest.raises(InputError, match="a TREC run cannot carry it"):
        trec_lines(ranking)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    with atomic_file(path) as stream:
        stream.write(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"
    with pytest.raises(ZeroDivisionError), atomic_file(path) as stream:
        stream.write(b"%d" % (1 // 0))
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path / "missing" / "out.txt", tmp_path):
        with pytest.raises(InputError, match=r"cannot be written: .+\."), atomic_file(place):
            pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_device_is_written_and_stays_a_device() -> None:
    with atomic_file("/dev/null") as stream:
        stream.write(b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
