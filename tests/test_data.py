"""Readers name the file and line of what is wrong; requests read back; files appear whole or not at all."""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockrank import Document, FakeRanker, InputError, RankRequest
from blockrank.data import (
    json_line,
    packed_file,
    positives_of,
    read_documents,
    read_requests,
    read_texts,
    request_line,
    rereadable,
    source_name,
)
from blockrank.keep.files import atomic_file, check_writable
from blockrank.text.characters import is_readable

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
        ('{"text": "a", "text": "b"}', "the key 'text' is there twice."),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "a JSON object is needed, not an array."),
        ("3", "a JSON object is needed, not a number."),
        ({"texts": "x"}, "documents[1] has no 'text'; its keys are ['texts']."),
        ('{"text": %s}' % ("9" * 5000), "not valid JSON: a number has too many digits."),
        ({"text": None}, "documents[1].text is None: leave the document out, or give an empty string."),
        ('{"text": "\\ud800"}', "documents[1].text holds a lone surrogate (U+D800) at character 0"),
        ({"text": "x", "id": True}, "documents[1].id must be a string or an integer, not bool."),
        ({"text": "x", "id": 1.5}, "documents[1].id must be a string or an integer, not float."),
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


@pytest.mark.parametrize("name", ["missing.jsonl", ".", "short.gz"])
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "short.gz").write_bytes(gzip.compress(os.urandom(1000).hex().encode())[:-20])
    with pytest.raises(InputError, match=r"cannot be read: .+\.$|not valid UTF-8") as caught:
        read_documents(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_what_can_be_read_once_is_kept_to_be_read_again(tmp_path: Path) -> None:
    pipe, content = tmp_path / "pipe", gzip.compress(b'{"text": "x"}\n')
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_bytes, args=[content], daemon=True).start()
    for source in (pipe, io.BytesIO(content)):
        with rereadable(source) as again:
            assert [read_documents(again) for _ in range(2)] == [[Document("x", "0")]] * 2
            assert source_name(again) == source_name(source)
    (tmp_path / "file").write_bytes(content)
    with rereadable(tmp_path / "file") as again:
        assert again == tmp_path / "file"
    with rereadable(tmp_path / "none") as again, pytest.raises(InputError, match="none: cannot be read: No such file"):
        read_documents(again)


def test_where_nothing_can_be_written_is_told_before(tmp_path: Path) -> None:
    check_writable(tmp_path / "new")
    (tmp_path / "old").write_text("kept")
    check_writable(tmp_path / "old")
    check_writable("/dev/null")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]
    assert (tmp_path / "old").read_text() == "kept"
    wrong = {
        tmp_path: "Is a directory",
        tmp_path / "no" / "x": "No such file",
        tmp_path / "old" / "x": "Not a directory",
    }
    for place, reason in wrong.items():
        with pytest.raises(InputError, match=f"cannot be written: {reason}"):
            check_writable(place)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_source_is_refused(content: str) -> None:
    readers = (read_documents, partial(read_texts, lines=True), lambda source: list(read_requests(source)))
    for read in readers:
        with pytest.raises(InputError, match=r"there (are|is) no"):
            read(io.BytesIO(content.encode()))


def test_documents_may_be_empty_and_share_an_id(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"text": "x", "id": "a"}, {"text": ""}, {"text": "y", "id": "a"}, {"text": "z", "id": 1})
    assert [(d.doc_id, d.text) for d in read_documents(path)] == [("a", "x"), ("#1", ""), ("a", "y"), ("1", "z")]
    (tmp_path / "empty.txt").write_bytes(b"\n")
    assert read_texts(tmp_path / "empty.txt") == [Document("", str(tmp_path / "empty.txt"))]


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
        ({"query": "q", "documents": ["", {"text": "\u200b"}]}, "documents[0] and documents[1]: no readable character"),
        ({"query": "\u00ad", "documents": ["x"]}, "query has no readable character"),
        ({"query": "q", "documents": ["x"], "query_id": True}, "query_id must be a string or an integer, not bool."),
        ({"query": "q", "documents": ["x"], "top_k": True}, "top_k must be a positive integer or None, not True."),
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


METADATA = st.dictionaries(
    st.text(max_size=4).filter(lambda key: key not in ("doc_id", "_id", "id", "text", "title")),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    max_size=3,
)
TEXT = st.text(min_size=1, max_size=20).filter(is_readable)


@given(
    st.lists(st.tuples(st.text(max_size=20), st.text(max_size=6), METADATA), max_size=4),
    TEXT,
    st.text(max_size=5),
    st.none() | st.integers(1, 9),
    st.booleans(),
)
def test_a_request_line_reads_back_as_an_equal_request(
    rows: list[Any], query: str, query_id: str, top_k: int | None, evidence: bool
) -> None:
    documents = [Document(text, f"{i}\u2028", title, metadata) for i, (text, title, metadata) in enumerate(rows)]
    documents += [Document("a"), Document("b", metadata={"metadata": {"c": 1}})]
    documents += [Document("c", metadata={"id": 1, "text": "x", "title": None, "metadata": {"id": 2}, "n": 3})]
    request = RankRequest(query, documents, query_id, top_k, evidence)
    line = request_line(request)
    assert "\n" not in line
    assert list(read_requests(io.BytesIO(line.encode()))) == [request]


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [({"a": float("nan")}, "JSON"), ({"a": b"x"}, "JSON")],
)
def test_metadata_that_would_not_read_back_is_refused(metadata: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        request_line(RankRequest("q", [Document("x", metadata=metadata)]))


@pytest.mark.parametrize("evidence", [True, False, ["a sentence"], None])
def test_evidence_is_a_wish_only_where_it_is_a_truth_value(tmp_path: Path, evidence: Any) -> None:
    (request,) = read_requests(jsonl(tmp_path, {**GOOD, "evidence": evidence, "top_k": 1}))
    assert (request.evidence, request.top_k) == (evidence is True, 1)


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({}, ()),
        ({"positives": [1]}, (1,)),
        ({"answer_ids": ["1", "0"]}, (1, 0)),
        ({"answer_ids": [0]}, (0,)),  # a list of texts, answers by index
        ({"answer_ids": []}, ()),
        ({"positives": [0], "answer_ids": ["7"]}, (0,)),
    ],
)
def test_relevant_candidates_are_named_by_index_or_id(keys: dict[str, Any], found: tuple[int, ...]) -> None:
    (request,) = read_requests(io.BytesIO(json.dumps({**GOOD, **keys}).encode()))
    assert positives_of({**GOOD, **keys}, request) == found


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"positives": [2]}, "positives lists 2, which is no candidate."),
        ({"positives": ["1"]}, "positives lists '1', which is no candidate."),
        ({"positives": [True]}, "positives lists True, which is no candidate."),
        ({"answer_ids": ["x"]}, "answer_ids lists 'x', which is no candidate."),
        ({"answer_ids": [[]]}, "answer_ids lists [], which is no candidate."),
        ({"answer_ids": ["1", 1]}, "answer_ids lists a candidate twice."),
        ({"answer_ids": "1"}, "answer_ids must be a list, not str."),
    ],
)
def test_relevant_candidates_that_are_none_are_refused(keys: dict[str, Any], complaint: str) -> None:
    request = RankRequest(str(GOOD["query"]), list(GOOD["documents"]))
    with pytest.raises(InputError) as caught:
        positives_of({**GOOD, **keys}, request)
    assert str(caught.value) == complaint


def test_json_line_is_the_ranking() -> None:
    ranking = FakeRanker().rank("b", [Document("c", "x"), Document("b", "y")], query_id="q1")
    assert json.loads(json_line(ranking)) == ranking.to_dict()


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


def test_a_packed_file_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    places = [tmp_path / "a.gz", tmp_path / "b.gz"]
    for place in places:
        with packed_file(place) as stream:
            stream.write(b"text")
        assert gzip.decompress(place.read_bytes()) == b"text"
    assert places[0].read_bytes() == places[1].read_bytes()
    with pytest.raises(ZeroDivisionError), packed_file(tmp_path / "c.gz") as stream:
        stream.write(b"%d" % (1 // 0))
    assert sorted(os.listdir(tmp_path)) == ["a.gz", "b.gz"]


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path / "missing" / "out.txt", tmp_path):
        with pytest.raises(InputError, match=r"cannot be written: .+\."), atomic_file(place):
            pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_device_is_written_and_stays_a_device() -> None:
    with atomic_file("/dev/null") as stream:
        stream.write(b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
