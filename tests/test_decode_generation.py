"""Free text: against `generate` token for token, where texts end, and random numbers that are each prompt's own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU, FAMILIES, byte_tokenizer, golden_module, golden_spec, random_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.generation import TemperatureLogitsWarper, TopPLogitsWarper
from vocabularies import KINDS, tokenizer

from blockrank import InputError, ModelError, RankRequest, Template
from blockrank.attention import get_backend
from blockrank.decode import Sampling, generate
from blockrank.decode.generation import Ending, end_tokens
from blockrank.decode.sampling import choose
from blockrank.layout import TokenisedRequest
from blockrank.model import LoadedModel, RankModel

TEMPLATE = Template(("Query: {query}\n",), ("[{id}] {text}\n",), ("Answer:",))
REQUESTS = (RankRequest("red", ["a", "bb"]), RankRequest("a longer query", ["ccc " * 9] * 3), RankRequest("x", ["y"]))
COUNT = 16
SEEDS = (3, 4, 5)


@cache
def model_of(family: str = "qwen3", layers: str = "fused", backend: str = "sdpa", pattern: Any = "causal") -> RankModel:
    """A golden model that reads bytes; its logits are made wide, so that choices differ."""
    module = golden_module(family)
    module.lm_head.weight.data *= 4
    weights = LoadedModel(module, byte_tokenizer(), family)
    if layers == "fused":
        weights.fuse()
    spec = golden_spec(template=TEMPLATE, pattern=pattern, query_offset=None)
    return RankModel(weights, spec, get_backend(backend, CPU, torch.float32))


def prompts_of(model: RankModel, requests: Sequence[RankRequest] = REQUESTS) -> list[TokenisedRequest]:
    assert model.tokenizer is not None
    return [model.tokenizer.tokenise_request(request, model.spec) for request in requests]


@cache
def expected(family: str, end: tuple[int, ...] = ()) -> list[list[int]]:
    """The tokens that the library's own model writes after each prompt, greedily and with eager attention."""
    plain = golden_module(family)
    plain.lm_head.weight.data *= 4
    plain.set_attn_implementation("eager")
    options = GenerationConfig(max_new_tokens=COUNT, do_sample=False, eos_token_id=list(end) or None, pad_token_id=0)
    found = []
    for prompt in prompts_of(model_of(family)):
        ids = torch.from_numpy(np.concatenate([part.ids for part in prompt.segments]))[None]
        with torch.inference_mode():
            written = plain.generate(ids, options, attention_mask=torch.ones_like(ids))
        found.append(written[0, ids.shape[1] :].tolist())
    return found


@pytest.mark.parametrize("layers", ["fused", "library"])
@pytest.mark.parametrize("family", FAMILIES)
def test_texts_equal_those_of_the_library(family: str, layers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together and alone; one that ends leaves the others going on."""
    model = model_of(family, layers)
    whole = expected(family)
    assert len({tuple(tokens) for tokens in whole}) == len(REQUESTS), "prompts that lead to different texts"
    for end in ((), (whole[0][COUNT // 2], whole[1][COUNT // 3])):
        monkeypatch.setattr(model.module.generation_config, "eos_token_id", list(end) or None)
        wanted = expected(family, end)
        together = generate(model, prompts_of(model), Sampling(COUNT))
        assert [list(one.tokens) for one in together] == wanted
        assert together == generate(model, prompts_of(model), Sampling(COUNT), max_tokens=1)
        for one in together:
            assert one.reached_limit == (one.tokens[-1] not in end)
            body = one.tokens if one.reached_limit else one.tokens[:-1]
            assert one.text == byte_tokenizer().decode(body)
    assert any(len(tokens) < COUNT for tokens in wanted)


@pytest.mark.parametrize("pattern", ["causal", "block"])
def test_backends_agree(pattern: str) -> None:
    one, two = (model_of("qwen3", "library", backend, pattern) for backend in ("sdpa", "reference"))
    assert generate(one, prompts_of(one), Sampling(COUNT)) == generate(two, prompts_of(two), Sampling(COUNT))


# Sampling


@settings(max_examples=30)
@given(
    logits=st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=12),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_p=st.sampled_from([0.05, 0.5, 0.8, 1.0]),
)
def test_tokens_are_drawn_as_often_as_the_library_says(logits: list[float], temperature: float, top_p: float) -> None:
    """Draws spread evenly over [0, 1) give each token its share."""
    draws, row = 4096, torch.tensor([logits])
    warped = TemperatureLogitsWarper(temperature)(None, row) if temperature != 1 else row
    warped = TopPLogitsWarper(top_p)(None, warped) if top_p < 1 else warped
    shares = warped.softmax(1)[0]
    sampling = Sampling(1, temperature, top_p)
    chosen = choose(row.expand(draws, -1), sampling, (torch.arange(draws) + 0.5) / draws)
    found = torch.bincount(chosen, minlength=len(logits)) / draws
    # Sums that reach top_p within rounding may keep one token more or less; its share is then told from the others'.
    sums = row.div(temperature).softmax(1).sort(1, descending=True).values.cumsum(1)
    if (sums - top_p).abs().min() > 1e-5 and len(set(logits)) == len(logits):
        torch.testing.assert_close(found, shares, atol=2 / draws, rtol=0)
    assert set(chosen.tolist()) <= set(range(len(logits)))


@pytest.mark.parametrize("draw", [0.0, 1.0])
def test_the_ends_of_the_distribution_are_tokens_of_it(draw: float) -> None:
    row = torch.tensor([[0.0, 5.0, -torch.inf, 4.0]])
    assert choose(row, Sampling(1, 1.0, 0.9), torch.tensor([draw])).item() == (1 if draw == 0 else 3)


def test_a_text_depends_on_its_prompt_and_seed_alone() -> None:
    model = model_of()
    prompts, sampling = prompts_of(model), Sampling(COUNT, 0.9, 0.95)
    together = generate(model, prompts, sampling, seeds=SEEDS)
    assert together == generate(model, prompts, sampling, seeds=SEEDS, max_tokens=1)
    assert together[::-1] == generate(model, prompts[::-1], sampling, seeds=SEEDS[::-1])
    others = generate(model, prompts, sampling, seeds=[seed + 10 for seed in SEEDS])
    assert all(one.tokens != two.tokens for one, two in zip(together, others, strict=True))
    assert together != generate(model, prompts, Sampling(COUNT))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be positive"),
        ({"temperature": -1.0}, "temperature must be 0, or lie between"),
        ({"temperature": 1e-9}, "temperature must be 0, or lie between"),
        ({"temperature": float("nan")}, "temperature must be 0, or lie between"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": float("nan")}, "top_p must be above 0"),
        ({"stop": ("a", "")}, "stop holds an empty string"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Sampling(**{"max_new_tokens": 1, **values})


# Ends


@settings(max_examples=60)
@given(kind=st.sampled_from([*KINDS, "bytes"]), text=st.text(max_size=30), data=st.data())
def test_a_text_ends_with_the_token_that_completes_a_stop_string(kind: str, text: str, data: st.DataObject) -> None:
    """Whatever characters are made of several tokens, and wherever a token holds more than the end of the string."""
    own = byte_tokenizer() if kind == "bytes" else tokenizer(kind)
    tokens = own.encode(f"{text} 如é🦊<b>", add_special_tokens=False)
    whole = own.decode(tokens, clean_up_tokenization_spaces=False)
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = whole[start : start + data.draw(st.integers(1, 6))]
    ending = Ending(own, frozenset(), (stop, "never in it at all"))
    for count in range(1, len(tokens) + 1):
        written = own.decode(tokens[:count], clean_up_tokenization_spaces=False)
        assert ending.is_reached(tokens[:count]) == (stop in written)
        if stop in written:
            assert ending.text(tokens[:count]) == written[: written.index(stop) + len(stop)]
            return
    raise AssertionError("the whole text holds the string")


def test_stop_strings_end_one_text_and_the_others_go_on() -> None:
    model = model_of()
    free = generate(model, prompts_of(model), Sampling(COUNT))
    stop = free[0].text[4:7]
    found = generate(model, prompts_of(model), Sampling(COUNT, stop=(stop,)))
    for one, two in zip(found, free, strict=True):
        is_stopped = stop in two.text
        assert one.reached_limit != is_stopped
        assert one.text == (two.text[: two.text.index(stop) + len(stop)] if is_stopped else two.text)
    assert not found[0].reached_limit
    assert any(one.reached_limit for one in found)


def test_every_source_of_end_tokens_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    monkeypatch.setattr(model.module.config, "eos_token_id", 7)
    monkeypatch.setattr(model.module.generation_config, "eos_token_id", [8, 9])
    assert end_tokens(model) == {7, 8, 9, byte_tokenizer().eos_token_id}


WINDOW = {"sliding_window": 64, "max_window_layers": 0, "use_sliding_window": True}


@pytest.mark.parametrize("layers", ["fused", "library"])
@pytest.mark.parametrize("limits", [{"max_position_embeddings": 64}, WINDOW])
def test_positions_end_a_text_too(limits: dict[str, Any], layers: str) -> None:
    """The table's or a sliding window's: what is written within them is what is written without."""
    texts = []
    for changes in ({}, limits):
        weights = LoadedModel(random_decoder("qwen2", head=True, **changes), byte_tokenizer())
        if layers == "fused":
            weights.fuse()
        spec = golden_spec(template=TEMPLATE, pattern="causal", query_offset=None, max_segment_tokens=32)
        model = RankModel(weights, spec, get_backend("sdpa", CPU, torch.float32))
        [prompt] = prompts_of(model, [REQUESTS[0]])
        [found] = generate(model, [prompt], Sampling(100))
        texts.append(found.tokens)
    assert found.reached_limit
    assert len(texts[1]) == 64 - prompt.length
    assert texts[0][: len(texts[1])] == texts[1]
    full = RankRequest("red" + "x" * (64 - prompt.length), ["a", "bb"])
    with pytest.raises(InputError, match=r"the prompt reaches position 63 and the model has 64: there is no room"):
        generate(model, prompts_of(model, [full]), Sampling(1))


def test_others_have_a_turn_between_tokens() -> None:
    turns: list[None] = []
    model = model_of("qwen3", "library").with_turns(lambda: turns.append(None))
    generate(model, prompts_of(model), Sampling(COUNT))
    assert len(turns) == COUNT - 1


def test_what_cannot_be_written_is_refused() -> None:
    headless = RankModel(
        LoadedModel(random_decoder("qwen2"), byte_tokenizer()), golden_spec(template=TEMPLATE), model_of().backend
    )
    with pytest.raises(ModelError, match="without a language-model head"):
        generate(headless, prompts_of(headless), Sampling(1))
    broken = random_decoder("qwen2", head=True)
    broken.lm_head.weight.data[5] = torch.nan
    model = RankModel(LoadedModel(broken, byte_tokenizer()), golden_spec(template=TEMPLATE), model_of().backend)
    with pytest.raises(ModelError, match="logits are not finite"):
        generate(model, prompts_of(model), Sampling(1))
    model.module.train()
    with pytest.raises(ModelError, match="logits are not finite"):
        generate(model, prompts_of(model), Sampling(1, 1.0))
    assert model.module.training
