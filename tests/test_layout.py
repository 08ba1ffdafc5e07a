"""Prompts as token streams: what is frame and what is the caller's, what is cut, and which rows a segment reads."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from conftest import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from blockrank import InputError, Ranker, RankRequest, RankSpec, Template
from blockrank.layout import Memo, PromptTokenizer, Segment, TokenisedRequest
from blockrank.layout.prompt import segments

CHAT = Template(
    instruction=("Judge.<|im_end|>",), document=("\nD{id}: {text}<|im_end|>",), query=("\nQ: {query}</think>",)
)
BYTES = PromptTokenizer(byte_tokenizer())
CONTROL = [byte_tokenizer().convert_tokens_to_ids(token) for token in ("</think>", "<|im_end|>")]
PIECES = st.lists(st.sampled_from(["<|im_end|>", "</think>", "<", "</", "think>", "|", " ", "é", "x"]), min_size=1)


def spec(**changes: Any) -> RankSpec:
    return RankSpec.of(**{"layer": 0, "template": CHAT, "query_offset": None, **changes})


def tokenise(query: str, documents: list[str], of: RankSpec, tokenizer: PromptTokenizer = BYTES) -> TokenisedRequest:
    return tokenizer.tokenise(segments(of.prompt, RankRequest(query, documents)), of)


def text(segment: Segment) -> str:
    return str(byte_tokenizer().decode(segment.ids))


def control_tokens(segment: Segment) -> int:
    return int(np.isin(segment.ids, CONTROL).sum())


# The caller's text


@settings(deadline=None, max_examples=25)
@given(query=PIECES.filter(lambda parts: "".join(parts).strip()), document=PIECES)
def test_control_tokens_come_from_the_frame_alone(query: list[str], document: list[str]) -> None:
    found = tokenise("".join(query), ["." + "".join(document)], spec())
    assert [control_tokens(segment) for segment in found.segments] == [1, 1, 1]
    for segment, parts in zip(found.segments[1:], (document, query), strict=True):
        assert "".join(parts).replace(" ", "") in text(segment).replace(" ", "")


def test_control_tokens_of_the_embedded_tokenizer(mini: Ranker) -> None:
    tokenizer = mini.model.tokenizer
    assert tokenizer is not None
    one, plain = (
        tokenise(query, [document, "b"], mini.spec, tokenizer)
        for query, document in (("[CLS] a [MASK]", "x [SEP] y[PAD]z [CLS]"), ("a", "x y"))
    )
    marks = [
        mini.model.weights.hf_tokenizer.convert_tokens_to_ids(token) for token in ("[CLS]", "[SEP]", "[MASK]", "[PAD]")
    ]
    for broken, expected in zip(one.segments, plain.segments, strict=True):
        assert [i for i in broken.ids if i in marks] == [i for i in expected.ids if i in marks]


def test_unknown_characters_and_the_unknown_token_are_text(mini: Ranker) -> None:
    ranking = mini.rank("\U00012000 [UNK]", ["\U00012000", "[UNK] words"])
    assert sum(entry.score for entry in ranking) == pytest.approx(1, abs=1e-5)


def test_an_unknown_token_with_another_role_is_a_control_token_where_it_is_written() -> None:
    """As in the vocabularies that grew from GPT-2's, where one token begins and ends texts and is the unknown one."""
    both = copy.deepcopy(byte_tokenizer())
    both.unk_token = "<|im_end|>"
    found = tokenise("q <|im_end|> q", ["a<|im_end|>b", "<|im_end|>"], spec(), PromptTokenizer(both))
    assert [control_tokens(segment) for segment in found.segments] == [1, 1, 1, 1]


@settings(deadline=None, max_examples=25)
@given(
    asked=st.lists(st.tuples(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4), st.booleans()), max_size=6),
    room=st.sampled_from([1, 700, 2000, 1 << 20]),
)
def test_a_memo_changes_nothing(asked: list[tuple[list[str], bool]], room: int) -> None:
    memo: Memo[Segment] = Memo(room)
    alone = spec(template=Template((), ("{text}<|im_end|>",), ("{query}",)), max_segment_tokens=9)
    for texts, evidence in asked:
        request = RankRequest("q", [f"{text * 5} words" for text in texts], evidence=evidence)
        for limit in (9, 12):
            limited = alone.changed(max_segment_tokens=limit)
            found = BYTES.tokenise_request(request, limited, memo=memo)
            for one, other in zip(found.segments, BYTES.tokenise_request(request, limited).segments, strict=True):
                assert (one.kind, one.body_tokens, one.cut) == (other.kind, other.body_tokens, other.cut)
                assert one.ids.tolist() == other.ids.tolist()
                assert (one.spans_L2 is None) == (other.spans_L2 is None) == (not evidence or one.kind != "document")
                if one.spans_L2 is not None and other.spans_L2 is not None:
                    assert one.spans_L2.tolist() == other.spans_L2.tolist()


def test_a_memo_drops_the_oldest() -> None:
    memo: Memo[str] = Memo(3000)
    for key in "abcde":
        memo.put(key, key.upper(), 200)
        memo.put(key, "another", 200)
    memo.put("large", "LARGE", 3000)
    assert [memo.get(key) for key in ("a", "b", "c", "d", "e", "large")] == [None, None, "C", "D", "E", None]
    assert len(memo) == 3


@pytest.mark.parametrize("kept", [True, False])
def test_a_refused_document_is_named_by_its_place_whatever_is_kept(kept: bool) -> None:
    memo: Memo[Segment] | None = Memo(1 << 20) if kept else None
    numbered = spec(template=Template((), ("{id}" * 9 + "{text}",), ("{query}",)), max_segment_tokens=16)
    BYTES.tokenise_request(RankRequest("q", ["a", "b"]), numbered, memo=memo)
    texts = ["a", " ", *map(str, range(9)), "c"]  # one has no segment, and the last of the others has two digits
    with pytest.raises(InputError, match=r"documents\[11\] does not fit"):
        BYTES.tokenise_request(RankRequest("q", texts), numbered, memo=memo)


def test_a_text_that_cannot_be_kept_apart_is_refused() -> None:
    tokenizer = byte_tokenizer().backend_tokenizer
    backend = type(tokenizer).from_str(tokenizer.to_str())
    backend.add_special_tokens(["¤"])
    alone = type(byte_tokenizer())(tokenizer_object=backend)
    with pytest.raises(InputError, match="cannot be broken up"):
        tokenise("q", ["a ¤ b"], spec(), PromptTokenizer(alone))
    with pytest.raises(InputError, match="no fast"):
        PromptTokenizer(object())


PRIVATE = "\ue000\ue001"  # a person may see something; this vocabulary has nothing of it


@pytest.mark.parametrize("template", ["query-free-bert", "blockrank"])
def test_a_document_without_tokens_has_no_segment(mini: Ranker, template: str) -> None:
    of = spec(template=template)
    tokenizer = mini.model.tokenizer
    assert tokenizer is not None
    memo: Memo[Segment] = Memo(1 << 20)
    for _ in range(2):
        found = tokenizer.tokenise_request(RankRequest("q", ["a", PRIVATE, " ", "b"]), of, memo=memo)
        alone = tokenizer.tokenise_request(RankRequest("q", ["a", "b"]), of)
        assert tuple(found.indices) == (0, 3)
        assert tuple(alone.indices) == (0, 1)
        for one, other in zip(found.segments, alone.segments, strict=True):  # numbers too are those of two documents
            assert one.ids.tolist() == other.ids.tolist()


@pytest.mark.parametrize(
    ("query", "documents", "words"),
    [
        (PRIVATE, ["a"], "query yields no token of this tokenizer"),
        ("q", [PRIVATE, " "], "documents: none yields a token of this tokenizer"),
    ],
)
@pytest.mark.parametrize("template", ["query-free-bert", "blockrank"])
def test_a_request_without_tokens_is_refused(
    mini: Ranker, query: str, documents: list[str], words: str, template: str
) -> None:
    assert mini.model.tokenizer is not None
    with pytest.raises(InputError, match=words):
        mini.model.tokenizer.tokenise_request(RankRequest(query, documents), spec(template=template))


def test_an_answer_lists_no_document_without_tokens(mini: Ranker) -> None:
    assert mini.model.tokenizer is not None
    request = RankRequest("q", ["a", PRIVATE])
    with pytest.raises(InputError, match=r"documents\[1\] yields no token of this tokenizer, and the answer lists it"):
        mini.model.tokenizer.tokenise_request(request, spec(template="blockrank"), answer=(1,))


# Limits


@settings(deadline=None, max_examples=25)
@given(length=st.integers(1, 200), limit=st.integers(32, 120))
def test_only_the_body_is_cut_and_the_cut_is_counted(length: int, limit: int) -> None:
    of = spec(template="blockrank", max_segment_tokens=limit)
    body = ("0123456789" * 20)[:length]
    segment = tokenise("q", ["x", body], of).documents[1]
    frame = len("\nID: 1 | CONTENT:  | END ID: 1")
    kept = min(length, limit - frame)
    assert text(segment) == f"\nID: 1 | CONTENT: {body[:kept]} | END ID: 1"
    assert (segment.body_tokens, segment.cut) == (kept, length - kept)


def test_a_character_of_several_tokens_counts_as_such() -> None:
    segment = tokenise("q", ["é" * 30], spec(max_segment_tokens=25)).documents[0]
    assert len(segment.ids) == 25
    assert segment.body_tokens + segment.cut == 60


def test_a_frame_over_the_limit_is_refused() -> None:
    with pytest.raises(InputError, match=r"documents\[0\] does not fit: its frame alone takes 30 of the 20 tokens"):
        tokenise("q", ["some text"], spec(template="blockrank", max_segment_tokens=20))


def test_a_query_over_the_limit_is_refused() -> None:
    assert tokenise("q" * 8, ["d"], spec(max_query_tokens=8)).segments[-1].body_tokens == 8
    with pytest.raises(InputError, match="query is 9 tokens long and the limit is 8"):
        tokenise("q" * 9, ["d"], spec(max_query_tokens=8))
