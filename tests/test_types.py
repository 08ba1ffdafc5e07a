"""Requests, rankings and the public double: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

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
    RankSpec,
    Template,
)

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
        ({"text": "text", "year": 1897}, Document("text", "0", metadata={"year": 1897})),
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
        ({"query_id": 3}, "query_id must be a string, not int"),
        ({"documents": []}, "documents is empty"),
        ({"documents": "text"}, "documents must be a sequence of documents, not str"),
        ({"documents": {"a": "text"}}, "documents must be a sequence of documents, not dict"),
        ({"documents": None}, "documents must be a sequence of documents, not NoneType"),
        ({"documents": ["a", 5]}, r"documents\[1\] must be a string, a mapping with 'text', or a Document, not int"),
        ({"documents": ["a", " "]}, r"documents\[1\] is empty"),
        ({"documents": ["a", "\udfff"]}, r"documents\[1\]\.text holds a lone surrogate"),
        ({"documents": [{"text": 5}]}, r"documents\[0\]\.text must be a string, not int"),
        ({"documents": [{"text": "a", "title": 5}]}, r"documents\[0\]\.title must be a string, not int"),
        ({"documents": [{"text": "a", "id": 1.5}]}, r"documents\[0\]\.doc_id must be a string, not float"),
        ({"documents": [{"body": "a"}]}, r"documents\[0\] has no 'text'; its keys are \['body'\]"),
        (
            {"documents": ["a", {"text": "b", "id": 0}]},
            r"documents\[1\] has the doc_id '0' of documents\[0\]",
        ),
        ({"top_k": 0}, "top_k must be a positive integer or None, not 0"),
        ({"top_k": 1.5}, "top_k must be a positive integer or None, not 1.5"),
    ],
)
def test_what_cannot_be_ranked_is_told(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        RankRequest(**{"query": "q", "documents": ["a"], **arguments})
    assert str(caught.value).endswith(".")


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


# Specs


@pytest.mark.parametrize(
    "spec",
    [
        RankSpec(3),
        RankSpec(3, signal_tokens="query", heads=(1, 2), cosine="keys", query_offset=None, notes="n"),
        RankSpec(3, template=Template(("a {query}",), ("{text}",), ("{query}",), answer="[")),
    ],
)
def test_a_spec_is_read_back(spec: RankSpec, tmp_path: Any) -> None:
    spec.save(tmp_path)
    assert RankSpec.load(tmp_path) == spec


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"layer": -1}, "layer counts from 0"),
        ({"signal_tokens": 0}, "signal_tokens must be positive or 'query'"),
        ({"signal_tokens": "all"}, "signal_tokens must be an integer or 'query', not 'all'"),
        ({"length_norm": 1.5}, "length_norm must lie in"),
        ({"heads": []}, "heads is empty"),
        ({"max_segment_tokens": 0}, "max_segment_tokens must be positive"),
        ({"cosine": "queries"}, r"cosine must be one of \('none', 'keys', 'both'\)"),
        ({"query_attention": "none"}, "query_attention must be one of"),
        ({"softmax_over": "queries"}, "softmax_over must be one of"),
        ({"template": "unknown"}, "template 'unknown' is unknown"),
        ({"version": 9}, "version 9 is not supported"),
        ({"layers": 3}, "unknown key 'layers'"),
    ],
)
def test_a_wrong_spec_is_told(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        RankSpec.from_dict({"layer": 0, **values})


def test_what_a_template_depends_on() -> None:
    assert RankSpec(0, "blockrank").prompt.reads_query_first
    assert RankSpec(0, "blockrank").prompt.numbers_documents
    assert not RankSpec(0, "query-free").prompt.reads_query_first
    assert not RankSpec(0, "query-free").prompt.numbers_documents
