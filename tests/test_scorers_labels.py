"""Labels read as the next token (`first_token`, `setwise`): the prompts as a model sees them, and scores against plain
transformers."""

from __future__ import annotations

from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOLERANCE, byte_tokenizer
from labelled import chat_tokenizer, plain, prompt_text, saved_model

from blockrank import InputError, ModelError, Ranker, RankRequest, RankSpec, Template
from blockrank.layout import PromptTokenizer
from blockrank.scorers import SCORERS, FirstTokenScorer, SetwiseScorer, resolve_scorer
from blockrank.scorers.checking import RequestCheck
from blockrank.scorers.labels import label_log_shares, label_tokens
from blockrank.spec import BARE_SPEC, TEMPLATES

TEXTS = ["Bram Stoker wrote it.", "See [A] and [3].", "Nobody {query} knows"]
SYSTEM = "You are RankLLM, an intelligent assistant that can rank passages based on their relevancy to the query"
LISTWISE = (
    f"<|im_end|>system\n{SYSTEM}<|im_end|>user\n"
    "I will provide you with 3 passages, each indicated by a %s identifier []. Rank the passages based on their "
    "relevance to the search query: who wrote Dracula.\n\n%s"
    "Search Query: who wrote Dracula.\nRank the 3 passages above based on their relevance to the search query. All the "
    "passages should be included and listed using identifiers, in descending order of relevance. The output format "
    "should be [] > [], e.g., %s, Only respond with the ranking results, do not say any word or explain."
    "<|im_end|>assistant\n["
)
LETTERS = LISTWISE % (
    "alphabetical",
    "[A] Bram Stoker wrote it.\n[B] See (A) and [3].\n[C] Nobody {query} knows\n",
    "[B] > [A]",
)
NUMBERS = LISTWISE % (
    "numerical",
    "[1] Bram Stoker wrote it.\n[2] See [A] and (3).\n[3] Nobody {query} knows\n",
    "[2] > [1]",
)
SETWISE = (
    "<|im_end|>user\nHere is a search query, and passages that may answer it.\n\nQuery: who wrote Dracula\n"
    'Passage A: "Bram Stoker wrote it."\nPassage B: "See [A] and [3]."\nPassage C: "Nobody {query} knows"\n'
    'Which of the 3 passages above answers the query "who wrote Dracula" best? Say the label of that passage, and '
    "nothing else.<|im_end|>assistant\nPassage:"
)
QUERY = "who wrote Dracula"
KINDS = ("first_token", "first_token:ids=numbers", "setwise")
SEEN = dict(zip(KINDS, (LETTERS, NUMBERS, SETWISE), strict=True))
LABELS = dict(zip(KINDS, ("ABC", "123", [" A", " B", " C"]), strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer splits numbers."""
    return saved_model(tmp_path_factory.mktemp("splits"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another family whose tokenizer has numbers up to 99."""
    return saved_model(tmp_path_factory.mktemp("whole"), "llama", whole_numbers=True)


def ranker_of(folder: Path, scorer: Any, **named: Any) -> Ranker:
    return Ranker.from_pretrained(folder, scorer=scorer, device="cpu", **named)


def own(whole_numbers: bool) -> PromptTokenizer:
    return PromptTokenizer(chat_tokenizer(whole_numbers=whole_numbers))


# Prompts and scores


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_sees_this_text(folder: Path, kind: str) -> None:
    assert prompt_text(ranker_of(folder, kind), RankRequest(QUERY, TEXTS)) == SEEN[kind]


@pytest.mark.parametrize("layers", [None, "library"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_plain_library(folder: Path, kind: str, layers: Any) -> None:
    ranking = ranker_of(folder, kind, layers=layers).rank(QUERY, [*TEXTS, "  "])
    ids = [chat_tokenizer(whole_numbers=False).encode(label, add_special_tokens=False) for label in LABELS[kind]]
    assert all(len(one) == 1 for one in ids)
    expected = plain(folder)(SEEN[kind])[[one[0] for one in ids]].softmax(0)
    for entry in ranking[:-1]:
        assert entry.score == pytest.approx(float(expected[entry.index]), abs=1e-5)
    assert ranking.kind == "share"
    assert (ranking[-1].index, ranking[-1].score) == (3, 0.0), "what cannot be read has no label"
    assert max(expected) - min(expected) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_requests_together_score_as_alone(folder: Path, kind: str) -> None:
    ranker = ranker_of(folder, kind)
    requests = [RankRequest(f"q{n}", [f"text {i} {n}" for i in range(n)], str(n)) for n in (1, 9, 4, 2)]
    for request, together in zip(requests, ranker.rank_many(requests), strict=True):
        alone = ranker.rank(request.query, request.candidates)
        scores = {entry.index: entry.score for entry in alone}
        assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
        for entry in together:
            assert entry.score == pytest.approx(scores[entry.index], abs=TOLERANCE["float32"])


def test_a_document_that_is_cut_keeps_its_label(folder: Path) -> None:
    ranker = ranker_of(folder, "first_token").with_spec(max_segment_tokens=12)
    assert "\n[B] See (A) \n[C] Nobody {\n" in prompt_text(ranker, RankRequest(QUERY, TEXTS))


def test_shares_of_requests_are_apart() -> None:
    logits_BV = torch.tensor([[9.0, 1.0, 2.0, 3.0], [9.0, 0.0, 0.0, 5.0]])
    found = label_log_shares(logits_BV, [1, 2, 3], np.array([3, 2])).exp()
    torch.testing.assert_close(found, torch.cat([torch.tensor([1.0, 2.0, 3.0]).softmax(0), torch.tensor([0.5, 0.5])]))


# Labels


def test_auto_takes_numbers_where_they_are_tokens_and_letters_elsewhere(folder: Path, whole: Path) -> None:
    request = RankRequest(QUERY, TEXTS)
    assert prompt_text(ranker_of(folder, "first_token"), request) == LETTERS
    ranker = ranker_of(whole, "first_token")
    assert prompt_text(ranker, request) == NUMBERS
    many = [f"text {i}" for i in range(40)]
    ranking = ranker.rank(QUERY, many)
    tokenizer = chat_tokenizer(whole_numbers=True)
    ids = [tokenizer.encode(str(number), add_special_tokens=False)[0] for number in range(1, 41)]
    expected = plain(whole)(prompt_text(ranker, RankRequest(QUERY, many)))[ids].softmax(0)
    assert [entry.score for entry in sorted(ranking, key=lambda entry: entry.index)] == pytest.approx(
        expected.tolist(), abs=1e-5
    )
    with pytest.raises(InputError, match=r"100 documents are more than the scorer 'first_token' can tell apart .* 99 "):
        ranker.rank(QUERY, ["text"] * 100)


def test_numbers_that_begin_alike_are_never_read(folder: Path) -> None:
    """Of a tokenizer that splits numbers there are nine: the token of "10" is that of "1"."""
    assert len(label_tokens(own(False), TEMPLATES["listwise"], "", 30)) == 9  # type: ignore[arg-type]
    assert len(label_tokens(own(True), TEMPLATES["listwise"], "", 200)) == 99  # type: ignore[arg-type]
    ranker = ranker_of(folder, "first_token:ids=numbers")
    assert len(ranker.rank(QUERY, ["text"] * 9)) == 9
    with pytest.raises(InputError, match=r"10 documents are more .* \(this tokenizer has 9 numbers that are one token"):
        ranker.rank(QUERY, ["text"] * 10)


@pytest.mark.parametrize("kind", ["first_token", "setwise"])
def test_more_than_26_documents_are_refused_in_a_sentence_that_says_what_to_do(folder: Path, kind: str) -> None:
    ranker = ranker_of(folder, kind)
    assert {entry.index for entry in ranker.rank(QUERY, ["text"] * 26)} == set(range(26))
    for refusing in (lambda request: ranker.rank(QUERY, request.candidates), RequestCheck.load(folder, scorer=kind)):
        with pytest.raises(InputError, match=r"27 documents .* with the strategy 'sliding:size=20,step=10'\."):
            refusing(RankRequest(QUERY, ["text"] * 27))


def test_a_tokenizer_without_labels_is_refused_at_once(folder: Path) -> None:
    """A byte tokenizer writes a space and a letter as two tokens."""
    model = ranker_of(folder, "first_token").model
    bytes_alone = PromptTokenizer(byte_tokenizer())
    assert label_tokens(bytes_alone, TEMPLATES["setwise"], " ", 3) == []
    assert len(label_tokens(bytes_alone, TEMPLATES["setwise"], "", 30)) == 26
    own_end = Template(("{query}",), ("{text}",), ("",), answer="[")
    with pytest.raises(InputError, match="needs a template that names documents, and an answer's opening"):
        Ranker(model.with_spec(RankSpec.of(layer=0, template=own_end)), "first_token:prompt=checkpoint")


def test_a_tokenizer_that_merges_labels_with_what_stands_before_them_has_none() -> None:
    class Merging(PromptTokenizer):
        def encode_parts(self, parts: Any) -> Any:
            return super().encode_parts(["", "".join(parts[:2]), parts[2]])

    assert label_tokens(Merging(byte_tokenizer()), TEMPLATES["listwise-letters"], "", 26) == []


# Specs


@pytest.mark.parametrize("scorer", [FirstTokenScorer(), FirstTokenScorer("numbers"), SetwiseScorer()])
def test_what_is_adapted_stays_so_and_may_be_changed(scorer: Any) -> None:
    strange = RankSpec.of(
        layer=3, template="query-free", document_attention="bidirectional", query_reads="own", prune=((1, 0.5),)
    )
    for spec in (BARE_SPEC, strange):
        adapted = scorer.adapted(spec)
        assert scorer.adapted(adapted) == adapted
        assert (adapted.pattern.kind, adapted.pattern.query_offset, adapted.leaves_early) == ("causal", None, False)
        block = adapted.changed(pattern="block")
        assert scorer.adapted(block) == block, "a model that was trained so"


def test_a_published_checkpoint_names_its_scorer() -> None:
    scorer, spec = resolve_scorer("rryisthebest/First_Model")
    assert scorer == FirstTokenScorer("letters")
    assert spec == scorer.adapted(BARE_SPEC).changed(scorer="first_token:ids=letters")


def test_letters_and_numbers_are_prompts_of_their_own() -> None:
    spec = FirstTokenScorer("numbers").adapted(BARE_SPEC)
    assert FirstTokenScorer("letters").adapted(spec).prompt.ids == "letters"
    assert FirstTokenScorer("auto").adapted(spec) == spec
    assert TEMPLATES["listwise-letters"].id(25) == ascii_uppercase[25]


def test_the_prompt_of_a_checkpoint_is_read_where_that_is_asked_for(folder: Path) -> None:
    template = Template(("{query}|",), ("<{id}>{text}",), ("!",), answer="(", answer_end=")")
    spec = RankSpec.of(layer=1, template=template, query_offset=None)
    ranker = ranker_of(folder, "first_token:prompt=checkpoint", spec=spec)
    assert ranker.spec == spec
    assert prompt_text(ranker, RankRequest("q", ["one", "two"])) == "q|<0>one<1>two!("
    assert sum(entry.score for entry in ranker.rank("q", ["one", "two"])) == pytest.approx(1, abs=1e-6)
    with pytest.raises(InputError, match="ids are those of the checkpoint's own prompt, not 'letters'"):
        FirstTokenScorer("letters", "checkpoint")


@pytest.mark.parametrize("change", [{"query_reads": "own", "pattern": "block"}, {"prune": ((0, 0.5),)}])
def test_what_keeps_the_answer_from_reading_every_document_is_refused(folder: Path, change: dict[str, Any]) -> None:
    ranker = ranker_of(folder, "setwise").with_spec(layer=1)
    with pytest.raises(InputError, match=r"^the scorer 'setwise' needs .*|not with RankSpec.prune"):
        ranker.with_spec(**change)


def test_what_else_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="the scorer 'setwise' gives no evidence"):
        ranker_of(folder, "setwise").rank("q", TEXTS, evidence=True)
    with pytest.raises(InputError, match="answer must be 'logits', not 'smile'"):
        SCORERS.make("setwise:answer=smile")
    with pytest.raises(ModelError, match="no language-model head"):
        Ranker.from_pretrained(scorer="first_token", device="cpu")
