"""Search in folders: what is found, how it is ranked, and an index that follows its files."""

from __future__ import annotations

import json
import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockrank import FakeRanker, InputError, Ranker
from blockrank.keep.folders import KeptFolder, _checked
from blockrank.retrieve import Hit, PassageIndex, ReadLimits, search
from blockrank.retrieve.files import read_passages
from blockrank.retrieve.reading import FileReader
from blockrank.retrieve.readings import known_readings

NOTES = {
    "books.md": "# Books\n\n## Dracula\n\nBram Stoker wrote Dracula in 1897.\n\n## Frankenstein\n\n"
    "Mary Shelley wrote Frankenstein when she was nineteen.\n",
    "travel/ireland.txt": "The Irish coast is rainy.\nTake a coat.\n",
    "travel/stoker.txt": "The Stoker family lived in Dublin; Stoker wrote letters there.\n",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where indices are kept, empty."""
    monkeypatch.setenv("BLOCKRANK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "indices"


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    notes = tmp_path / "notes"
    for name, text in NOTES.items():
        path = notes / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return notes


def kept(place: Path) -> list[str]:
    return sorted(path.name for path in place.glob("*") if path.is_dir())


def names(hits: list[Hit]) -> list[str]:
    return [Path(hit.path).name for hit in hits]


# Ranking


def test_the_embedded_model_ranks_the_passage_that_answers_first(folder: Path) -> None:
    ranker = Ranker.from_pretrained(device="cpu")
    hits = search(folder, "who is the author of Dracula", ranker=ranker)
    assert hits[0].path == str(folder / "books.md")
    assert hits[0].passage.text == "# Books\n\n## Dracula\n\nBram Stoker wrote Dracula in 1897."
    assert hits[0].passage.title == "books.md > Books > Dracula"
    assert hits[0].place == f"{folder}/books.md:1-5"


def test_a_document_is_shown_once_with_its_best_passage(folder: Path) -> None:
    index = PassageIndex.open(folder)
    ranker = FakeRanker()
    hits = index.search("Mary wrote Frankenstein", ranker=ranker)
    assert [hit.rank for hit in hits] == [1, 2]
    assert names(hits) == ["books.md", "stoker.txt"]
    assert hits[0].passage.first_line == 7
    every = index.search("Mary wrote Frankenstein", ranker=ranker, all_passages=True)
    assert sorted(names(every)) == ["books.md", "books.md", "stoker.txt"]
    assert [hit.score for hit in every] == sorted((hit.score for hit in every), reverse=True)
    assert hits[0] == every[0]


def test_the_ranker_sees_what_bm25_found_in_one_request(folder: Path) -> None:
    ranker = FakeRanker()
    index = PassageIndex.open(folder)
    hits = index.search("Stoker", ranker=ranker, depth=1, top_k=5)
    (request,) = ranker.calls
    assert len(request.candidates) == len(hits) == 1
    (best,) = index.search("Stoker", ranker=None, depth=1)
    assert best.passage == hits[0].passage
    assert best.score == best.bm25 == hits[0].bm25 > 0
    assert request.candidates[0].content == f"{best.passage.title} {best.passage.text}"


def test_without_a_common_word_a_small_folder_is_ranked_whole_and_a_large_one_not_at_all(folder: Path) -> None:
    index = PassageIndex.open(folder)
    ranker = FakeRanker(lambda _, text: float("coat" in text))
    hits = index.search("zebra", ranker=ranker, depth=len(index))
    assert names(hits)[0] == "ireland.txt"
    assert {hit.bm25 for hit in hits} == {0.0}
    assert index.search("zebra", ranker=ranker, depth=len(index) - 1) == []
    assert index.search("zebra", ranker=None) == []


def test_top_k_counts_documents(folder: Path) -> None:
    assert len(search(folder, "wrote", ranker=None, top_k=1)) == 1
    assert len(search(folder, "wrote", ranker=None, top_k=50)) == 2


@given(
    st.lists(st.text("ab cd\n#é漢", max_size=40), min_size=1, max_size=6),
    st.text("abcd é漢", min_size=1, max_size=8).filter(str.strip),
    st.integers(1, 9),
    st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_results_are_candidates_each_once(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], query: str, depth: int, all_passages: bool
) -> None:
    folder = tmp_path_factory.mktemp("source")
    for number, text in enumerate(["ab", *texts]):
        (folder / f"{number}.md").write_text(text, encoding="utf-8")
    ranker = FakeRanker()
    with pytest.MonkeyPatch.context() as patch:  # without a process for each example
        patch.setattr(FileReader, "read", lambda _, file: read_passages(file))
        index = PassageIndex.open(folder)
    hits = index.search(query, ranker=ranker, depth=depth, top_k=100, all_passages=all_passages)
    wanted = [document.content for call in ranker.calls for document in call.candidates]
    shown = [f"{hit.passage.title} {hit.passage.text}".strip() for hit in hits]
    assert len(wanted) <= depth
    assert set(shown) <= set(wanted)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    if all_passages:
        assert sorted(shown) == sorted(wanted)
    else:
        assert len({hit.path for hit in hits}) == len(hits)
    shutil.rmtree(folder)


def test_documents_of_json_lines_are_results_of_their_own(tmp_path: Path) -> None:
    letters = [" ".join(f"Stoker wrote letter {i}.{n}." for n in range(60 if i else 1)) for i in range(3)]
    rows = [{"_id": f"d{i}", "text": text} for i, text in enumerate(letters)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "Stoker"}', encoding="utf-8")
    hits = search(tmp_path, "Stoker", ranker=FakeRanker())
    assert sorted(hit.passage.doc_id for hit in hits) == ["d0", "d1", "d2"]
    assert {hit.path for hit in hits} == {str(tmp_path / "corpus.jsonl")}
    assert hits[0].to_dict()["doc_id"] == hits[0].passage.doc_id
    assert len(search(tmp_path / "corpus.jsonl", "Stoker", ranker=None, all_passages=True)) > 3


def test_cut_passages_are_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    ranker = Ranker.from_pretrained(device="cpu").with_spec(max_segment_tokens=5)
    with caplog.at_level("WARNING", logger="blockrank.retrieve"):
        search(folder, "Stoker", ranker=ranker)
    assert "2 of 2 passages were cut to fit the model" in caplog.text


# Copies


LICENCE = "Permission is hereby granted to use Stoker's letters."


def test_copies_of_a_text_are_one_hit_with_all_its_places(folder: Path) -> None:
    for number in range(12):
        (folder / f"licence{number:02}.txt").write_text(
            f"\n{LICENCE}".replace(" ", " " * (1 + number % 2)), encoding="utf-8"
        )
    (folder / "other.txt").write_text("Permission was granted.", encoding="utf-8")
    ranker = FakeRanker()
    hits = PassageIndex.open(folder).search("permission granted", ranker=ranker, depth=2, top_k=5)
    assert len(ranker.calls[0].candidates) == len(hits) == 2  # copies take no place from other texts
    assert "other.txt" in names(hits)
    (copied,) = (hit for hit in hits if hit.copies)
    places = [copied.place, *(copy.place for copy in copied.copies)]
    assert sorted(places) == [f"{folder}/licence{number:02}.txt:2" for number in range(12)]
    assert [list(row) for row in copied.to_dict()["copies"]] == [
        ["path", "doc_id", "first_line", "last_line", "page"]
    ] * 11


def test_copies_of_documents_and_within_one_document(tmp_path: Path) -> None:
    rows = [{"_id": name, "text": LICENCE} for name in "abc"] + [{"_id": "d", "text": "Stoker."}]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (hit, other) = search(tmp_path, "permission Stoker", ranker=None)
    assert [hit.passage.doc_id, *(copy.doc_id for copy in hit.copies)] == ["a", "b", "c"]
    assert (other.passage.doc_id, other.copies) == ("d", ())
    (tmp_path / "corpus.jsonl").unlink()
    (tmp_path / "twice.md").write_text(f"# One\n\n{LICENCE}\n\n# One\n\n{LICENCE}\n", encoding="utf-8")
    (hit,) = search(tmp_path, "permission", ranker=None, all_passages=True)
    assert [hit.place, hit.copies[0].place] == [f"{tmp_path}/twice.md:1-3", f"{tmp_path}/twice.md:5-7"]


def test_a_document_whose_best_passage_is_a_copy_is_shown_through_it(folder: Path) -> None:
    (folder / "a.md").write_text(f"# Stoker Stoker Stoker permission\n\nOwn.\n\n# B\n\n{LICENCE}\n", encoding="utf-8")
    (folder / "b.md").write_text(f"# B\n\n{LICENCE}\n", encoding="utf-8")
    hits = search(folder, "Stoker permission", ranker=None)
    assert names(hits)[:2] == ["a.md", "b.md"]  # a.md by its own passage, b.md by the text that both hold
    assert [copy.path for copy in hits[1].copies] == [str(folder / "a.md")]


# The index


def test_the_index_is_used_until_a_file_changes(folder: Path, cache: Path) -> None:
    assert PassageIndex.open(folder).is_new
    first = kept(cache)
    assert not PassageIndex.open(folder).is_new
    assert PassageIndex.open(folder, rebuild=True).is_new
    assert kept(cache) == first
    (folder / "new.txt").write_text("A zebra.", encoding="utf-8")
    assert names(search(folder, "zebra", ranker=None)) == ["new.txt"]
    (folder / "new.txt").write_text("A horse.", encoding="utf-8")
    assert search(folder, "zebra", ranker=None) == []
    assert names(search(folder, "horse", ranker=None)) == ["new.txt"]
    (folder / "new.txt").unlink()
    assert search(folder, "horse", ranker=None) == []
    assert len(kept(cache)) == 1
    assert kept(cache) == first


def test_the_kept_index_equals_a_new_one(folder: Path) -> None:
    made, loaded = PassageIndex.open(folder), PassageIndex.open(folder)
    assert list(made) == list(loaded)
    assert made.search("Stoker wrote", ranker=FakeRanker()) == loaded.search("Stoker wrote", ranker=FakeRanker())


def test_files_that_did_not_change_are_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "picture.bin").write_bytes(b"\0\1")
    PassageIndex.open(folder)
    (folder / "new.txt").write_text("A zebra.", encoding="utf-8")
    os.utime(folder / "books.md", ns=(0, 0))  # the same content at another time
    read: list[str] = []
    plain = FileReader.read
    monkeypatch.setattr(FileReader, "read", lambda self, file: read.append(file.path) or plain(self, file))
    index = PassageIndex.open(folder)
    assert (index.is_new, read) == (True, ["new.txt"])
    assert index.skipped["binary files"] == 1
    assert sorted(names(index.search("Irish zebra", ranker=None))) == ["ireland.txt", "new.txt"]
    PassageIndex.open(folder, rebuild=True)
    assert len(read) == 6


def test_another_content_of_the_same_size_and_time_is_seen(folder: Path) -> None:
    PassageIndex.open(folder)
    text = folder / "travel" / "ireland.txt"
    state = text.stat()
    text.write_text("X" * state.st_size, encoding="utf-8")
    os.utime(text, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert search(folder, "Irish", ranker=None) == []


@pytest.mark.parametrize("name", ["passages.jsonl", "files.jsonl", "passages.offsets.npy", "indices.csc.index.npy"])
def test_a_damaged_index_is_made_anew(folder: Path, cache: Path, name: str) -> None:
    expected = search(folder, "Stoker wrote", ranker=None)
    (place,) = cache.glob("passages-*")
    (place / name).write_bytes(b"?" + (place / name).read_bytes()[1:])
    index = PassageIndex.open(folder)
    assert index.is_new
    assert index.search("Stoker wrote", ranker=None) == expected
    assert not PassageIndex.open(folder).is_new


def test_a_damaged_index_is_no_source_for_the_next_one(folder: Path, cache: Path) -> None:
    PassageIndex.open(folder)
    (place,) = cache.glob("passages-*")
    path = place / "passages.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Irish", b"Welsh"))
    (folder / "new.txt").write_text("A zebra.", encoding="utf-8")
    assert search(folder, "Welsh", ranker=None) == []


def test_the_searched_folder_stays_as_it_is(folder: Path, cache: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in folder.rglob("*"))
    assert PassageIndex.open(folder).is_new
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert len(kept(cache)) == 1
    assert PassageIndex.open(folder, cache=tmp_path / "other").is_new
    assert not PassageIndex.open(folder, cache=tmp_path / "other").is_new


def test_without_a_cache_folder_the_index_stays_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("BLOCKRANK_CACHE", "XDG_CACHE_HOME", "HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    assert PassageIndex.open(folder).is_new
    assert PassageIndex.open(folder).is_new
    assert "notes is not kept: no cache folder is known." in caplog.text


def test_a_cache_folder_that_cannot_be_written_is_told(
    folder: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir()
    cache.write_text("a file in the way", encoding="utf-8")
    assert names(search(folder, "Irish", ranker=None)) == ["ireland.txt"]
    assert caplog.text.count("notes is not kept: ") == 1


def test_two_folders_with_the_same_files_have_their_own_indices(folder: Path, cache: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    for path in (folder, other):
        PassageIndex.open(path)
    assert len(kept(cache)) == 2
    assert not any(PassageIndex.open(path).is_new for path in (folder, other))


# What others may have put there


def renamed(cache: Path, target: Path, text: bytes, other: bytes) -> Path:
    """The kept index with other words in its passages and a manifest that fits, at another place."""
    (place,) = cache.glob("passages-*")
    planted = Path(shutil.copytree(place, target / place.name))
    path = planted / "passages.jsonl"
    path.write_bytes(path.read_bytes().replace(text, other))
    manifest = json.loads((planted / "manifest.json").read_text())
    manifest["files"]["passages.jsonl"] = _checked(path)
    (planted / "manifest.json").write_text(json.dumps(manifest))
    return planted


def test_a_valid_index_in_the_searched_folder_is_not_believed_and_told_of_once(
    folder: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    PassageIndex.open(folder)
    planted = renamed(cache, folder / ".blockrank", b"Irish", b"Welsh")
    shutil.rmtree(cache)
    assert [hit.passage.text[:9] for hit in search(folder, "Irish", ranker=None)] == ["The Irish"]
    assert search(folder, "Welsh", ranker=None) == []
    assert planted.is_dir()
    assert (
        caplog.text.count(f"{folder}/.blockrank is no longer used and can be removed: indices are kept in {cache}.")
        == 1
    )


def test_the_file_searched_alone_ignores_an_index_beside_it(
    folder: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    PassageIndex.open(folder / "books.md")
    renamed(cache, folder / ".blockrank", b"Mary", b"Anne")
    shutil.rmtree(cache)
    assert search(folder / "books.md", "Anne", ranker=None) == []
    assert ".blockrank is no longer used" in caplog.text


def test_an_index_that_others_may_write_in_is_made_anew(
    folder: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    PassageIndex.open(folder)
    (place,) = cache.glob("passages-*")
    assert (stat.S_IMODE(cache.stat().st_mode), stat.S_IMODE(place.stat().st_mode)) == (0o700, 0o700)
    place.chmod(0o777)
    assert PassageIndex.open(folder).is_new
    assert "is not used: it belongs to another user, or others may write in it." in caplog.text
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert not PassageIndex.open(folder).is_new


def test_nothing_is_kept_where_others_may_write(folder: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    PassageIndex.open(folder)
    cache.chmod(0o777)
    assert PassageIndex.open(folder).is_new
    assert f"notes is not kept: {cache} belongs to another user, or others may write in it." in caplog.text
    assert known_readings(KeptFolder(cache, "passages", str(folder.resolve()), 1), ReadLimits()) == {}


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users here")
def test_an_index_of_another_user_is_not_believed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PassageIndex.open(folder)
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    assert PassageIndex.open(folder).is_new


def test_an_index_under_the_name_of_another_is_not_believed(folder: Path, cache: Path) -> None:
    PassageIndex.open(folder)
    (first,) = cache.glob("passages-*")
    aside = first.rename(cache / "aside")
    (folder / "travel" / "ireland.txt").write_text("A zebra.", encoding="utf-8")
    PassageIndex.open(folder)
    (second,) = cache.glob("passages-*")
    shutil.rmtree(second)
    aside.rename(second)
    index = PassageIndex.open(folder)
    assert index.is_new
    assert names(index.search("zebra", ranker=None)) == ["ireland.txt"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_searched(folder: Path, cache: Path) -> None:
    folder.chmod(0o555)
    try:
        assert names(search(folder, "Irish", ranker=None)) == ["ireland.txt"]
    finally:
        folder.chmod(0o755)
    assert len(kept(cache)) == 1


def test_a_single_file_is_a_source(folder: Path) -> None:
    path = folder / "books.md"
    (hit,) = search(path, "Frankenstein", ranker=None)
    assert (hit.path, hit.place) == (str(path), f"{path}:7-9")
    assert hit.passage.title == "books.md > Books > Frankenstein"
    assert not PassageIndex.open(path).is_new
    assert PassageIndex.open(folder / "travel" / "stoker.txt").is_new
    assert PassageIndex.open(folder).is_new
    assert not PassageIndex.open(path).is_new


def test_many_at_once_make_one_index(folder: Path, cache: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda _: search(folder, "Stoker wrote", ranker=None), range(12)))
    assert all(result == results[0] for result in results)
    assert len(kept(cache)) == 1
    assert not PassageIndex.open(folder).is_new


def test_progress_counts_files(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    PassageIndex.open(folder, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


# Mistakes


def test_sources_that_cannot_be_searched_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone: there is no such file or folder"):
        search(tmp_path / "gone", "x", ranker=None)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"empty: there is nothing to search in it\.$"):
        search(empty, "x", ranker=None)
    (empty / ".hidden").write_text("x", encoding="utf-8")
    (empty / "a.bin").write_bytes(b"\0")
    with pytest.raises(InputError, match=r"no text to search in; skipped: binary files \(1\), hidden files and fold"):
        search(empty, "x", ranker=None)
    assert sorted(os.listdir(empty)) == [".hidden", "a.bin"]


@pytest.mark.parametrize(
    ("query", "depth", "top_k", "problem"),
    [
        (" ", 1, 1, "no readable"),
        ("\u200b", 1, 1, "no readable"),
        ("x", 0, 1, "depth must be positive"),
        ("x", 1, 0, "top_k must be positive"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_read(
    tmp_path: Path, query: str, depth: int, top_k: int, problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        search(tmp_path / "gone", query, ranker=None, depth=depth, top_k=top_k)


def test_broken_json_lines_in_a_folder_are_skipped_and_alone_refused(folder: Path) -> None:
    path = folder / "travel" / "documents.jsonl"
    path.write_text("{", encoding="utf-8")
    assert PassageIndex.open(folder).skipped == {"broken files of JSON lines": 1}
    with pytest.raises(InputError, match=r"documents\.jsonl:1: not valid JSON"):
        PassageIndex.open(path)
