"""Control tokens in what a caller wrote: never in the prompt, in time that grows with the text, for any vocabulary."""

from __future__ import annotations

import time
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import vocabularies
from conftest import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from blockrank import InputError, Ranker, RankRequest, RankSpec, Template
from blockrank.layout import PromptTokenizer

BARE = RankSpec.of(
    layer=0, template=Template(("i",), ("{text}",), ("{query}",)), max_segment_tokens=4096, max_query_tokens=64
)
NAMES: dict[str, tuple[AddedToken, ...]] = {
    "plain": (AddedToken("[SEP]", special=True),),
    "not special": (AddedToken("</think>", special=False), AddedToken("<|end|>", special=False, normalized=True)),
    "overlapping": (AddedToken("[SEP"), AddedToken("SEP]"), AddedToken("[SEP]"), AddedToken("P]x")),
    "after a space": (AddedToken("[SEP]"), AddedToken("[ SEP]"), AddedToken(" SEP]"), AddedToken("[  SEP]")),
    "with white space": (AddedToken("<mask>", lstrip=True, rstrip=True), AddedToken("<a>", lstrip=True)),
    "words": (AddedToken("sep", single_word=True), AddedToken("<sep>")),
}
PIECES = ["[SEP]", "[SEP", "SEP]", "[", "]", "[ SEP]", " ", "  ", "\n", "x", "</think>", "<|end|>", "<|", "<mask>",
          "<a>", "sep", "<sep>", "é", "[S", "EP]", "<"]  # fmt: skip


@cache
def tokenizer(names: str, unknown: bool) -> PreTrainedTokenizerFast:
    """A token a byte, and control tokens; `unknown`: the first of them is the unknown token too, as GPT-2's end is."""
    backend = byte_tokenizer().backend_tokenizer
    made = type(backend).from_str(backend.to_str())
    made.add_tokens(list(NAMES[names]))
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token=NAMES[names][0].content if unknown else None)


def control_ids(kind: PreTrainedTokenizerFast) -> list[int]:
    return list(kind.added_tokens_decoder)


@pytest.mark.parametrize("unknown", [True, False])
@pytest.mark.parametrize("names", NAMES)
@settings(deadline=None, max_examples=40)
@given(parts=st.lists(st.sampled_from(PIECES), min_size=1, max_size=30), repeats=st.integers(1, 5))
def test_no_body_holds_a_control_token(names: str, unknown: bool, parts: list[str], repeats: int) -> None:
    kind = tokenizer(names, unknown)
    text = "." + "".join(parts) * repeats + "."
    request = RankRequest(text[:12], [text], evidence=True)
    found = PromptTokenizer(kind).tokenise_request(request, BARE)
    for segment in found.segments:
        assert not np.isin(segment.ids, control_ids(kind)).any()
    document = found.documents[0]
    assert kind.decode(document.ids).replace(" ", "") == text.replace(" ", "")  # nothing lost, spaces put in
    assert document.spans_L2 is not None
    spans = document.spans_L2[document.spans_L2[:, 0] >= 0].tolist()
    assert all(before[0] <= after[0] for before, after in pairwise(spans))
    assert {at for start, end in spans for at in range(start, end)} == set(range(len(text)))


def test_a_name_that_takes_in_white_space_is_broken_up_at_its_letters() -> None:
    kind = tokenizer("with white space", False)
    for text in ("a <mask> b", "a   <mask>   b", "a\n<a>\n<mask>"):
        found = PromptTokenizer(kind).tokenise_request(RankRequest("q", [text]), BARE).documents[0]
        assert kind.decode(found.ids) == text.replace("<mask>", "< mask>").replace("<a>", "< a>")


def test_an_unknown_token_that_only_the_model_names_is_text() -> None:
    kind = vocabularies.tokenizer("wordpiece")
    assert kind.unk_token is None
    found = PromptTokenizer(kind).tokenise_request(RankRequest("q", ["x \U00012000 y"]), BARE)
    assert found.documents[0].body_tokens == 3


def test_what_cannot_be_broken_up_is_named() -> None:
    backend = byte_tokenizer().backend_tokenizer
    made = type(backend).from_str(backend.to_str())
    made.add_special_tokens(["¤"])
    kind = PromptTokenizer(PreTrainedTokenizerFast(tokenizer_object=made))
    with pytest.raises(InputError, match=r"documents\[1\] holds control tokens .* that cannot be broken up"):
        kind.tokenise_request(RankRequest("q", ["a", "b ¤"]), BARE)
    with pytest.raises(InputError, match="query holds control tokens"):
        kind.tokenise_request(RankRequest("q ¤", ["a"]), BARE)


# Time


def seconds(work: Any) -> float:
    """This process's time on a processor, the least of three runs: what other processes take is not counted."""
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize("frame", ["[CLS]{text}[SEP]", "{text}"])
def test_control_tokens_cost_time_that_grows_with_the_text(mini: Ranker, frame: str) -> None:
    assert mini.model.tokenizer is not None
    kind = mini.model.tokenizer
    whole = mini.spec.changed(template=Template((), (frame,), ("{query}",)), max_segment_tokens=1 << 20)

    def taken(count: int) -> float:
        request = RankRequest("q", ["[SEP]" * count], evidence=True)
        return seconds(lambda: kind.tokenise_request(request, whole))

    few, many = taken(1250), taken(10_000)  # the larger has 50 kB, and every token of it is read
    assert many < 24 * few  # eight times as much; 64 if it grew with the square
    assert many < 10


def test_a_long_document_costs_what_a_short_one_does(mini: Ranker) -> None:
    assert mini.model.tokenizer is not None
    kind = mini.model.tokenizer
    for letter in (".", "a", "[SEP]", "word ", "\u200b", "\ue000", "字"):
        documents = [RankRequest("q", ["x" + letter * count]) for count in (25_000, 400_000)]
        short, long = (seconds(lambda item=item: kind.tokenise_request(item, mini.spec)) for item in documents)
        assert long < 4 * short + 0.05, letter  # sixteen times as long


def test_a_long_query_is_refused_or_cut_without_reading_all_of_it(mini: Ranker) -> None:
    assert mini.model.tokenizer is not None
    kind = mini.model.tokenizer
    for letter in ("word ", "[SEP]", "."):
        request = RankRequest(letter * 100_000, ["a"])
        start = time.perf_counter()
        with pytest.raises(InputError, match=r"query is about \d+ tokens long and the limit is 510"):
            kind.tokenise_request(request, mini.spec)
        found = kind.tokenise_request(request, mini.spec.changed(long_queries="cut"))
        assert time.perf_counter() - start < 5
        assert 500 < found.segments[-1].body_tokens <= 510
        assert found.query_cut > 90_000


@pytest.mark.parametrize("count", [30, 100])
def test_a_query_of_control_tokens_is_cut_to_the_limit(count: int) -> None:
    """As text they take more tokens than as control tokens."""
    kind = PromptTokenizer(tokenizer("plain", False))
    found = kind.tokenise_request(RankRequest("[SEP]" * count, ["a"]), BARE.changed(long_queries="cut"))
    assert found.segments[-1].body_tokens in (63, 64)  # the last may be in the middle of a name, which is then none
    assert found.query_cut == 6 * count - 64


# How much is left out


@pytest.mark.parametrize("kind", vocabularies.KINDS)
@pytest.mark.parametrize("characters", [30, 200, 3000, 30_000])
def test_tokens_left_out_are_counted_or_estimated(kind: str, characters: int) -> None:
    text = ("The quick brown fox jumps over 12 lazy dogs. " * 1000)[:characters].strip()
    whole = len(vocabularies.tokenizer(kind)(text, add_special_tokens=False).input_ids)
    spec = BARE.changed(max_segment_tokens=64)
    found = PromptTokenizer(vocabularies.tokenizer(kind)).tokenise_request(RankRequest("q", [text]), spec).documents[0]
    assert found.cut_is_estimate is (characters > 8 * 64 and whole > 64)
    assert found.body_tokens + found.cut == pytest.approx(whole, rel=0.1 if found.cut_is_estimate else 0)


def test_a_text_of_few_tokens_is_read_to_its_sixty_fourth_character_a_token() -> None:
    kind = PromptTokenizer(vocabularies.tokenizer("wordpiece"))
    spec = BARE.changed(max_segment_tokens=64)
    for gap, read in ((3000, 2), (5000, 1)):
        found = kind.tokenise_request(RankRequest("q", [f"fox{' ' * gap}dog"]), spec).documents[0]
        assert (found.body_tokens > 1) is (read == 2)
        assert found.cut_is_estimate is (read == 1)
        assert (found.cut > 0) is (read == 1)
