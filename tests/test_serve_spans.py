"""Cohere's `relevant_spans`, from evidence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import QUERY, TEXTS, Running, running

from blockrank import Document, FakeRanker, Ranker
from blockrank.serve.calls import TokenCounts
from blockrank.serve.dialects import COHERE
from blockrank.serve.refusals import Refusal
from blockrank.serve.settings import ServeSettings
from blockrank.serve.spans import SpanOptions, relevant_spans
from blockrank.types import Evidence, RankedDocument

SETTINGS = ServeSettings()


@pytest.fixture(scope="module")
def server(mini: Ranker) -> Iterator[Running]:
    with running(mini) as found:
        yield found


def ranked(text: str, shares: list[tuple[int, int, float]], title: str = "") -> RankedDocument:
    evidence = tuple(Evidence("text", start, end, share) for start, end, share in shares)
    return RankedDocument(1, 1.0, 0, Document(text, "0", title), evidence=evidence)


def test_neighbours_that_stand_out_are_one_span() -> None:
    text = "Iron oxide makes Mars red today"
    shares = [(0, 4, 0.2), (5, 8, 0.15), (8, 10, 0.15), (10, 16, 0.02), (16, 21, 0.3), (21, 25, 0.02), (25, 31, 0.01)]
    spans = relevant_spans(ranked(text, shares), SpanOptions())
    assert [text[span["start"] : span["end"]] for span in spans] == ["Iron oxide", "Mars"]
    assert [span["score"] for span in spans] == pytest.approx([0.5, 0.3])
    assert relevant_spans(ranked(text, shares), SpanOptions(0.4)) == spans[:1]
    assert relevant_spans(ranked(text, shares), SpanOptions(0.0, 1)) == spans[:1]
    assert relevant_spans(ranked(text, shares), SpanOptions(0.9)) == []


def test_signs_are_no_words_and_do_not_divide_a_span() -> None:
    text = "Mars, red: cold"
    spans = relevant_spans(
        ranked(text, [(0, 4, 0.4), (4, 5, 0.1), (5, 9, 0.4), (9, 10, 0.0), (10, 15, 0.1)]), SpanOptions()
    )
    assert [text[span["start"] : span["end"]] for span in spans] == ["Mars, red"]
    assert relevant_spans(ranked("...", [(0, 3, 1.0)]), SpanOptions()) == []
    assert relevant_spans(ranked("", []), SpanOptions()) == []


@given(st.lists(st.tuples(st.text("ab é火☃", min_size=1, max_size=5), st.floats(0, 1)), max_size=12), st.floats(0, 1))
def test_spans_lie_in_the_text_best_first(words: list[tuple[str, float]], threshold: float) -> None:
    text, shares, total = "", [], sum(share for _, share in words) or 1.0
    for word, share in words:
        shares.append((len(text), len(text) + len(word), share / total))
        text += word
    spans = relevant_spans(ranked(text, shares), SpanOptions(threshold))
    scores = [span["score"] for span in spans]
    assert scores == sorted(scores, reverse=True)
    assert all(threshold <= score <= 1 for score in scores)
    places = sorted((span["start"], span["end"]) for span in spans)
    assert all(0 <= start < end <= len(text) for start, end in places)
    assert all(before[1] <= after[0] for before, after in pairwise(places))


def answer(body: dict[str, Any]) -> Any:
    call = COHERE.read({"query": "mars", "documents": ["on Mars", "x"], **body}, SETTINGS, "r1")
    [ranking] = FakeRanker().rank_many([call.request])
    return json.loads(json.dumps(COHERE.answer(call, ranking, TokenCounts(10))))


def test_spans_are_given_where_they_are_asked_for() -> None:
    for nothing in (
        {},
        {"relevant_spans": None},
        {"relevant_spans": {"mode": "disabled", "threshold": 0.2, "max_spans": 3}},
    ):
        assert answer(nothing)["results"] == answer({})["results"]
        assert "relevant_spans" not in str(answer(nothing))
    best, other = answer({"relevant_spans": {"mode": "enabled"}})["results"]
    assert best["relevant_spans"] == [{"start": 3, "end": 7, "score": 1.0}]
    assert ("relevant_spans" in other, "evidence" in best) == (False, False), "none were found; it was not asked for"
    both = answer({"relevant_spans": {"mode": "enabled", "max_spans": "1"}, "evidence": True})["results"][0]
    assert {"relevant_spans", "evidence"} < {*both}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (True, "relevant_spans must be an object with 'mode'."),
        ({}, "relevant_spans.mode must be 'enabled' or 'disabled'."),
        ({"mode": "auto"}, "relevant_spans.mode must be 'enabled' or 'disabled'."),
        ({"mode": "enabled", "threshold": 1.5}, "relevant_spans.threshold must be a number from 0 to 1, not 1.5."),
        ({"mode": "enabled", "threshold": True}, "relevant_spans.threshold must be a number from 0 to 1, not true."),
        ({"mode": "disabled", "max_spans": 0}, "relevant_spans.max_spans must be at least 1, not 0."),
        ({"mode": "enabled", "maxSpans": 2}, "unknown field 'relevant_spans.maxSpans': did you mean 'max_spans'?"),
    ],
)
def test_options_are_checked(options: Any, sentence: str) -> None:
    with pytest.raises(Refusal) as caught:
        answer({"relevant_spans": options})
    assert caught.value.sentence == sentence
    assert (caught.value.param or "").startswith("relevant_spans")


def test_spans_over_the_socket_are_characters_of_the_text(server: Running) -> None:
    """Code points, whatever stands before them and in however many bytes or UTF-16 units."""
    texts = [*TEXTS, "\U0001f9db\U0001f3fb é: Dracula by Bram Stoker"]
    body = {"query": QUERY, "documents": texts, "relevant_spans": {"mode": "enabled", "threshold": 0.05}}
    found = server.post("/v2/rerank", body).json()["results"]
    spans = {item["index"]: item.get("relevant_spans", []) for item in found}
    words = {texts[index][span["start"] : span["end"]] for index in spans for span in spans[index]}
    assert any("Dracula" in word for word in words)
    assert any("Dracula" in texts[3][span["start"] : span["end"]] for span in spans[3])
    for word in words:
        assert word == word.strip()
