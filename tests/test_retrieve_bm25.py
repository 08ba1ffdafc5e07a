"""BM25: scores, order, and an index on disk that is fresh and whole or made anew."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockrank import Document, InputError, MissingExtraError
from blockrank.data import CorpusFile
from blockrank.keep.folders import KeptFolder
from blockrank.keep.lines import Records, write_records
from blockrank.retrieve import Bm25Index, matching_words

TEXTS = (
    "Bram Stoker wrote Dracula in 1897.",
    "Mary Shelley wrote Frankenstein.",
    "The Irish coast is rainy.",
    "A vampire drinks blood; vampires sleep by day.",
)


def documents(texts: tuple[str, ...] = TEXTS) -> Iterator[Document]:
    return (Document(text, f"d{index}") for index, text in enumerate(texts))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where indices are kept, empty."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("BLOCKRANK_CACHE", str(folder))
    return folder / "indices"


@pytest.fixture
def corpus(tmp_path: Path) -> CorpusFile:
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"_id": d.doc_id, "text": d.text}) for d in documents()), encoding="utf-8")
    return CorpusFile(path)


def kept_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_dir())


# BM25


def test_bm25_finds_other_forms_of_a_word_and_ignores_common_ones() -> None:
    index = Bm25Index.build(documents())
    assert list(index.search("who was the vampire", 10)) == ["d3"]
    assert list(index.search("who wrote Frankenstein", 10)) == ["d1", "d0"]
    assert list(index.search("the of and", 10)) == ["d2"]  # nothing else to look for
    assert index.search("zebra", 10) == {}
    assert len(index) == 4


def test_bm25_scores_are_those_of_the_formula() -> None:
    index = Bm25Index.build([Document("red apple", "a"), Document("green pear pear", "b")], k1=0.9, b=0.4)
    idf = np.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    norm = 0.9 * (1 - 0.4 + 0.4 * 3 / 2.5)
    assert index.search("pear", 5)["b"] == pytest.approx(idf * 2 / (2 + norm), rel=1e-5)


def test_bm25_reads_title_and_text() -> None:
    index = Bm25Index.build([Document("a novel", "x", title="Dracula"), Document("a poem", "y")])
    assert list(index.search("dracula", 5)) == ["x"]


def test_bm25_breaks_ties_by_the_order_of_the_corpus() -> None:
    texts = ("rain",) * 40 + ("rain rain",)
    index = Bm25Index.build(documents(texts))
    assert list(index.search("rain", 6)) == ["d40", "d0", "d1", "d2", "d3", "d4"]


def test_bm25_takes_a_depth_over_the_size_of_the_corpus_and_refuses_one_below_one() -> None:
    index = Bm25Index.build(documents())
    assert len(index.search("wrote", 1000)) == 2
    with pytest.raises(InputError, match="depth must be positive, not 0"):
        index.search("wrote", 0)


def test_bm25_of_documents_without_words_finds_nothing(tmp_path: Path) -> None:
    index = Bm25Index.build(documents(("the", "!!!", "")))
    index.save(tmp_path)
    assert index.search("anything", 3) == Bm25Index.load(tmp_path).search("anything", 3) == {}


def test_bm25_of_no_documents_is_refused() -> None:
    with pytest.raises(InputError, match="no documents"):
        Bm25Index.build([])


def test_bm25_run_is_the_search_of_every_query() -> None:
    index = Bm25Index.build(documents())
    queries = {"q1": "Dracula", "q2": "zebra"}
    assert index.run(queries, 2) == {"q1": index.search("Dracula", 2), "q2": {}}


@given(st.lists(st.text("abc xyzé漢 ", max_size=12), min_size=1, max_size=8), st.text("abc xyzé漢 "), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_bm25_returns_documents_of_the_corpus_best_first(texts: list[str], query: str, depth: int) -> None:
    found = Bm25Index.build(documents(tuple(texts))).search(query, depth)
    scores = list(found.values())
    assert len(found) <= depth
    assert set(found) <= {f"d{index}" for index in range(len(texts))}
    assert scores == sorted(scores, reverse=True)
    assert all(score > 0 for score in scores)


def test_matching_words_are_those_of_the_query_in_any_form() -> None:
    text = "Vampires sleep. The VAMPIRE's bed."
    assert [text[start:end] for start, end in matching_words("the vampire", text)] == ["Vampires", "VAMPIRE"]


# BM25 on disk


def test_an_index_is_kept_in_the_cache_folder_and_used_again(corpus: CorpusFile, cache: Path) -> None:
    first = Bm25Index.open(corpus)
    (folder,) = kept_folders(cache)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    second = Bm25Index.open(corpus)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert first.search("wrote vampires", 10) == second.search("wrote vampires", 10)
    assert list(Bm25Index.build(corpus.documents()).search("wrote vampires", 10)) == list(
        second.search("wrote vampires", 10)
    )


def test_an_index_follows_its_corpus_and_settings(corpus: CorpusFile, cache: Path) -> None:
    Bm25Index.open(corpus)
    (stale,) = kept_folders(cache)
    with corpus.path.open("a", encoding="utf-8") as stream:
        stream.write("\n" + json.dumps({"_id": "new", "text": "Zebras graze."}))
    assert list(Bm25Index.open(corpus).search("zebra", 5)) == ["new"]
    (fresh,) = kept_folders(cache)
    assert fresh != stale
    other = Bm25Index.open(corpus, k1=2.0)
    assert other.search("wrote", 5) != Bm25Index.open(corpus).search("wrote", 5)
    assert len(kept_folders(cache)) == 2


def test_the_same_size_at_another_time_is_another_corpus(corpus: CorpusFile) -> None:
    Bm25Index.open(corpus)
    text = corpus.path.read_text(encoding="utf-8").replace("Dracula", "Carmill")
    corpus.path.write_text(text, encoding="utf-8")
    os.utime(corpus.path, ns=(0, 0))
    assert list(Bm25Index.open(corpus).search("carmill", 5)) == ["d0"]


@pytest.mark.parametrize("name", ["data.csc.index.npy", "vocab.index.json", "doc_ids.jsonl", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_index_is_made_anew(corpus: CorpusFile, cache: Path, name: str, damage: str) -> None:
    expected = Bm25Index.open(corpus).search("wrote vampires", 10)
    (folder,) = kept_folders(cache)
    data = (folder / name).read_bytes()
    if damage == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(data[:-3] if damage == "cut" else data[:-3] + b"???")
    assert Bm25Index.open(corpus).search("wrote vampires", 10) == expected
    assert (folder / name).read_bytes()[-3:] == data[-3:] or name == "vocab.index.json"  # the order of words is free
    assert len(kept_folders(cache)) == 1


def test_an_index_stays_in_memory_where_it_cannot_be_written(corpus: CorpusFile, cache: Path) -> None:
    cache.write_text("a file in the way", encoding="utf-8")
    assert list(Bm25Index.open(corpus).search("Dracula", 5)) == ["d0"]
    assert os.listdir(corpus.path.parent) == ["corpus.jsonl"]


def test_an_index_beside_the_corpus_is_not_believed(
    corpus: CorpusFile, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Bm25Index.open(corpus)
    shutil.copytree(cache, corpus.path.parent / ".blockrank")
    shutil.rmtree(cache)
    assert list(Bm25Index.open(corpus).search("Dracula", 5)) == ["d0"]
    assert ".blockrank is no longer used and can be removed" in caplog.text
    assert len(kept_folders(cache)) == 1


def test_an_index_is_kept_in_the_folder_named(corpus: CorpusFile, tmp_path: Path) -> None:
    place = tmp_path / "deep" / "place"
    Bm25Index.open(corpus, folder=place)
    assert [path.name for path in place.iterdir() if path.is_dir()]
    assert sorted(os.listdir(corpus.path.parent)) == ["corpus.jsonl", "deep"]


def test_a_missing_corpus_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jsonl: cannot be read"):
        Bm25Index.open(CorpusFile(tmp_path / "gone.jsonl"))


def test_a_corpus_without_a_file_is_indexed_in_memory(tmp_path: Path) -> None:
    class Given:
        path = None

        def documents(self) -> Iterator[Document]:
            return documents()

        def read(self, doc_ids: Any) -> dict[str, Document]:
            raise NotImplementedError

    assert list(Bm25Index.open(Given(), folder=tmp_path).search("Dracula", 5)) == ["d0"]
    assert os.listdir(tmp_path) == []


def test_two_writers_of_one_folder_leave_one_whole_folder(tmp_path: Path) -> None:
    kept = KeptFolder(tmp_path, "thing", "owner", 1)

    def slow(folder: Path) -> None:
        kept.write(lambda other: write_records(other, "values", ["fast"]))  # another process finishes meanwhile
        write_records(folder, "values", ["slow"])

    kept.write(slow)
    assert kept.is_whole()
    assert list(Records(kept.path, "values")) == ["fast"]
    assert os.listdir(tmp_path) == [kept.path.name]


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write_records(folder, "values", [1])
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        KeptFolder(tmp_path, "thing", "owner", 1).write(fail)
    assert os.listdir(tmp_path) == []


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    values = ["", "line\nbreak", "漢字 \u2028", ["list", None, 1]]
    write_records(tmp_path, "values", values)
    records = Records(tmp_path, "values")
    assert [records[index] for index in range(len(records))] == values


@pytest.mark.parametrize("module", ["bm25s", "Stemmer"])
def test_a_missing_library_names_the_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'blockrank\[search\]'"):
        Bm25Index.build(documents())
