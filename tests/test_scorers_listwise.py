"""Orders that a model writes: greedy ones against a decoder that runs the plain library's model for each token, and
valid ones whatever the model would rather write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled import chat_tokenizer, plain, prompt_text, saved_model
from test_scorers_labels import NUMBERS, QUERY, TEXTS

from blockrank import InputError, Ranker, RankRequest, RankSpec
from blockrank.attention import get_backend
from blockrank.model import LoadedModel, RankModel
from blockrank.scorers import ListwiseScorer
from blockrank.spec import BARE_SPEC

WORDS = ("red", "blue", "green", "ash", "oak", "elm")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer splits numbers."""
    return saved_model(tmp_path_factory.mktemp("splits"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another family whose tokenizer has numbers up to 99."""
    return saved_model(tmp_path_factory.mktemp("whole"), "llama", whole_numbers=True)


def ranker_of(folder: Path, scorer: Any = "listwise", **named: Any) -> Ranker:
    return Ranker.from_pretrained(folder, scorer=scorer, device="cpu", **named)


def many(count: int, query: str = "red") -> RankRequest:
    return RankRequest(query, [f"{WORDS[i % 6]} {i}" for i in range(count)])


def order(ranker: Ranker, request: RankRequest) -> list[int]:
    return [entry.index for entry in ranker.rank(request.query, request.candidates)]


def greedy(folder: Path, prompt: str, count: int, top: int, *, whole_numbers: bool) -> list[int]:
    """The order that is written token by token, each the likeliest that can still become an order of all ids."""
    logits, tokenizer = plain(folder), chat_tokenizer(whole_numbers=whole_numbers)

    def tokens(text: str) -> list[str]:
        return [str(tokenizer.decode([i])) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]

    names = {str(number): tokens(str(number)) for number in range(1, count + 1)}
    written, text = list[str](), prompt
    while len(written) < top:
        begun: list[str] = []
        while True:
            open_names = [name for name, parts in names.items() if name not in written and parts[: len(begun)] == begun]
            ways = {names[name][len(begun)] if len(names[name]) > len(begun) else "]" for name in open_names}
            z = logits(text + "".join(begun)) if len(ways) > 1 else None
            best = max(ways, key=lambda way: 0.0 if z is None else float(z[tokenizer.convert_tokens_to_ids(way)]))
            if best == "]":
                break
            begun.append(best)
        written.append("".join(begun))
        text += "".join(begun) + "] > ["
    rest = [name for name in names if name not in written]
    return [int(name) - 1 for name in [*written, *rest]]


def test_the_model_sees_this_text(folder: Path) -> None:
    assert prompt_text(ranker_of(folder), RankRequest(QUERY, TEXTS)) == NUMBERS


@pytest.mark.parametrize("layers", [None, "library"])
@pytest.mark.parametrize(("count", "top"), [(1, None), (2, None), (12, None), (13, 4)])
def test_the_order_is_that_of_a_naive_greedy_decoder(folder: Path, count: int, top: int | None, layers: Any) -> None:
    ranker, request = ranker_of(folder, ListwiseScorer(top=top), layers=layers), many(count)
    expected = greedy(folder, prompt_text(ranker, request), count, min(top or count, count), whole_numbers=False)
    assert order(ranker, request) == expected
    if count > 10:
        assert expected != list(range(count))


def test_numbers_of_one_token_are_written_as_such(whole: Path) -> None:
    ranker, request = ranker_of(whole), many(14)
    assert order(ranker, request) == greedy(whole, prompt_text(ranker, request), 14, 14, whole_numbers=True)


def test_only_so_many_ids_are_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`top` ends the writing: the beginning is that of the whole order, and what follows that of the request."""
    request, forwards = many(12), list[int]()
    ranker, whole_ranker = ranker_of(folder, "listwise:top=3"), ranker_of(folder)
    forward = RankModel.forward

    def counted(self: RankModel, *given: Any, **named: Any) -> Any:
        forwards.append(1)
        return forward(self, *given, **named)

    everything = order(whole_ranker, request)
    monkeypatch.setattr(RankModel, "forward", counted)
    found = order(ranker, request)
    assert found[:3] == everything[:3]
    assert found[3:] == sorted(found[3:])
    assert 3 <= len(forwards) <= 6, "the prompt, and a step a choice"
    forwards.clear()
    assert order(whole_ranker, RankRequest("q", ["a", "b"])) in ([0, 1], [1, 0])
    assert len(forwards) == 1, "the last id is settled without the model"


def test_requests_together_are_ordered_as_alone(folder: Path) -> None:
    ranker = ranker_of(folder)
    requests = [many(12), many(3, "oak"), many(1, "elm"), many(10, "ash")]
    for request, ranking in zip(requests, ranker.rank_many(requests), strict=True):
        assert [entry.index for entry in ranking] == order(ranker, request)
        assert [entry.score for entry in ranking] == [-float(entry.rank) for entry in ranking]
        assert ranking.kind == "order"


@settings(max_examples=12)
@given(
    seed=st.integers(0, 99),
    counts=st.lists(st.integers(1, 23), min_size=1, max_size=3),
    top=st.one_of(st.none(), st.integers(1, 25)),
    whole_numbers=st.booleans(),
    beams=st.integers(1, 2),
)
def test_whatever_a_model_would_write_each_document_is_ranked_once(
    seed: int, counts: list[int], top: int | None, whole_numbers: bool, beams: int
) -> None:
    module = random_decoder("llama", 1, head=True, tie_word_embeddings=False)
    torch.manual_seed(seed)
    module.lm_head.weight.data = 1e4 * torch.randn_like(module.lm_head.weight)
    loaded = LoadedModel(module, chat_tokenizer(whole_numbers=whole_numbers))
    model = RankModel(loaded, BARE_SPEC, get_backend("sdpa", CPU, torch.float32))
    ranker = Ranker(model, ListwiseScorer(top=top, beams=beams))
    requests = [RankRequest("q", [*(f"text {i}" for i in range(count)), " "]) for count in counts]
    for count, ranking in zip(counts, ranker.rank_many(requests), strict=True):
        assert sorted(entry.index for entry in ranking) == list(range(count + 1))
        assert ranking[-1].index == count, "what cannot be read comes last"


def test_a_hundred_documents_fit_into_one_prompt(folder: Path) -> None:
    found = order(ranker_of(folder, "listwise:top=2"), RankRequest("q", [f"t{i}" for i in range(100)]))
    assert sorted(found) == list(range(100))


def test_what_is_adapted_stays_so(folder: Path) -> None:
    scorer = ListwiseScorer()
    adapted = scorer.adapted(RankSpec.of(layer=3, template="query-free", query_reads="own", prune=((1, 0.5),)))
    assert (adapted.template, adapted.pattern.kind, adapted.leaves_early) == ("listwise", "causal", False)
    assert scorer.adapted(adapted) == adapted
    block = ranker_of(folder).with_spec(pattern="block")
    assert block.spec.pattern.kind == "block", "a model that was trained so"
    assert sorted(order(block, many(4))) == [0, 1, 2, 3]


def test_what_cannot_be_asked_for_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="top must be positive, not 0"):
        ListwiseScorer(top=0)
    with pytest.raises(InputError, match="separator and end of the template's answer cannot be told apart"):
        ranker_of(folder, "listwise:form=list").rank("q", TEXTS)
    with pytest.raises(InputError, match="no evidence"):
        ranker_of(folder).rank("q", TEXTS, evidence=True)
