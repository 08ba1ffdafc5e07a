"""Requests, rankings and the public double: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockrank import (
    BlockrankError,
    Document,
    FakeRanker,
    InputError,
    MissingExtraError,
    ModelError,
    Ranking,
    RankRequest,
)
from blockrank.types.documents import check_unique_ids


class Column:
    """What tables of any library have: values in order, and no sequence."""

    def __init__(self, values: list[Any], ndim: int = 1) -> None:
        self.values, self.ndim = values, ndim

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)


TEXTS = ["Mary Shelley wrote Frankenstein.", "Bram Stoker wrote Dracula.", "It rains."]


# Requests


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", Document("text", "0")),
        (Document("text"), Document("text", "0")),
        (Document("text", "a", "title"), Document("text", "a", "title")),
        ({"text": "text"}, Document("text", "0")),
        ({"text": "text", "doc_id": "a", "title": "t"}, Document("text", "a", "t")),
        ({"text": "text", "_id": "a", "title": None}, Document("text", "a")),
        ({"text": "text", "id": 7}, Document("text", "7")),
        ({"text": "text", "doc_id": None, "id": "a"}, Document("text", "a")),
        ({"text": "text", "doc_id": math.nan, "id": "a", "title": math.nan}, Document("text", "a")),
        ({"text": "text", "_id": "a", "id": 7}, Document("text", "a", metadata={"id": 7})),
        ({"text": "text", "year": 1897}, Document("text", "0", metadata={"year": 1897})),
        ({"text": "text", "metadata": {"id": 5}, "year": 1}, Document("text", "0", metadata={"id": 5, "year": 1})),
        (
            {"text": "text", "metadata": {"a": 5}, "a": 1},
            Document("text", "0", metadata={"metadata": {"a": 5}, "a": 1}),
        ),
        ({"text": "text", "metadata": "m"}, Document("text", "0", metadata={"metadata": "m"})),
    ],
)
def test_spellings_of_a_document(value: Any, expected: Document) -> None:
    assert RankRequest("q", [value]).candidates == (expected,)


def test_content_is_title_and_text() -> None:
    assert Document(" text ", title="Title").content == "Title  text"
    assert Document(" text ").content == "text"
    assert RankRequest("q", [Document("", title="only a title")]).candidates[0].content == "only a title"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"query": " "}, "query is empty"),
        ({"query": None}, "query must be a string, not NoneType"),
        ({"query": "a\ud800"}, r"query holds a lone surrogate \(U\+D800\) at character 1"),
        ({"query": "\u200b \u00ad"}, "query has no readable character: there is nothing to rank for"),
        ({"query": "\x00"}, "query has no readable character"),
        ({"query": "\u0301\u3164\ufe0f\u2800\ufdd0"}, "query has no readable character"),
        ({"query_id": 3.0}, "query_id must be a string or an integer, not float"),
        ({"query_id": True}, "query_id must be a string or an integer, not bool"),
        ({"query_id": np.bool_(True)}, "query_id must be a string or an integer, not bool"),
        ({"documents": []}, "documents is empty"),
        ({"documents": "text"}, "documents must be a sequence of documents, not str"),
        ({"documents": {"a": "text"}}, "documents must be a sequence of documents, not dict"),
        ({"documents": None}, "documents must be a sequence of documents, not NoneType"),
        ({"documents": ["a", 5]}, r"documents\[1\] must be a string, a mapping with 'text', or a Document, not int"),
        ({"documents": [" ", "\u200b"]}, r"documents\[0\] and documents\[1\]: no readable character"),
        ({"documents": {"a", "b"}}, "documents must have an order, and a set has none"),
        ({"documents": frozenset("ab")}, "documents must have an order, and a set has none"),
        ({"documents": b"text"}, "documents must be a sequence of documents, not bytes"),
        ({"documents": Document("a")}, "documents must be a sequence of documents, not Document"),
        ({"documents": np.array([["a", "b"]])}, "documents must have one dimension, not 2"),
        ({"documents": np.array("a")}, "documents must have one dimension, not 0"),
        ({"documents": ["a", None]}, r"documents\[1\] is None: there is no document"),
        ({"documents": ["a", math.nan]}, r"documents\[1\] is nan: there is no document"),
        (
            {"documents": [{"text": None}]},
            r"documents\[0\]\.text is None: leave the document out, or give an empty string",
        ),
        ({"documents": [{"text": math.nan}]}, r"documents\[0\]\.text is nan: leave the document out"),
        ({"documents": [{"text": b"a"}]}, r"documents\[0\]\.text must be a string, not bytes"),
        ({"documents": np.array([b"a"])}, r"documents\[0\] must be a string, .* not bytes_"),
        ({"documents": [Document("a", metadata=5)]}, r"documents\[0\]\.metadata must be a mapping, not int"),
        (
            {"documents": [Document("a", doc_id=True)]},
            r"documents\[0\]\.doc_id must be a string or an integer, not bool",
        ),
        (
            {"documents": [{"text": "a", "id": True}]},
            r"documents\[0\]\.id must be a string or an integer, not bool",
        ),
        ({"documents": ["a", "\udfff"]}, r"documents\[1\]\.text holds a lone surrogate"),
        ({"documents": [{"text": 5}]}, r"documents\[0\]\.text must be a string, not int"),
        ({"documents": [{"text": "a", "title": 5}]}, r"documents\[0\]\.title must be a string, not int"),
        (
            {"documents": [{"text": "a", "id": 1.5}]},
            r"documents\[0\]\.id must be a string or an integer, not float",
        ),
        ({"documents": [{"body": "a"}]}, r"documents\[0\] has no 'text'; its keys are \['body'\]"),
        ({"top_k": 0}, "top_k must be a positive integer or None, not 0"),
        ({"top_k": 1.5}, "top_k must be a positive integer or None, not 1.5"),
        ({"top_k": True}, "top_k must be a positive integer or None, not True"),
        ({"top_k": "1"}, "top_k must be a positive integer or None, not '1'"),
        ({"evidence": "no"}, "evidence must be True or False, not 'no'"),
    ],
)
def test_what_cannot_be_ranked_is_told(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        RankRequest(**{"query": "q", "documents": ["a"], **arguments})
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "documents",
    [
        ("a", "b"),
        iter(["a", "b"]),
        (text for text in "ab"),
        {"x": "a", "y": "b"}.values(),
        {"a": 1, "b": 2}.keys(),
        np.array(["a", "b"]),
        np.array(["a", "b"], dtype=object),
        Column(["a", "b"]),
        [{"text": "a", "title": None, "id": None}, {"text": "b", "title": math.nan}],
    ],
    ids=lambda documents: type(documents).__name__,
)
def test_documents_come_in_anything_with_an_order(documents: Any) -> None:
    request = RankRequest("q", documents)
    assert [(d.doc_id, d.content, type(d.text)) for d in request.candidates] == [("0", "a", str), ("1", "b", str)]
    assert FakeRanker().rank("b", request.candidates).doc_ids == ["1", "0"]


def test_columns_of_a_real_table() -> None:
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"text": ["a", "b"], "title": [None, "t"], "page": [1, 2], "when": [pd.Timestamp(0)] * 2})
    for documents in (
        pd.Series(["a", "b"], index=[7, 3]),
        pd.Index(["a", "b"]),
        table["text"],
        table.to_dict("records"),
    ):
        ranking = FakeRanker().rank("b", documents)
        assert ranking.doc_ids == ["1", "0"]
    assert ranking[1].to_dict()["metadata"] == {"page": 1, "when": "1970-01-01T00:00:00"}
    ids = RankRequest("b", [{"text": text, "id": index} for index, text in table["text"].items()], table["page"][1])
    assert ([document.doc_id for document in ids.candidates], ids.query_id) == (["0", "1"], "2")
    with pytest.raises(InputError, match="documents must have one dimension, not 2: give one column of a table"):
        RankRequest("q", table)
    with pytest.raises(InputError, match=r"documents\[0\] is (None|nan): there is no document"):
        RankRequest("q", table["title"])


def test_a_table_is_not_taken_for_the_names_of_its_columns() -> None:
    with pytest.raises(InputError, match="documents must have one dimension, not 2: give one column of a table"):
        RankRequest("q", Column(["text", "title"], ndim=2))


def test_integers_are_ids_and_counts() -> None:
    documents: Any = [Document("a", doc_id=7), {"text": "b", "id": np.int64(8)}, Document("c", np.int32(9))]  # type: ignore[arg-type]
    request = RankRequest(np.str_("q"), documents, 3, np.int64(2), np.bool_(True))  # type: ignore[arg-type]
    assert [document.doc_id for document in request.candidates] == ["7", "8", "9"]
    assert (request.query_id, request.top_k, request.evidence) == ("3", 2, True)
    assert [type(value) for value in (request.query, request.query_id, request.top_k, request.evidence)] == [
        str, str, int, bool,
    ]  # fmt: skip
    assert RankRequest("q", ["a"], None).query_id == "0"  # type: ignore[arg-type]
    assert FakeRanker().rank("q", ["a"], query_id=np.int64(5)).query_id == "5"  # type: ignore[arg-type]


def test_a_missing_title_or_metadata_is_none() -> None:
    document = Document("a", title=None, metadata=None)  # type: ignore[arg-type]
    assert (document.title, document.metadata, document.content) == ("", {}, "a")
    assert Document("a", title=math.nan).content == "a"  # type: ignore[arg-type]


# Ids


@pytest.mark.parametrize(
    ("documents", "ids"),
    [
        (["a", Document("b", "0")], ["#0", "0"]),
        (["a", {"text": "b", "id": 0}, Document("c", "#0")], ["##0", "0", "#0"]),
        ([Document("a", "1"), "b", "c"], ["1", "#1", "2"]),
        (["a", "b", Document("c", "7")], ["0", "1", "7"]),
    ],
)
def test_ids_that_were_not_given_clash_with_none(documents: list[Any], ids: list[str]) -> None:
    request = RankRequest("q", documents)
    assert [document.doc_id for document in request.candidates] == ids
    assert request.warnings == ()
    assert dataclasses.replace(request, evidence=True).candidates == request.candidates


def test_repeated_ids_are_labels_and_told() -> None:
    documents = [Document("x", "a"), Document("q", "a"), Document("y", "b"), Document("z", "a")]
    ranking = FakeRanker().rank("q", documents)
    assert [(entry.index, entry.doc_id) for entry in ranking] == [(1, "a"), (0, "a"), (2, "b"), (3, "a")]
    assert ranking.warnings == ("documents[1] has the doc_id 'a' of documents[0]; 1 more repeat one.",)
    with pytest.raises(InputError, match=r"documents\[1\] has the doc_id 'a' of documents\[0\]"):
        check_unique_ids(RankRequest("q", documents).candidates)


# Documents without text

UNREADABLE = ["", " \n", "\u200b\u00ad", "\x00", "\u0301", "\u3164\u2800", "\ufe0f", "\U000e0041"]


@pytest.mark.parametrize("text", UNREADABLE)
def test_a_document_without_a_readable_character_is_ranked_last(text: str) -> None:
    double = FakeRanker(lambda query, text: float(len(text)))
    ranking = double.rank("q", [text, "a", Document(text, "x"), "bbb"], evidence=True)
    assert [(entry.rank, entry.index, entry.score, entry.tokens) for entry in ranking] == [
        (1, 3, 0.75, 1), (2, 1, 0.25, 1), (3, 0, 0.0, 0), (4, 2, 0.0, 0),
    ]  # fmt: skip
    sentence = "documents[0] and documents[2] (doc_id 'x'): no readable character; ranked last."
    assert ranking.warnings == (sentence,)
    assert ranking.to_dict()["warnings"] == [sentence]
    assert ranking.top(1).warnings == (sentence,)
    assert double.rank("q", [text, "a"], top_k=1).doc_ids == ["1"]


def test_many_documents_without_text_are_one_sentence() -> None:
    (sentence,) = RankRequest("q", ["a", *[""] * 9]).warnings
    assert sentence.startswith("documents[1], documents[2], documents[3] and 6 more: no readable character")


@pytest.mark.parametrize("text", ["\ue000", "م", "\U0001f98a", "।", "\u0378", "\ufffd", " \u200b" * 300 + "x"])
def test_what_shows_something_is_readable(text: str) -> None:
    assert RankRequest(text, [text]).warnings == ()


def test_scores_below_zero_go_on_below_the_last() -> None:
    request = RankRequest("q", ["a", "", "b", " "])
    found = Ranking.from_scores(request, [-2.0, -1.0])
    assert [(entry.index, entry.score) for entry in found] == [(2, -1), (0, -2), (1, -3), (3, -4)]


def test_what_nothing_was_said_of_comes_before_what_cannot_be_read() -> None:
    """Below the lowest score there is, whatever stands in place of one; 0 where scores are not below zero."""
    request = RankRequest("q", ["a", "b", " ", "c", "d"])
    for scores, values in (([9, -3, 9, -1], [-1, -3, -4, -5, -6]), ([9, 0, 9, 0.5], [0.5, 0, 0, 0, 0])):
        ranking = Ranking.from_scores(request, scores, kind="logit", unscored=(3, 0))
        assert [entry.index for entry in ranking] == [4, 1, 0, 3, 2]
        assert [entry.score for entry in ranking] == values
        assert ranking.unscored == (0, 3)
        assert ranking.to_dict()["unscored"] == [0, 3]
        assert "repaired" not in ranking.to_dict()


def test_what_a_tokenizer_has_nothing_of_is_last_too() -> None:
    found = Ranking.from_scores(RankRequest("q", ["a", "\ue000", "b", ""]), [0.5, 0.5], [4, 5], read=(0, 2))
    assert [(entry.index, entry.tokens) for entry in found] == [(0, 4), (2, 5), (1, 0), (3, 0)]
    assert found.warnings[1] == "documents[1]: no token of this tokenizer; ranked last."


# Metadata


def test_metadata_comes_back_as_json_can_hold_it() -> None:
    given = {
        "url": "https://example.org", "page": np.int64(3), "share": np.float32(0.5), "when": datetime.date(2024, 2, 29),
        "missing": math.nan, "vector": np.array([1.0, math.inf]), "nested": {"a": (1, {2})}, 5: "five",
        "broken": "a\ud800", "path": Path("x"), "flag": np.bool_(True), "time": np.datetime64("2024-02-29"),
    }  # fmt: skip
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    ranking = FakeRanker().rank("q", [{"text": "q", **given}, Document("b", metadata=loop), "c"])  # type: ignore[dict-item]
    entry, looped, plain = json.loads(json.dumps(ranking.to_dict(), allow_nan=False))["results"]
    assert entry["metadata"] == {
        "url": "https://example.org", "page": 3, "share": 0.5, "when": "2024-02-29", "missing": None,
        "vector": [1.0, None], "nested": {"a": [1, [2]]}, "5": "five", "broken": "a\ufffd", "path": "x", "flag": True,
        "time": "2024-02-29",
    }  # fmt: skip
    assert list(looped["metadata"]) == ["loop"]
    assert "metadata" not in plain
    assert ranking[0].document.metadata["page"] is given["page"]


def test_errors_are_one_tree() -> None:
    assert all(issubclass(kind, BlockrankError) for kind in (InputError, ModelError, MissingExtraError))
    assert issubclass(InputError, ValueError)


# Rankings


def ranking(scores: list[float], top_k: int | None = None) -> Ranking:
    request = RankRequest("q", [f"text {i}" for i in range(len(scores))], "7", top_k)
    return Ranking.from_scores(request, scores, tokens=range(len(scores)), cut_tokens=[2] + [0] * (len(scores) - 1))


def test_a_ranking_is_a_sequence_best_first() -> None:
    found = ranking([0.2, 0.5, 0.3])
    assert len(found) == 3
    assert found.doc_ids == ["1", "2", "0"]
    assert [entry.rank for entry in found] == [1, 2, 3]
    assert found[0].text == "text 1"
    assert found[-1].index == 0
    assert found[:2] == (found[0], found[1])
    assert [(entry.tokens, entry.cut_tokens) for entry in found] == [(1, 0), (2, 0), (0, 2)]
    with pytest.raises(IndexError):
        found[3]


def test_equal_scores_keep_the_order_of_the_request() -> None:
    assert ranking([0.25, 0.25, 0.25, 0.25]).doc_ids == ["0", "1", "2", "3"]


def test_the_best_so_many() -> None:
    whole = ranking([0.2, 0.5, 0.3])
    assert whole.top(2).doc_ids == ranking([0.2, 0.5, 0.3], top_k=2).doc_ids == ["1", "2"]
    assert whole.top(9) == whole
    assert whole.top(1)[0].score == 0.5
    with pytest.raises(InputError, match="k must be positive"):
        whole.top(0)


def test_json_form() -> None:
    request = RankRequest("q", [{"text": "b", "id": "x", "title": "t"}, "a"], "7")
    found = Ranking.from_scores(request, [0.25, 0.75], cut_tokens=[3, 0])
    assert json.loads(json.dumps(found.to_dict())) == {
        "query_id": "7",
        "query": "q",
        "results": [
            {"rank": 1, "score": 0.75, "index": 1, "doc_id": "1", "text": "a"},
            {"rank": 2, "score": 0.25, "index": 0, "doc_id": "x", "text": "b", "title": "t", "cut_tokens": 3},
        ],
    }


def test_values_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ranking([1.0]).query = "other"  # type: ignore[misc]


# The double


def test_the_double_ranks_by_words_and_records_calls() -> None:
    double = FakeRanker()
    found = double.rank("who wrote Dracula", TEXTS, top_k=2, query_id="7")
    assert found.doc_ids == ["1", "0"]
    assert [entry.score for entry in found] == pytest.approx([2 / 3, 1 / 3])
    assert (double.calls[0].query, double.calls[0].query_id) == ("who wrote Dracula", "7")
    assert [len(item) for item in double.rank_many([RankRequest("x", TEXTS), RankRequest("y", TEXTS[:1])])] == [3, 1]
    assert sum(entry.score for entry in double.rank("nothing shared", TEXTS)) == pytest.approx(1)


def test_the_double_refuses_what_a_ranker_refuses() -> None:
    with pytest.raises(InputError, match="documents is empty"):
        FakeRanker().rank("q", [])
    with pytest.raises(InputError, match="must not be negative"):
        FakeRanker(lambda *_: -1.0).rank("q", ["a"])
