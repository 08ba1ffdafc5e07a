"""Cosines of documents embedded alone and a query embedded with the first of them, as a plain model gives them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import CPU, TOLERANCE, random_decoder
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from test_scorers_pointwise import QUERY, TEXTS, by_text, chat_tokenizer
from torch.nn import functional as F

from blockrank import Document, InputError, Ranker, RankRequest
from blockrank.attention import get_backend
from blockrank.model import LoadedModel, RankModel
from blockrank.scorers import EmbeddingScorer
from blockrank.spec import BARE_SPEC

END = "<|im_end|>"
LEAD = "Given a web search query and some relevant documents, rerank the documents that answer the query:"


def decoder(kind: str) -> Any:
    module = random_decoder(kind)
    for name, weight in module.named_parameters():
        weight.data *= 4 if weight.ndim > 1 and "embed" not in name else 1
    return module


def make(top: int = 3, tokenizer: str = "bytes", kind: str = "qwen3", *, fused: bool = True, **options: Any) -> Ranker:
    weights = LoadedModel(decoder(kind), chat_tokenizer(tokenizer))
    if fused:
        weights.fuse()
    model = RankModel(weights, BARE_SPEC, get_backend("sdpa", CPU, torch.float32))
    return Ranker(model, EmbeddingScorer(top=top, end=END), **options)


def plain(texts: list[str], top: int, tokenizer: str = "bytes", kind: str = "qwen3") -> dict[str, float]:
    """Cosines by the library alone: its chat, its tokens, its own eager attention, a prompt at a time."""
    library, module = chat_tokenizer(tokenizer), decoder(kind)
    module.set_attn_implementation("eager")

    def vector(text: str) -> torch.Tensor:
        ids = library(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            return F.normalize(module(ids).last_hidden_state[0, -1], dim=0)

    listed = "\n".join(f"[{place}] {text.strip()}" for place, text in enumerate(texts[:top], start=1))
    turn = [{"role": "user", "content": f"{LEAD}\nDocuments:\n{listed}\nSearch Query: {QUERY}"}]
    query_D = vector(
        library.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    )
    return {text: float(vector(text.strip() + END) @ query_D) for text in texts}


@pytest.mark.parametrize(
    ("tokenizer", "kind", "fused"),
    [("bytes", "qwen3", True), ("llama-3", "llama", True), ("gpt-2", "qwen3", False), ("bytes", "gpt2", False)],
)
def test_cosines_are_those_of_a_plain_model(tokenizer: str, kind: str, fused: bool) -> None:
    """Also of the candidates that do not stand in the chat."""
    expected = plain(TEXTS, 3, tokenizer, kind)
    assert max(expected.values()) - min(expected.values()) > 0.01
    ranker = make(3, tokenizer, kind, fused=fused)
    assert by_text(ranker, TEXTS) == pytest.approx(expected, abs=1e-5)
    assert ranker.rank(QUERY, TEXTS).kind == "relative"


def test_documents_in_one_forward_are_as_one_by_one() -> None:
    together = by_text(make(), TEXTS)
    apart = make(max_tokens=1)
    assert by_text(apart, TEXTS) == pytest.approx(together, abs=TOLERANCE["float32"])
    requests = [RankRequest(QUERY, TEXTS), RankRequest("oak", TEXTS[:2])]
    for one, two in zip(make().rank_many(requests), apart.rank_many(requests), strict=True):
        assert [entry.score for entry in one] == pytest.approx([entry.score for entry in two], abs=1e-5)


def test_vectors_are_kept_where_there_is_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[int] = []
    forward = RankModel.forward

    def counted(model: RankModel, layout: Any, *arguments: Any, **named: Any) -> Any:
        tokens.append(layout.tokens)
        return forward(model, layout, *arguments, **named)

    monkeypatch.setattr(RankModel, "forward", counted)
    ranker, expected = make(), by_text(make(), TEXTS)
    assert not ranker.remember([Document(TEXTS[0])], 1 << 20), "that is for keys"
    store = ranker.reuse(1 << 20)
    assert store is not None
    tokens.clear()
    for _ in range(2):
        assert by_text(ranker, TEXTS) == pytest.approx(expected, abs=TOLERANCE["float32"])
    prompts = ranker.tokenise(RankRequest(QUERY, TEXTS))
    assert tokens == [prompts.length, prompts.parts[0].length]
    assert len(store) == len(TEXTS)
    assert by_text(ranker, TEXTS[::-1]) != expected, "the chat is another"
    assert len(store) == len(TEXTS)


def test_equal_documents_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ranker = make(1)
    requests = [RankRequest(QUERY, ["fox", "oak", "fox"]), RankRequest("oak", ["oak", "fox"])]
    expected = [by_text(make(1), [item.text for item in request.candidates], request.query) for request in requests]
    lengths: list[int] = []
    forward = RankModel.forward

    def counted(model: RankModel, layout: Any, *arguments: Any, **named: Any) -> Any:
        lengths.append(layout.requests)
        return forward(model, layout, *arguments, **named)

    monkeypatch.setattr(RankModel, "forward", counted)
    for ranking, wanted in zip(ranker.rank_many(requests), expected, strict=True):
        assert {entry.text: entry.score for entry in ranking} == pytest.approx(wanted, abs=TOLERANCE["float32"])
    assert lengths == [2 + 2], "two chats, two documents"


def test_the_chat_holds_the_first_candidates_that_can_be_read() -> None:
    prompts = make(2).tokenise(RankRequest(QUERY, ["", *TEXTS]))
    assert prompts.parts[0].indices == (1, 2)
    assert list(prompts.indices) == [1, 2, 3, 4, 5]
    assert [part.length for part in prompts.parts[1:]] == [len(text.strip()) + 1 for text in TEXTS]


def test_what_a_document_loses_is_told() -> None:
    ranker = make()
    short = Ranker(ranker.model.with_spec(ranker.spec.changed(max_segment_tokens=20)), ranker.scorer)
    ranking = short.rank(QUERY, ["x" * 50, "oak"])
    entry = next(item for item in ranking if item.index == 0)
    assert entry.cut_tokens == 50 - (20 - len("[1] \n"))  # in the chat, where it loses most


@given(order=st.permutations(range(len(TEXTS))))
@example_settings(max_examples=5)
def test_every_document_is_ranked_once(order: list[int]) -> None:
    texts = [TEXTS[index] for index in order]
    ranking = make(2).rank(QUERY, [*texts, " "])
    assert sorted(entry.index for entry in ranking) == list(range(len(texts) + 1))
    assert ranking[-1].text == " "
    assert all(-1.00001 <= entry.score <= 1.00001 for entry in ranking[:-1])
    assert all(0 <= entry.score <= 1 for entry in ranking.in_unit_range())


def test_what_cannot_be_is_one_sentence() -> None:
    model = make().model
    with pytest.raises(InputError, match=r"end must be one token of this tokenizer, and '<\|endoftext\|>' is 13"):
        Ranker(model, "embedding")
    with pytest.raises(InputError, match="top must be positive, not 0"):
        Ranker(model, "embedding:top=0")
    with pytest.raises(InputError, match="the scorer 'embedding' gives no evidence"):
        make().rank(QUERY, TEXTS, evidence=True)
    assert by_text(Ranker(model, "embedding:end=,top=3"), TEXTS) != by_text(make(), TEXTS)
