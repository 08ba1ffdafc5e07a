"""Judged collections: BEIR folders and data sets of ir_datasets, documents read as a stream."""

from __future__ import annotations

import gzip
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ir_datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_datasets.formats import JsonlDocs, JsonlQueries, TrecQrels
from ir_datasets.util import LocalDownload

from blockrank import Document, InputError, MissingExtraError
from blockrank.data import CorpusFile, open_collection, read_queries, write_collection

DOCUMENTS = [Document("one", "d1", "First"), Document("two", "d2", metadata={"url": "u", "_id": 1}), Document("", "d3")]
QUERIES = {"q1": "which one", "q2": "which two", "q3": "not judged"}
QRELS = {"q1": {"d1": 2, "d2": 0}, "q2": {"d2": 1}}


def lines(path: Path, *rows: Any) -> Path:
    """A file of JSON lines; a row that is text already is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_a_collection_reads_back(tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / "small"
    write_collection(folder, iter(DOCUMENTS), QUERIES, QRELS, "dev", packed=packed)
    collection = open_collection(folder, split="dev")
    assert (collection.name, collection.source) == ("small", str(folder))
    assert (collection.queries, collection.qrels) == (QUERIES, QRELS)
    assert list(collection.corpus.documents()) == DOCUMENTS
    assert collection.corpus.path == folder / ("corpus.jsonl.gz" if packed else "corpus.jsonl")
    assert sorted(os.listdir(folder / "qrels")) == ["dev.tsv.gz" if packed else "dev.tsv"]


def test_a_collection_as_benchmarks_publish_it(tmp_path: Path) -> None:
    corpus = ['{"_id": "d1", "title": "", "text": "one", "metadata": {}}\r\n', '{"_id": 2, "text": "t"}\r\n']
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress("".join(corpus).encode()))
    (tmp_path / "queries.jsonl").write_bytes('\ufeff{"_id": "q", "text": "x", "metadata": {"a": 1}}\r\n'.encode())
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_bytes(b"query-id\tcorpus-id\tscore\r\nq\td1\t1\r\n")
    collection = open_collection(str(tmp_path))
    assert list(collection.corpus.documents()) == [
        Document("one", "d1"),
        Document("t", "2"),
    ]
    assert (collection.queries, collection.qrels) == ({"q": "x"}, {"q": {"d1": 1}})


def test_other_judgements_can_be_used(tmp_path: Path) -> None:
    write_collection(tmp_path, DOCUMENTS, QUERIES, QRELS)
    (tmp_path / "mine.txt").write_text("q1 0 d2 1\n")
    assert open_collection(tmp_path, split="none", qrels=tmp_path / "mine.txt").qrels == {"q1": {"d2": 1}}


@given(st.lists(st.sampled_from(["d1", "d2", "d3"]), max_size=5))
def test_wanted_documents_come_in_the_order_wanted(
    tmp_path_factory: pytest.TempPathFactory, doc_ids: list[str]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "wanted"
    write_collection(folder, DOCUMENTS, QUERIES, QRELS)
    found = open_collection(folder).corpus.read(doc_ids)
    assert list(found) == list(dict.fromkeys(doc_ids))
    assert all(document in DOCUMENTS and document.doc_id == doc_id for doc_id, document in found.items())


def test_reading_ends_where_all_is_found(tmp_path: Path) -> None:
    corpus = CorpusFile(lines(tmp_path / "corpus.jsonl", {"_id": "a", "text": "x"}, {"_id": "b", "text": "y"}, "{"))
    assert list(corpus.read(["b"])) == ["b"]
    with pytest.raises(InputError, match=r"corpus\.jsonl:3: not valid JSON"):
        corpus.read(["b", "c"])


def test_documents_are_a_stream(tmp_path: Path) -> None:
    stream = CorpusFile(lines(tmp_path / "corpus.jsonl", {"_id": "a", "text": "x"}, "{")).documents()
    assert next(stream) == Document("x", "a")
    with pytest.raises(InputError, match=r"corpus\.jsonl:2: not valid JSON"):
        next(stream)


def test_a_missing_document_is_named(tmp_path: Path) -> None:
    corpus = CorpusFile(lines(tmp_path / "corpus.jsonl", {"_id": "a", "text": "x"}))
    with pytest.raises(InputError, match=r"corpus\.jsonl: a document with the doc_id 'b' is not in it\.$"):
        corpus.read(["a", "b"])
    with pytest.raises(InputError, match=r"the doc_id 'b' is not in it, nor are 2 others\.$"):
        corpus.read(["b", "a", "c", "d"])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({"id": "b", "text": "x"}, "there is no '_id'; the keys are ['id', 'text']."),
        ({"_id": "b"}, "there is no 'text'; the keys are ['_id']."),
        ({"_id": "b", "text": None}, "text is None: leave it out, or give an empty string."),
        ({"_id": "b", "text": "x", "title": 3}, "title must be a string, not int."),
        ({"_id": None, "text": "x"}, "_id is null; the keys are ['_id', 'text']."),
        ({"_id": True, "text": "x"}, "_id must be a string or an integer, not bool."),
        (
            '{"_id": "b", "text": "\\ud800"}',
            "text holds a lone surrogate (U+D800) at character 0: it is not valid Unicode text.",
        ),
        ({"_id": "a", "text": "x"}, "the _id 'a' was there before."),
    ],
)
def test_a_broken_line_names_file_and_line(tmp_path: Path, line: Any, complaint: str) -> None:
    path = lines(tmp_path / "in.jsonl", {"_id": "a", "text": "x"}, "", line)
    for read in (read_queries, lambda path: list(CorpusFile(path).documents())):
        with pytest.raises(InputError) as caught:
            read(path)
        assert str(caught.value) == f"{path}:3: {complaint}"


def test_files_without_anything_are_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "in.jsonl")
    with pytest.raises(InputError, match="there are no queries in it"):
        read_queries(path)
    with pytest.raises(InputError, match="there are no documents in it"):
        list(CorpusFile(path).documents())


def test_a_folder_that_lacks_a_file_says_which(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no BEIR folder with corpus\.jsonl or corpus\.jsonl\.gz\.$"):
        open_collection(tmp_path)
    write_collection(tmp_path, DOCUMENTS, QUERIES, QRELS, "dev")
    with pytest.raises(InputError, match=r"with qrels/test\.tsv or qrels/test\.tsv\.gz; its splits are dev\.$"):
        open_collection(tmp_path)


def test_judged_queries_without_text_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_collection(tmp_path, DOCUMENTS, QUERIES, QRELS)
    lines(tmp_path / "queries.jsonl", {"_id": "q2", "text": "x"})
    with caplog.at_level(logging.WARNING, "blockrank"):
        assert set(open_collection(tmp_path).qrels) == {"q1", "q2"}
    assert "1 of 2 judged queries have no text, such as 'q1'" in caplog.text


# Writing


def broken() -> Iterator[Document]:
    yield DOCUMENTS[0]
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("documents", "queries", "qrels", "complaint"),
    [
        ([Document("x")], QUERIES, {}, "a document of a collection needs a doc_id."),
        ([DOCUMENTS[0]] * 2, QUERIES, {}, "the doc_id 'd1' was there before."),
        ([], QUERIES, {}, "documents is empty"),
        (DOCUMENTS, {}, QRELS, "queries lacks 'q1', which is judged."),
        (DOCUMENTS, QUERIES, {"q1": {"a b": 1}}, "the doc_id 'a b' is empty or holds white space"),
    ],
)
def test_a_collection_appears_whole_or_not_at_all(
    tmp_path: Path, documents: Any, queries: Any, qrels: Any, complaint: str
) -> None:
    with pytest.raises(InputError) as caught:
        write_collection(tmp_path, documents, queries, qrels)
    assert complaint in str(caught.value)
    with pytest.raises(ZeroDivisionError):
        write_collection(tmp_path, broken(), QUERIES, QRELS, packed=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    place = lines(tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot be written: .+\."):
        write_collection(place, DOCUMENTS, QUERIES, QRELS)
    with pytest.raises(InputError, match=r"file is no folder\.$"):
        open_collection(str(place))


# ir_datasets


class TitledDoc(NamedTuple):
    doc_id: str
    title: str
    text: str

    def default_text(self) -> str:
        return f"{self.title} {self.text}"


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[str]:
    """A small data set of the library's own formats, with and without judgements under one name."""
    titled = [{"doc_id": "d1", "title": "First", "text": "one"}, {"doc_id": "d2", "title": "", "text": "two"}]
    docs = JsonlDocs(LocalDownload(lines(tmp_path / "docs.jsonl", *titled)), TitledDoc)
    rows = [{"query_id": query_id, "text": text} for query_id, text in QUERIES.items()]
    queries = JsonlQueries(LocalDownload(lines(tmp_path / "queries.jsonl", *rows)))
    qrels = TrecQrels(LocalDownload(lines(tmp_path / "qrels.txt", "q1 0 d1 2", "q1 0 d2 0", "q2 0 d2 1")), {})
    twice = TrecQrels(LocalDownload(lines(tmp_path / "twice.txt", "q1 0 d1 2", "q1 1 d1 2", "q1 2 d1 0")), {})
    parts = {"": (docs, queries), "/test": (docs, queries, qrels), "/twice": (docs, queries, twice), "/docs": (docs,)}
    names = [f"small-of-ours{ending}" for ending in parts]
    for name, part in zip(names, parts.values(), strict=True):
        ir_datasets.registry.register(name, ir_datasets.Dataset(*part))
    yield names[0]
    for name in names:
        del ir_datasets.registry._registered[name]  # the library registers for good


def test_a_data_set_is_a_collection(dataset: str) -> None:
    collection = open_collection(f"{dataset}/test")
    assert (collection.name, collection.source) == (f"{dataset}/test",) * 2
    assert (collection.queries, collection.qrels) == (QUERIES, QRELS)
    documents = [Document("one", "d1", "First"), Document(" two", "d2")]
    assert list(collection.corpus.documents()) == documents
    assert collection.corpus.path is None
    assert collection.corpus.read(["d2", "d1"]) == {"d2": documents[1], "d1": documents[0]}
    with pytest.raises(InputError, match="a document with the doc_id 'd9' is not in it"):
        collection.corpus.read(["d9"])


def test_judgements_for_a_data_set_can_come_from_a_file(dataset: str, tmp_path: Path) -> None:
    (tmp_path / "mine.tsv").write_text("q1\td2\t1\n")
    assert open_collection(dataset, qrels=tmp_path / "mine.tsv").qrels == {"q1": {"d2": 1}}


def test_what_a_data_set_lacks_is_said(dataset: str) -> None:
    with pytest.raises(InputError, match=f"has no judgements in ir_datasets; those under it are {dataset}/docs, "):
        open_collection(dataset)
    with pytest.raises(InputError, match="has no queries in ir_datasets"):
        open_collection(f"{dataset}/docs")
    with pytest.raises(InputError, match="the doc_id 'd1' has two relevances for 'q1'"):
        open_collection(f"{dataset}/twice")


def test_a_data_set_that_cannot_be_read_is_one_sentence(dataset: str, tmp_path: Path) -> None:
    collection = open_collection(f"{dataset}/test")
    (tmp_path / "docs.jsonl").unlink()
    with pytest.raises(InputError, match=r"test: ir_datasets cannot read it: .*docs\.jsonl"):
        list(collection.corpus.documents())


@pytest.mark.parametrize("name", ["no/such/set", "nonsense"])
def test_an_unknown_name_is_neither_folder_nor_data_set(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is neither a folder nor a data set that ir_datasets knows"):
        open_collection(name)
    for path in (Path(name), f"./{name}", f"/{name}"):
        with pytest.raises(InputError, match=f"{name} is no folder"):
            open_collection(path)


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'blockrank\[datasets\]'"):
        open_collection("beir/scifact/test")
