"""`blockrank search`: what goes to which stream, and one sentence for every mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from blockrank.cli import app
from blockrank.cli.search import drawing, readable
from blockrank.keep.folders import cache_folder
from blockrank.retrieve import Hit, Passage, PassageIndex

DRACULA = "Bram Stoker wrote Dracula in 1897."


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("BLOCKRANK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "books.md").write_text(f"# Books\n\n{DRACULA}\n", encoding="utf-8")
    (notes / "coast.txt").write_text("The Irish coast is rainy. Stoker was Irish.", encoding="utf-8")
    return notes


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["search", *map(str, arguments)])


def failed(result: Any) -> str:
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("blockrank: error: ")
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


def test_the_answer_is_found_and_shown_with_its_place(folder: Path) -> None:
    result = run(folder, "who is the author of Dracula")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert re.fullmatch(rf"1  [01]\.\d{{4}}  {folder}/books\.md:1-3  Books", lines[0])
    assert lines[1:5] == ["    # Books", "", f"    {DRACULA}", ""]


def test_a_query_over_the_limit_is_told_before_a_file_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    query = "Stoker " * 700
    with monkeypatch.context() as patch:
        patch.setattr(PassageIndex, "open", None)
        told = failed(run(folder, query))
    assert re.search(r"query is (about )?\d+ tokens .*the limit is \d+: shorten it, or .*\(--cut-queries\)\.", told)
    assert "long_queries" not in told
    assert run(folder, query, "--cut-queries").exit_code == 0
    assert run(folder, query, "--no-rerank").exit_code == 0


def test_json_is_an_object_a_line(folder: Path) -> None:
    result = run(folder, "Stoker", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["rank"] for row in rows] == [1, 2]
    assert set(rows[0]) == {
        "rank", "score", "bm25", "path", "doc_id", "title", "text", "first_line", "last_line", "page",
        "copies",
    }  # fmt: skip
    assert sum(row["score"] for row in rows) == pytest.approx(1)
    assert {row["path"] for row in rows} == {str(folder / "books.md"), str(folder / "coast.txt")}


def test_without_reranking_the_order_is_that_of_bm25_and_no_model_is_loaded(folder: Path) -> None:
    result = run(folder, "Irish Stoker", "--no-rerank", "--json", "--model", "no/such/model")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    expected = PassageIndex.open(folder).search("Irish Stoker", ranker=None)
    assert rows == [hit.to_dict() for hit in expected]
    assert [Path(row["path"]).name for row in rows] == ["coast.txt", "books.md"]


def test_options_reach_the_search(folder: Path) -> None:
    (folder / "long.md").write_text("# A\n\nStoker.\n\n# B\n\nStoker again.\n", encoding="utf-8")
    assert len(run(folder, "Stoker", "--no-rerank", "--json").stdout.splitlines()) == 3
    assert len(run(folder, "Stoker", "--no-rerank", "--json", "--all-passages").stdout.splitlines()) == 4
    assert len(run(folder, "Stoker", "--no-rerank", "--json", "--all-passages", "--depth", 2).stdout.splitlines()) == 2
    assert len(run(folder, "Stoker", "--no-rerank", "--json", "-k", 1).stdout.splitlines()) == 1


def test_what_is_skipped_is_summed_up_when_the_index_is_made(folder: Path) -> None:
    (folder / "picture").write_bytes(b"\0")
    (folder / ".hidden").write_text("x", encoding="utf-8")
    arguments = (folder, "Stoker", "--no-rerank")
    said = "blockrank: skipped binary files (1), hidden files and folders (1).\n"
    assert run(*arguments).stderr == said
    assert run(*arguments).stderr == ""
    assert run(*arguments, "--rebuild").stderr == said
    assert said in run(*arguments, "--verbose").stderr


def test_no_match_is_said(folder: Path) -> None:
    result = run(folder, "zebra", "--no-rerank")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("blockrank: no passage shares a word with the query; 2 were searched")


def test_the_index_is_kept_in_the_users_cache_folder(folder: Path, tmp_path: Path) -> None:
    assert run(folder, "Stoker", "--no-rerank").exit_code == 0
    assert list((tmp_path / "cache" / "blockrank" / "indices").glob("passages-*"))
    (folder / ".blockrank").mkdir()
    (folder / "new.txt").write_text("Stoker", encoding="utf-8")
    assert re.fullmatch(r".*/\.blockrank is no longer used and can be removed: .*\n", run(folder, "x").stderr)
    assert run(folder, "x").stderr == ""


def test_mistakes_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    assert "gone: there is no such file or folder." in failed(run(tmp_path / "gone", "x"))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty: there is nothing to search in it." in failed(run(empty, "x"))
    (empty / "a.bin").write_bytes(b"\0")
    assert "there is no text to search in; skipped: binary files (1)." in failed(run(empty, "x"))
    for query in (" ", "\u200b", "\u00ad", "\u0301"):  # before files are read: there is none here
        told = "query has no readable character: there is nothing to search for."
        assert told in failed(run(tmp_path / "nowhere", query))
    assert "no/such/model" in failed(run(folder, "x", "--model", "no/such/model"))


@pytest.mark.parametrize("arguments", [[], ["only-a-source"], ["a", "b", "--top-k", "0"], ["a", "b", "--depth", "0"]])
def test_wrong_usage_is_told(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")


def test_copies_are_told_beside_the_hit(folder: Path) -> None:
    for number in range(8):
        (folder / f"copy{number}.md").write_text(f"# Books\n\n{DRACULA}\n", encoding="utf-8")
    lines = run(folder, "author of Dracula", "--no-rerank").stdout.splitlines()
    assert re.fullmatch(
        r"    also in .*/copy0\.md:1-3, .*/copy1\.md:1-3, (.*, ){2}.*/copy4\.md:1-3 and 3 more", lines[1]
    )
    assert lines[2:5] == ["    # Books", "", f"    {DRACULA}"]
    (row,) = map(json.loads, run(folder, "Dracula", "--no-rerank", "--json").stdout.splitlines())
    assert [copy["path"] for copy in row["copies"]] == [str(folder / f"copy{number}.md") for number in range(8)]


# Drawing


def hit(text: str, path: str = "a.md") -> Hit:
    return Hit(1, 0.5, 1.0, path, Passage(path, path, f"{path} > Head", text, 1, 2))


def test_a_terminal_shows_the_words_of_the_query_in_bold() -> None:
    console = Console(force_terminal=True, color_system="standard", width=60, legacy_windows=False)
    with console.capture() as capture:
        console.print(drawing(hit("Vampires sleep by day."), "a vampire"))
    shown = capture.get()
    assert "\x1b[1;33mVampires\x1b[0m sleep by day." in shown
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert plain.splitlines()[0].rstrip() == "1  0.5000  a.md:1-2  Head"


def test_markup_and_control_characters_are_no_orders() -> None:
    console = Console(force_terminal=True, color_system="standard", width=60, legacy_windows=False)
    with console.capture() as capture:
        console.print(drawing(hit("[red]x[/red] \x1b[31mred\x07"), "query"))
    assert "[red]x[/red]" in capture.get()
    assert "\x1b[31m" not in capture.get()
    assert "\x07" not in capture.get()


def test_lines_of_prose_are_joined_and_those_of_code_are_not() -> None:
    long = "A line of prose that an editor ended at its right margin, so"
    assert readable(hit(f"{long}\nit goes on.\n\n- {long}\n  goes on\n- next")) == [
        f"{long} it goes on.", "", f"- {long} goes on", "- next",
    ]  # fmt: skip
    assert readable(hit(f"```\n{long}\nit goes on.\n```")) == ["```", long, "it goes on.", "```"]
    assert readable(hit(f"{long}\nit goes on.", "a.py")) == [long, "it goes on."]
    assert readable(hit(f"| {long} |\n| b |")) == [f"| {long} |", "| b |"]


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "linux", "/x/blockrank"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "linux", "/h/.cache/blockrank"),
        ({"HOME": "/h"}, "darwin", "/h/Library/Caches/blockrank"),
        ({"LOCALAPPDATA": "/l"}, "win32", "/l/blockrank"),
        ({"BLOCKRANK_CACHE": "/own", "XDG_CACHE_HOME": "/x"}, "linux", "/own"),
        ({"BLOCKRANK_CACHE": "relative", "XDG_CACHE_HOME": "/x"}, "linux", "/x/blockrank"),
        ({}, "linux", None),
    ],
)
def test_the_cache_folder_of_a_platform(environment: dict[str, str], platform: str, expected: str | None) -> None:
    assert cache_folder(environment, platform) == (Path(expected) if expected else None)
