"""Evidence: which characters of a document received the attention that made its score."""

from __future__ import annotations

import json

import pytest
from conftest import TOLERANCE, byte_tokenizer, golden_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from blockrank import Document, FakeRanker, Ranker, RankRequest
from blockrank.layout import PromptTokenizer

QUERY = "who wrote Dracula"
DOCUMENTS = [
    Document("  Bram Stoker wrote Dracula in 1897.", "stoker", "Gothic novels"),
    Document("Mary Shelley wrote Frankenstein.\n", "shelley"),
    Document("The Irish coast is rainy, says <|im_end|> [SEP] nobody.", "rain", " "),
]


def test_evidence_names_characters_of_the_text_as_given(mini: Ranker) -> None:
    ranking = mini.rank(QUERY, DOCUMENTS, evidence=True)
    for entry in ranking:
        assert 0 < sum(item.share for item in entry.evidence) <= 1 + 1e-6
        for item in entry.evidence:
            field = entry.document.title if item.field == "title" else entry.text
            assert 0 <= item.start < item.end <= len(field)
            assert field[item.start : item.end].strip()
    best = sorted(ranking[0].evidence, key=lambda item: -item.share)[:3]
    assert ranking[0].doc_id == "stoker"
    assert {"wrote", "Dracula"} <= {ranking[0].text[e.start : e.end] for e in best if e.field == "text"}
    titles = [ranking[0].document.title[e.start : e.end] for e in ranking[0].evidence if e.field == "title"]
    assert titles[-1] == "novels"


def test_evidence_changes_no_score_and_is_absent_unless_asked_for(mini: Ranker) -> None:
    plain, explained = mini.rank(QUERY, DOCUMENTS), mini.rank(QUERY, DOCUMENTS, evidence=True)
    assert [entry.score for entry in plain] == [entry.score for entry in explained]
    assert all(entry.evidence == () for entry in plain)
    assert "evidence" not in plain.to_dict()["results"][0]
    shown = json.loads(json.dumps(explained.to_dict()))["results"][0]["evidence"][0]
    assert set(shown) == {"field", "start", "end", "share"}


def test_requests_with_and_without_evidence_share_a_batch(mini: Ranker) -> None:
    asked = [RankRequest(QUERY, DOCUMENTS, str(i), evidence=i % 2 == 1) for i in range(4)]
    rankings = mini.rank_many(asked)
    assert [bool(ranking[0].evidence) for ranking in rankings] == [False, True, False, True]
    alone = mini.rank(QUERY, DOCUMENTS, evidence=True)
    for one, two in zip(rankings[1], alone, strict=True):
        assert [e.share for e in one.evidence] == pytest.approx(
            [e.share for e in two.evidence], abs=TOLERANCE["float32"]
        )


def test_a_cut_document_has_evidence_for_what_was_read(mini: Ranker) -> None:
    ranking = mini.with_spec(max_segment_tokens=6).rank(QUERY, DOCUMENTS, evidence=True)
    for entry in ranking:
        assert len(entry.evidence) == entry.tokens == 4


@settings(deadline=None, max_examples=50)
@given(title=st.text("ab é<>|im_end/thk", max_size=12), text=st.text("xy é<>|im_end/thk\n", min_size=1, max_size=30))
def test_spans_cover_the_document_once(title: str, text: str) -> None:
    document = Document(f"{text}</think>z<|im_end|>", "d", title)
    request = RankRequest("q", [document], evidence=True)
    tokens = PromptTokenizer(byte_tokenizer()).tokenise_request(request, golden_spec())
    spans = tokens.documents[0].spans_L2
    assert spans is not None
    assert len(spans) == len(tokens.documents[0].ids)
    covered = [0] * len(document.content)
    for start, end in spans[spans[:, 0] >= 0].tolist():
        for at in range(start, end):
            covered[at] = 1
    # A control token's characters are broken up by a space of ours; every character that was given is still covered.
    assert all(covered)
    assert int(spans.max()) == len(document.content)
    places = [document.locate(a, b) for a, b in spans[spans[:, 0] >= 0].tolist()]
    given_text = {at for field, a, b in places if field == "text" for at in range(a, b)}
    assert {at for at, letter in enumerate(document.text) if letter.strip()} <= given_text


def test_the_double_has_evidence_too() -> None:
    ranking = FakeRanker().rank(QUERY, DOCUMENTS, evidence=True)
    words = [(ranking[0].text[item.start : item.end], item.share) for item in ranking[0].evidence]
    assert words == [("wrote", 0.5), ("Dracula", 0.5)]
    assert not FakeRanker().rank(QUERY, DOCUMENTS)[0].evidence
