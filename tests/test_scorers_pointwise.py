"""Each document alone with the query, packed: as a prompt for each, and as a plain model on the text of that prompt."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU, TOLERANCE, byte_tokenizer, random_decoder
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from test_layout_chat import CHATML
from transformers import AutoModelForCausalLM
from vocabularies import tokenizer as vocabulary

from blockrank import InputError, ModelError, Ranker, RankRequest, RankSpec, Template
from blockrank.attention import get_backend
from blockrank.engine import parts as engine_parts
from blockrank.model import LoadedModel, RankModel, rank_model
from blockrank.scorers import SCORERS, PointwiseScorer
from blockrank.spec import BARE_SPEC

TEXTS = ["red fox 12.", "Der Fuchs: springt\n", "lazy dogs, 1.234 of them;", "oak", "ash (tree)"]
QUERY = "which fox is quicker?"
SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
    'answer can only be "yes" or "no".'
)
CLOSING = "<|im_end|><|im_end|>assistant:(thought)"
# A chat template that marks the end of a turn, as most do.
CHAT = CHATML.replace("m.content }}", "m.content + '<|im_end|>' }}")


def chat_tokenizer(kind: str, chat: str | None = CHAT) -> Any:
    found = copy.deepcopy(byte_tokenizer() if kind == "bytes" else vocabulary(kind))
    found.chat_template = chat
    return found


def decoder(kind: str = "qwen3") -> Any:
    """With weights so large that answers differ."""
    module = random_decoder(kind, head=True)
    for name, weight in module.named_parameters():
        weight.data *= 4 if weight.ndim > 1 and "embed" not in name else 1
    return module


def make(
    scorer: str | PointwiseScorer = "pointwise:yes=y,no=n", tokenizer: str = "bytes", kind: str = "qwen3", *,
    fused: bool = True, **spec: Any,
) -> Ranker:  # fmt: skip
    weights = LoadedModel(decoder(kind), chat_tokenizer(tokenizer))
    if fused:
        weights.fuse()
    return Ranker(RankModel(weights, BARE_SPEC.changed(**spec), get_backend("sdpa", CPU, torch.float32)), scorer)


def plain(text: str, tokenizer: str = "bytes", kind: str = "qwen3", query: str = QUERY) -> float:
    """The score by the library alone: its chat, its tokens, its own eager attention over one prompt."""
    library = chat_tokenizer(tokenizer)
    instruct = PointwiseScorer().instruction
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"<Instruct>: {instruct}\n<Query>: {query}\n<Document>: {text}"},
    ]
    prompt = library.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    ids = library(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    module = decoder(kind)
    module.set_attn_implementation("eager")
    with torch.inference_mode():
        logits = module(ids).logits[0, -1]
    pair = [library(word, add_special_tokens=False)["input_ids"][0] for word in ("n", "y")]
    return float(logits[pair].softmax(0)[1])


def by_text(ranker: Ranker, texts: list[str], query: str = QUERY) -> dict[str, float]:
    return {entry.text: entry.score for entry in ranker.rank(query, texts)}


@pytest.fixture(scope="module")
def packed() -> Ranker:
    return make()


@pytest.mark.parametrize(("tokenizer", "kind"), [("bytes", "qwen3"), ("llama-3", "llama"), ("gpt-2", "mistral")])
def test_packed_equals_one_by_one_and_a_plain_model(tokenizer: str, kind: str) -> None:
    expected = {text: plain(text.strip(), tokenizer, kind) for text in TEXTS}
    assert max(expected.values()) - min(expected.values()) > 0.01
    for packed, fused in itertools.product((True, False), (True, False)):
        ranker = make(PointwiseScorer(packed, "y", "n"), tokenizer, kind, fused=fused)
        assert by_text(ranker, TEXTS) == pytest.approx(expected, abs=1e-5), (packed, fused)


def test_a_family_without_fused_layers_is_read_too() -> None:
    ranker = make(kind="gpt2", fused=False)
    assert by_text(ranker, TEXTS) == pytest.approx({text: plain(text.strip(), kind="gpt2") for text in TEXTS}, abs=1e-5)


def test_one_forward_holds_instruction_and_query_once(packed: Ranker) -> None:
    [prompt] = packed.tokenise(RankRequest(QUERY, TEXTS)).parts
    texts = [byte_tokenizer().decode(segment.ids.tolist()) for segment in prompt.segments]
    assert texts[0].endswith(f"<Query>: {QUERY}\n")
    assert texts[1:-1] == [f"<Document>: {text.strip()}{CLOSING}" for text in TEXTS]
    assert texts[-1] == ""


def test_one_row_of_logits_is_computed_for_a_document(packed: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    head = packed.model.module.lm_head
    monkeypatch.setattr(type(head), "forward", lambda self, x: (seen.append(len(x)), x @ self.weight.T)[1])
    packed.rank(QUERY, TEXTS)
    assert seen == [len(TEXTS)]


@given(order=st.permutations(range(len(TEXTS))), count=st.integers(1, len(TEXTS)))
@example_settings(max_examples=10)
def test_neither_order_nor_company_matters(packed: Ranker, order: list[int], count: int) -> None:
    whole = by_text(packed, TEXTS)
    chosen = [TEXTS[index] for index in order[:count]]
    assert by_text(packed, chosen) == pytest.approx({text: whole[text] for text in chosen}, abs=TOLERANCE["float32"])


def test_several_requests_share_a_forward(packed: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [RankRequest(QUERY, TEXTS), RankRequest("oak", TEXTS[1:3]), RankRequest("what is ash", [TEXTS[4]])]
    alone = [[entry.score for entry in packed.rank_many([request])[0]] for request in requests]
    counts: list[int] = []
    forward = RankModel.forward

    def counted(model: RankModel, layout: Any, *arguments: Any, **named: Any) -> Any:
        counts.append(layout.requests)
        return forward(model, layout, *arguments, **named)

    monkeypatch.setattr(RankModel, "forward", counted)
    for ranking, expected in zip(packed.rank_many(requests), alone, strict=True):
        assert [entry.score for entry in ranking] == pytest.approx(expected, abs=TOLERANCE["float32"])
    assert counts == [3]


def test_a_cut_document_keeps_what_closes_the_chat() -> None:
    limit = 60
    ranker = make(max_segment_tokens=limit)
    text = "fox " * 40
    ranking = ranker.rank(QUERY, [text, "oak"])
    entry = next(item for item in ranking if item.index == 0)
    room = limit - len("<Document>: ") - len(CLOSING) + 2 * (len("<|im_end|>") - 1)  # a control token is one token
    assert (entry.tokens, entry.cut_tokens) == (room, len(text.strip()) - room)
    assert entry.score == pytest.approx(plain(text[:room]), abs=1e-5)


def test_several_devices_share_the_documents(packed: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_model, "_LEAST_SHARED_TOKENS", 1)
    shares: list[int] = []
    start = engine_parts.share_out
    monkeypatch.setattr(engine_parts, "share_out", lambda sizes, parts: (shares.append(parts), start(sizes, parts))[1])
    two = make()
    two.model.replicas = (make().model,)
    assert by_text(two, TEXTS) == pytest.approx(by_text(packed, TEXTS), abs=TOLERANCE["float32"])
    assert 2 in shares


@given(texts=st.lists(st.sampled_from([*TEXTS, "", " ", "a", "fox"]), min_size=1, max_size=6), seed=st.integers(0, 99))
@example_settings(max_examples=20)
def test_every_document_is_ranked_once_whatever_the_model_says(texts: list[str], seed: int) -> None:
    ranker = make()
    ranker.model.module.lm_head.weight.data.normal_(0, 1e3, generator=torch.Generator().manual_seed(seed))
    if not any(text.strip() for text in texts):
        with pytest.raises(InputError):
            ranker.rank(QUERY, texts)
        return
    ranking = ranker.rank(QUERY, texts)
    assert sorted(entry.index for entry in ranking) == list(range(len(texts)))
    assert all(0 <= entry.score <= 1 for entry in ranking)


@pytest.mark.parametrize(
    ("scorer", "sentence"),
    [
        ("pointwise", "no must be one token of this tokenizer, and 'no' is 2"),
        ("pointwise:yes=yes,no=n", "yes must be one token of this tokenizer, and 'yes' is 3"),
        ("pointwise:yes=y,no=y", "yes 'y' and no 'y' are the same token"),
    ],
)
def test_answers_that_cannot_be_told_apart_are_refused(packed: Ranker, scorer: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Ranker(packed.model, scorer)


def test_evidence_is_refused(packed: Ranker) -> None:
    with pytest.raises(InputError, match="the scorer 'pointwise' gives no evidence"):
        packed.rank(QUERY, TEXTS, evidence=True)


@pytest.mark.parametrize(
    "name", ["pointwise", "pointwise:packed=false", "scalar", "scalar:end=</s>", "embedding:top=3"]
)
def test_an_adapted_spec_stays_as_it_is(name: str) -> None:
    scorer = SCORERS.make(name)
    first = RankSpec.of(layer=2, template="query-free", query_reads="own", document_attention="bidirectional",
                        prune=((0, 0.5),))  # fmt: skip
    for spec in (first, BARE_SPEC):
        once = scorer.adapted(spec)
        assert scorer.adapted(once) == once
        assert (once.pattern.query_offset, once.leaves_early) == (None, False)


def test_a_bare_checkpoint_is_probed_to_its_last_layer(tmp_path: Path) -> None:
    module = decoder("llama")
    module.save_pretrained(tmp_path)
    chat_tokenizer("bytes").save_pretrained(tmp_path)
    ranker = Ranker.from_pretrained(tmp_path, scorer="pointwise:yes=y,no=n", device="cpu")
    assert by_text(ranker, TEXTS) == pytest.approx(
        {text: plain(text.strip(), kind="llama") for text in TEXTS}, abs=1e-5
    )
    assert ranker.identity()["scorer"]["packed"]
    broken = AutoModelForCausalLM.from_pretrained(tmp_path)
    broken.model.layers[-1].mlp.up_proj.weight.data[:] = 3e38  # infinite beyond the first layer alone
    broken.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"not finite|differ"):
        Ranker.from_pretrained(tmp_path, scorer="pointwise:yes=y,no=n", device="cpu")


def test_a_prompt_may_end_in_its_documents() -> None:
    assert Template(("{query}",), ("{text}",), ()).ends_in_documents
    assert not Template(("{query}",), ("{text}",), (), answer="[").ends_in_documents
    layout_ids = make().tokenise(RankRequest("q", ["a"])).only.segments[-1].ids
    assert layout_ids.dtype == np.int64
    assert len(layout_ids) == 0
