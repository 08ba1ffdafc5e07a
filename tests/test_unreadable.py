"""Documents of which nothing can be read: ranked last whatever ranks, and nothing else changes."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_decode import model_of
from typer.testing import CliRunner

from blockrank import Document, FakeRanker, InputError, Ranker, Ranking, RankRequest
from blockrank.cli import app
from blockrank.cli.drawing import drawing, plain_text
from blockrank.data import read_requests, read_training_requests
from blockrank.decode import decode
from blockrank.scorers import DecodeScorer

QUERY = "who wrote Dracula"
TEXTS = ["Bram Stoker wrote Dracula.", "Mary Shelley wrote Frankenstein.", "It rains in Ireland."]
PRIVATE = "\ue000"  # readable, and nothing to the embedded vocabulary
MIXED: list[Any] = [TEXTS[0], "", Document("\u200b", "zero"), TEXTS[1], {"text": PRIVATE, "id": "private"}, TEXTS[2]]
READ = [0, 3, 5]
WARNINGS = (
    "documents[1] and documents[2] (doc_id 'zero'): no readable character; ranked last.",
    "documents[4] (doc_id 'private'): no token of this tokenizer; ranked last.",
)


def check(found: Ranking, alone: Ranking) -> None:
    """`found` is the ranking of MIXED, and `alone` that of TEXTS."""
    assert [(entry.index, entry.score, entry.tokens) for entry in found[:3]] == [
        (READ[entry.index], pytest.approx(entry.score, abs=1e-6), entry.tokens) for entry in alone
    ]
    assert [(entry.index, entry.score, entry.tokens) for entry in found[3:]] == [(1, 0, 0), (2, 0, 0), (4, 0, 0)]
    assert [entry.rank for entry in found] == [1, 2, 3, 4, 5, 6]
    assert found.warnings == WARNINGS
    assert alone.warnings == ()


@pytest.mark.parametrize("changes", [{}, {"prune": ((2, 0.5),), "prune_by": "lens"}, {"template": "blockrank"}])
def test_the_others_are_ranked_as_without_them(mini: Ranker, changes: dict[str, Any]) -> None:
    ranker = mini.with_spec(**changes) if changes else mini
    check(ranker.rank(QUERY, MIXED), ranker.rank(QUERY, TEXTS))


def test_in_a_batch_and_with_kept_documents(mini: Ranker, caplog: pytest.LogCaptureFixture) -> None:
    ranker = mini.with_spec()
    alone = ranker.rank(QUERY, TEXTS)
    requests = [RankRequest(QUERY, MIXED, 1), RankRequest(QUERY, TEXTS, 2), RankRequest(QUERY, MIXED[::-1], 3)]
    for kept in (False, True):
        if kept:
            assert ranker.remember(RankRequest(QUERY, MIXED).candidates, 1 << 24)
        first, second, third = ranker.rank_many(requests)
        check(first, alone)
        assert second.warnings == ()
        assert [entry.index for entry in third] == [5 - entry.index for entry in first[:3]] + [1, 3, 4]
    ranker.forget()
    assert f"query_id '1': {WARNINGS[0]}" in [record.getMessage() for record in caplog.records]
    assert ranker.remember([Document(PRIVATE), Document("")], 1 << 20)
    ranker.forget()


def test_evidence_and_counts_belong_to_the_right_document(mini: Ranker) -> None:
    long = "Dracula " * 400
    found = mini.rank(QUERY, ["", long, PRIVATE, *TEXTS], evidence=True)
    by_index = {entry.index: entry for entry in found}
    assert by_index[1].cut_tokens > 0
    ends = sorted(item.end for item in by_index[3].evidence)
    assert [at for at in ends if at != 10] == [4, 11, 17, 25, 26]  # its words, and a full stop; one is two tokens
    assert by_index[0].evidence == by_index[2].evidence == ()


def test_a_log_names_the_index_of_the_caller(mini: Ranker, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        mini.rank(QUERY, ["", PRIVATE, "long " * 400])
    assert any("documents[2] (doc_id '2') was cut" in record.getMessage() for record in caplog.records)


def test_decoding_numbers_the_documents_that_are_read() -> None:
    texts = ["a red rose", "", "the sea", "\u200b", "a red car"]
    read = [0, 2, 4]
    model = model_of()
    found, alone = (
        Ranker(model, DecodeScorer(beams=3)).rank("red", some) for some in (texts, [texts[i] for i in read])
    )
    assert [entry.index for entry in found] == [*(read[entry.index] for entry in alone), 1, 3]
    assert [entry.score for entry in found] == [-1, -2, -3, -4, -5]
    (decoded,) = decode(model, [RankRequest("red", texts)], form="list")
    assert sorted(decoded.order) == [0, 1, 2, 3, 4]
    assert decoded.order[-2:] == (1, 3)
    assert set(decoded.generated) <= set(read)


@pytest.mark.parametrize("documents", [["", " "], [PRIVATE, ""], [PRIVATE]])
def test_a_request_with_nothing_to_read_is_refused(mini: Ranker, documents: list[str]) -> None:
    with pytest.raises(InputError, match=r"^documents.*nothing to rank"):
        mini.rank(QUERY, documents)


def test_a_query_of_nothing_is_refused(mini: Ranker) -> None:
    for query in ("\u200b", "\u00ad", "\x00", PRIVATE):
        for ranker in (mini, FakeRanker()) if query != PRIVATE else (mini,):
            with pytest.raises(InputError, match="query "):
                ranker.rank(query, TEXTS)


def test_training_takes_none(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    for document in ('""', '"\\u200b"', '{"text": "\\u0000"}'):
        path.write_text(f'{{"query": "q", "documents": ["a", {document}], "positives": [0]}}\n', encoding="utf-8")
        with pytest.raises(InputError, match=r"train\.jsonl:1: .*documents\[1\] is empty"):
            list(read_training_requests(path))
        assert next(read_requests(path)).readable == (0,)
    path.write_text(
        '{"query": "q", "documents": [{"text": "a", "id": 1}, {"text": "b", "id": "1"}], "positives": [0]}\n'
    )
    with pytest.raises(InputError, match=r"train\.jsonl:1: .*documents\[1\] has the doc_id '1' of documents\[0\]"):
        list(read_training_requests(path))


# Evidence of what cannot be seen


@pytest.mark.parametrize("text", ["\x00", "\u0301\u0302", PRIVATE, "\u200b \u200b"])
def test_evidence_that_covers_nothing_readable_is_shown(mini: Ranker, text: str) -> None:
    """Of a document of which the limit leaves nothing that can be seen."""
    ranker = mini.with_spec(max_segment_tokens=4)
    ranking = ranker.rank(QUERY, [TEXTS[0], f"x {text * 900} y", f"{text}z"], evidence=True)
    for shown in (ranking, replace(ranking, ranked=ranking.ranked[::-1])):
        assert plain_text(shown)
        Console(file=StringIO(), width=60).print(drawing(shown, 60))
        json.dumps(shown.to_dict())


def test_tokens_that_cover_white_space_alone_are_drawn() -> None:
    ranking = FakeRanker().rank("q", ["q \n x"], evidence=True)
    blank = replace(ranking[0].evidence[0], start=1, end=3)
    shown = replace(ranking, ranked=(replace(ranking[0], evidence=(blank,)),))
    assert "q x" in drawing(shown, 60).plain
    assert plain_text(shown)


# The command line


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["rank", *arguments])


def test_the_command_line_ranks_the_others_and_says_so(tmp_path: Path) -> None:
    names = []
    for name, text in (("a.txt", TEXTS[0]), ("empty.txt", ""), ("b.txt", TEXTS[1])):
        (tmp_path / name).write_text(text, encoding="utf-8")
        names.append(str(tmp_path / name))
    found = run(QUERY, *names)
    assert found.exit_code == 0
    assert [line.split()[2] for line in found.stdout.splitlines()[1:]] == [names[0], names[2], names[1]]
    assert f"documents[1] (doc_id {names[1]!r}): no readable character; ranked last." in found.stderr
    path = tmp_path / "documents.jsonl"
    lines = [{"text": TEXTS[0], "id": 7, "url": "u", "when": float("nan")}, {"text": ""}, {"text": TEXTS[1], "id": 7}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = run(QUERY, "--documents", str(path), "--json", "--explain")
    value = json.loads(found.stdout)
    assert [(entry["index"], entry["doc_id"]) for entry in value["results"]] == [(0, "7"), (2, "7"), (1, "1")]
    assert value["results"][0]["metadata"] == {"url": "u", "when": None}
    assert len(value["warnings"]) == 2
    assert all(sentence in found.stderr for sentence in value["warnings"])


def test_warnings_of_many_requests_are_summed_up(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    lines = [{"query": QUERY, "documents": documents} for documents in (TEXTS, ["a", ""], ["", "b", "c"])]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = run("--requests", str(path), "--json")
    assert found.exit_code == 0
    assert "query_id '1': documents[1]: no readable character" in found.stderr
    assert "2 requests have such warnings" in found.stderr
    assert ["warnings" in json.loads(line) for line in found.stdout.splitlines()] == [False, True, True]
