"""Decoding: ids as the tokenizer splits them, the search against exhaustive ones and `generate`, cached rows against
recomputation, and the scorer behind `Ranker`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU, FAMILIES, byte_tokenizer, failed, golden_module, golden_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from blockrank import Document, InputError, ModelError, Ranker, RankRequest, RankSpec, Template
from blockrank.attention import get_backend
from blockrank.attention.reference import dense_mask
from blockrank.cli import app
from blockrank.data import read_run, write_collection, write_run
from blockrank.decode import Decoded, decode
from blockrank.decode.answers import AnswerState, Grammar, answer_tokens
from blockrank.decode.search import Beam, Search, searches_of, step_layout
from blockrank.engine.capture import Wanted
from blockrank.engine.rows import RowBuffers
from blockrank.keep.identity import ranker_identity
from blockrank.layout import PackedLayout, PromptTokenizer, TokenisedRequest, pack
from blockrank.model import LoadedModel, RankModel
from blockrank.model.seam import SEAM
from blockrank.scorers import DecodeScorer

TEMPLATE = Template(("{query};",), ("D{id}:{text};",), ("Q:{query};A",), answer="[", answer_separator=", ")
PATTERNS = ("block", "causal")
WORDS = ("red", "blue", "green", "ash", "oak", "elm")
quick = settings(deadline=None, max_examples=12)
REQUESTS = st.lists(
    st.tuples(st.sampled_from(WORDS), st.lists(st.sampled_from(WORDS), min_size=1, max_size=14)), min_size=1, max_size=3
)


@cache
def model_of(family: str = "qwen3", pattern: Any = "block", backend: str = "sdpa", **changes: Any) -> RankModel:
    """A golden model that reads bytes; its logits are made wide, so that choices differ."""
    module = golden_module(family)
    module.lm_head.weight.data *= 4
    offset = None if pattern == "causal" else 64
    spec = golden_spec(template=TEMPLATE, pattern=pattern, query_offset=offset, **changes)
    return RankModel(LoadedModel(module, byte_tokenizer(), family), spec, get_backend(backend, CPU, torch.float32))


def requests_of(items: Sequence[tuple[str, list[str]]]) -> list[RankRequest]:
    return [
        RankRequest(query, [f"{text}{i}" for i, text in enumerate(texts)], str(n))
        for n, (query, texts) in enumerate(items)
    ]


def many(count: int, query: str = "red") -> RankRequest:
    return RankRequest(query, [f"{WORDS[i % 6]} {i}" for i in range(count)])


# Answers


def split_tokenizer(kind: str) -> PromptTokenizer:
    """A tokenizer that splits numbers into digits, keeps them whole, or puts the space before them into their token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = {"digits": [], "whole": [("1", "0"), ("1", "1")], "spaced": [("Ġ", "1"), ("Ġ1", "0"), ("1", "0")]}[kind]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return PromptTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


@pytest.mark.parametrize("kind", ["digits", "whole", "spaced"])
@pytest.mark.parametrize("base", [0, 1])
def test_answers_are_tokenised_in_their_place(kind: str, base: int) -> None:
    tokenizer, template = split_tokenizer(kind), replace(TEMPLATE, id_base=base)
    found = answer_tokens(tokenizer, template, 12)
    for ids in ([3], [10, 1], [1, 10, 11, 0], list(range(12))):
        text = "[" + ", ".join(str(base + index) for index in ids) + "]"
        parts = [*tokenizer.encode("[").tolist(), *found.first[ids[0]]]
        for index in ids[1:]:
            parts += [*found.separator, *found.later[index]]
        assert [*parts, *found.end] == tokenizer.encode(text).tolist()


def test_answers_that_cannot_be_told_apart_are_refused() -> None:
    merging = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*"0123456789[],", "1]"])}, merges=[("1", "]")]))
    merged = PromptTokenizer(PreTrainedTokenizerFast(tokenizer_object=merging))
    with pytest.raises(InputError, match="merges the document id '1' with what stands around it"):
        answer_tokens(merged, replace(TEMPLATE, answer_separator=","), 3)
    lacking = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate("?01234567[], ")}, merges=[], unk_token="?"))
    few = PromptTokenizer(PreTrainedTokenizerFast(tokenizer_object=lacking, unk_token="?"))
    assert len(answer_tokens(few, replace(TEMPLATE, id_base=1), 8).first) == 8
    with pytest.raises(InputError, match="makes the same tokens of the document ids '8' and '9'"):
        answer_tokens(few, replace(TEMPLATE, id_base=1), 9)
    tokenizer = PromptTokenizer(byte_tokenizer())
    alike = answer_tokens(tokenizer, replace(TEMPLATE, answer_separator="] > ["), 3)
    with pytest.raises(InputError, match=r"separator and end .* cannot be told apart"):
        Grammar(alike, 3, "list")
    first = Grammar(alike, 3, "first")
    [closing] = first.options(first.options(first.start)[0].state)
    assert closing.tokens == alike.end, "what both begin with counts once"
    for change in ({"answer": ""}, {"answer_end": ""}, {"answer_separator": ""}, {"document": ("{text}",)}):
        with pytest.raises(InputError, match="decoding needs a template that numbers documents"):
            answer_tokens(tokenizer, replace(TEMPLATE, **change), 3)


@quick
@given(
    count=st.integers(1, 120),
    data=st.data(),
    form=st.sampled_from(["first", "list", "full"]),
    top=st.one_of(st.none(), st.integers(1, 120)),
    separator=st.sampled_from([TEMPLATE.answer_separator, "] > ["]),
)
def test_every_walk_ends_in_distinct_ids(
    count: int, data: st.DataObject, form: Any, top: int | None, separator: str
) -> None:
    template = replace(TEMPLATE, answer_separator=separator if form == "full" else TEMPLATE.answer_separator)
    tokens = answer_tokens(PromptTokenizer(byte_tokenizer()), template, 120)
    grammar = Grammar(tokens, count, form, top if form == "full" else None)
    state, read = grammar.start, 0
    while not state.done:
        read += len(state.unread)
        assert len(state.unread) <= grammar.longest_step
        option = data.draw(st.sampled_from(grammar.options(state)))
        state = grammar.settle(option.state)
    assert read <= grammar.longest
    assert 1 <= len(state.ids) == len(set(state.ids)) <= count
    assert set(state.ids) <= set(range(count))
    assert form == "list" or len(state.ids) == (1 if form == "first" else min(count, top or count))


# Search


@quick
@given(
    items=REQUESTS, pattern=st.sampled_from(PATTERNS), form=st.sampled_from(["first", "list"]), beams=st.integers(1, 4)
)
def test_ids_are_those_of_the_request_and_packing_changes_nothing(
    items: list[tuple[str, list[str]]], pattern: str, form: Any, beams: int
) -> None:
    model, requests = model_of(pattern=pattern), requests_of(items)
    together = decode(model, requests, beams=beams, form=form)
    apart = decode(model, requests, beams=beams, form=form, max_tokens=1)
    for one, two, request in zip(together, apart, requests, strict=True):
        assert sorted(one.order) == list(range(len(request.candidates)))
        assert (one.generated, one.candidates) == (two.generated, two.candidates)
        assert one.log_probs == pytest.approx(two.log_probs, abs=1e-3)
        assert list(one.log_probs) == sorted(one.log_probs, reverse=True)
        assert form == "list" or len(one.generated) == min(beams, len(request.candidates))
        rest = one.order[len(one.generated) :]
        assert list(rest) == sorted(rest)


def next_logits(model: RankModel, request: RankRequest, answer: Sequence[int]) -> Tensor:
    """Next-token logits after the prompt and some tokens of the answer, everything recomputed under the dense mask."""
    assert model.tokenizer is not None
    *others, query = model.tokenizer.tokenise_request(request, model.spec).segments
    query = replace(query, ids=np.concatenate([query.ids, np.array(answer, dtype=np.int64)]))
    layout = pack([TokenisedRequest((*others, query))], model.spec)
    dense = model.with_backend(get_backend("reference", CPU, torch.float32))
    with torch.inference_mode():
        logits = dense.forward(layout, Wanted(logits_R=np.array([layout.tokens - 1]))).logits_RV
    assert logits is not None
    return logits[0].double()


def exhaustive(model: RankModel, request: RankRequest, form: Any) -> dict[tuple[int, ...], float]:
    """Log-probability of every answer, token by token among what is allowed."""
    assert model.tokenizer is not None
    count = len(request.candidates)
    grammar = Grammar(answer_tokens(model.tokenizer, TEMPLATE, count), count, form)
    found: dict[tuple[int, ...], float] = {}

    def walk(state: AnswerState, read: tuple[int, ...], score: float) -> None:
        if state.done:
            assert state.ids not in found
            found[state.ids] = score
            return
        options = grammar.options(state)
        z = next_logits(model, request, read)
        logs = z[[token for option in options for token in option.tokens]].log_softmax(0)
        for option, part in zip(options, logs.split([len(option.tokens) for option in options]), strict=True):
            walk(option.state, (*read, *option.state.unread), score + float(part.logsumexp(0)))

    walk(grammar.start, (), 0.0)
    assert float(np.logaddexp.reduce(list(found.values()))) == pytest.approx(0, abs=1e-6)
    return found


@pytest.mark.parametrize("pattern", PATTERNS)
def test_as_many_beams_as_candidates_find_every_probability(pattern: str) -> None:
    model, request = model_of(pattern=pattern), many(12)
    expected = exhaustive(model, request, "first")
    [found] = decode(model, [request], beams=12)
    assert sorted(found.generated) == list(range(12))
    for index, log_prob in zip(found.generated, found.log_probs, strict=True):
        assert log_prob == pytest.approx(expected[(index,)], abs=1e-4)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_beams_of_full_width_find_the_best_list(pattern: str) -> None:
    model, request = model_of(pattern=pattern), many(3)
    expected = exhaustive(model, request, "list")
    assert len(expected) == 3 + 6 + 6
    [found] = decode(model, [request], beams=20, form="list")
    best = max(expected, key=lambda ids: expected[ids])
    assert found.generated == best
    assert found.log_probs[-1] == pytest.approx(expected[best], abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["first", "list", "full"])
def test_one_beam_is_greedy(family: str, form: Any) -> None:
    model = model_of(family)
    for request in (many(13), many(4, "oak")):
        count = len(request.candidates)
        assert model.tokenizer is not None
        grammar = Grammar(answer_tokens(model.tokenizer, TEMPLATE, count), count, form)
        state, read = grammar.start, ()
        while not state.done:
            options = grammar.options(state)
            z = next_logits(model, request, read)
            best = max(options, key=lambda option: float(z[list(option.tokens)].logsumexp(0)))
            state, read = best.state, (*read, *best.state.unread)
        [found] = decode(model, [request], beams=1, form=form)
        assert found.generated == state.ids


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["qwen3", "mistral"])
def test_lists_equal_those_of_generate(family: str, beams: int) -> None:
    """Under the causal pattern the plain model's own search, with the same tokens allowed, finds the same list."""
    model, plain = model_of(family, "causal"), golden_module(family)
    plain.lm_head.weight.data *= 4
    plain.set_attn_implementation("eager")
    assert model.tokenizer is not None
    for count, query in ((3, "red"), (6, "oak"), (12, "elm")):
        request = many(count, query)
        tokens = answer_tokens(model.tokenizer, TEMPLATE, count)
        assert len(tokens.end) == 1
        prompt = np.concatenate([part.ids for part in model.tokenizer.tokenise_request(request, model.spec).segments])
        grammar = Grammar(tokens, count, "list")

        def allowed(_: int, ids: Tensor, grammar: Grammar = grammar, start: int = len(prompt)) -> list[int]:
            state, read = grammar.start, list(ids[start:].tolist())
            while True:
                if not read:
                    return [token for option in grammar.options(state) for token in option.tokens]
                state = next(o.state for o in grammar.options(state) if o.tokens[0] == read[0])
                wanted = list(state.unread) if not state.done else read
                known, read = read[: len(wanted)], read[len(wanted) :]
                if len(known) < len(wanted):
                    return [wanted[len(known)]]

        with torch.inference_mode():
            sequence = plain.generate(
                torch.from_numpy(prompt)[None], prefix_allowed_tokens_fn=allowed, num_beams=beams, do_sample=False,
                length_penalty=0.0, renormalize_logits=True, eos_token_id=tokens.end[0], pad_token_id=0,
                max_new_tokens=100, attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            )[0, len(prompt) :].tolist()  # fmt: skip
        [found] = decode(model, [request], beams=beams, form="list")
        written = [*tokens.first[found.generated[0]]]
        for index in found.generated[1:]:
            written += [*tokens.separator, *tokens.later[index]]
        assert sequence[: sequence.index(tokens.end[0])] == written


# Cached rows


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("family", "backend"), [*((family, "sdpa") for family in FAMILIES), ("qwen3", "reference")])
def test_steps_equal_recomputation(family: str, backend: str, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of every step of a batch equal those of all tokens run together under the dense mask."""
    model, requests = model_of(family, pattern, backend), [many(12), many(3, "oak")]
    found: list[Tensor] = []
    seen: list[tuple[int, tuple[int, ...]]] = []
    answers: dict[AnswerState, tuple[int, ...]] = {}
    forward, child_of = RankModel.forward, Search._child

    def recorded(self: RankModel, layout: PackedLayout, *args: Any, **kwargs: Any) -> Any:
        capture = forward(self, layout, *args, **kwargs)
        if layout.cached_rows:
            found.extend(capture.logits_RV)
        return capture

    def child(self: Search, beam: Beam, option: Any, score: float) -> Beam:
        made = child_of(self, beam, option, score)
        answers[made.state] = (*answers.get(beam.state, ()), *made.state.unread)
        return made

    def step(searches: Sequence[Search]) -> PackedLayout:
        seen.extend((i, answers[beam.state]) for i, search in enumerate(searches) for beam in search.live)
        return step_layout(searches)

    monkeypatch.setattr(RankModel, "forward", recorded)
    monkeypatch.setattr(Search, "_child", child)
    monkeypatch.setattr("blockrank.decode.decoding.step_layout", step)
    decode(model, requests, beams=3, form="list")
    monkeypatch.undo()
    assert len(seen) == len(found) >= 12
    some = slice(0, None, len(seen) // 12)
    expected = [next_logits(model, requests[index], answer) for index, answer in seen[some]]
    torch.testing.assert_close(torch.stack(found[some]).double(), torch.stack(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["reference", "sdpa"])
def test_beams_of_one_prompt_share_its_rows(name: str) -> None:
    """A step's attention equals the dense one, and sdpa gathers the rows of each prompt once."""
    model = model_of()
    assert model.tokenizer is not None
    layout = pack(
        [model.tokenizer.tokenise_request(item, model.spec) for item in (many(12), many(12), many(3))], model.spec
    )
    tokens = answer_tokens(model.tokenizer, TEMPLATE, 12)
    searches = searches_of(layout, [Grammar(tokens, 12, "list")] * 2 + [Grammar(tokens, 3, "list")], 4)
    generator = np.random.default_rng(0)
    for search in searches:
        for _ in range(3):
            options = [search.grammar.options(beam.state) for beam in search.live]
            search.advance(options, [[float(generator.normal()) for _ in one] for one in options])
    step = step_layout(searches)
    assert len(step.starts_S) > 8
    q_TNH, k_PKH, v_PKH = torch.randn(step.tokens, 4, 8), *torch.randn(2, step.rows, 2, 8)
    backend, reference = get_backend(name, CPU, torch.float32), get_backend("reference", CPU, torch.float32)
    plan = backend.plan(step, CPU)
    expected = reference.attend(q_TNH, k_PKH, v_PKH, dense_mask(step), 0.3)
    torch.testing.assert_close(backend.attend(q_TNH, k_PKH, v_PKH, plan, 0.3), expected, atol=2e-6, rtol=0)
    if name == "sdpa":
        gathered = sum(int((bucket.k_nR == row).any(1).sum()) for bucket in plan.buckets for row in [layout.tokens - 1])
        assert gathered == 1


def test_rows_are_copied_before_they_are_overwritten() -> None:
    rows = RowBuffers(6)
    k_TKH = torch.arange(6.0).reshape(6, 1, 1)
    rows.put(0, 0, k_TKH, -k_TKH)
    rows.copy(np.array([1, 2, 0]), np.array([2, 1, 5]))
    keys, values = rows.put(0, 0, k_TKH[:0], k_TKH[:0])
    assert len(keys) == 0
    keys, values = rows.put(0, 5, torch.full((1, 1, 1), 9.0), torch.full((1, 1, 1), -9.0))
    assert keys.flatten().tolist() == [0, 2, 1, 3, 4, 9]
    assert values.flatten().tolist() == [0, -2, -1, -3, -4, -9]


# What is refused, and what is left as it was


def test_what_cannot_be_decoded_is_told(mini: Ranker) -> None:
    model, request = model_of(), many(3)
    with pytest.raises(ModelError, match="loaded without a language-model head"):
        decode(mini.model, [request])
    for named, words in (
        ({"beams": 0}, "beams must be positive, not 0"),
        ({"top": 2}, "top ends a list of all ids, form 'full'; the form is 'first'"),
        ({"top": 0, "form": "full"}, "top must be positive, not 0"),
    ):
        with pytest.raises(InputError, match=words):
            decode(model, [request], **named)  # type: ignore[arg-type]
    for change, words in (
        ({"query_reads": "own"}, "needs RankSpec.query_reads 'all'; it is 'own'"),
        ({"query_attention": "bidirectional"}, "needs RankSpec.query_attention 'causal'"),
        ({"prune": ((1, 0.5),)}, "not with RankSpec.prune"),
        ({"template": "query-free"}, "decoding needs a template that numbers documents"),
    ):
        with pytest.raises(InputError, match=words):
            decode(model.with_spec(model.spec.changed(**change)), [request])  # type: ignore[arg-type]
    broken = golden_module("qwen3")
    broken.lm_head.weight.data.fill_(float("nan"))
    sick = RankModel(LoadedModel(broken, byte_tokenizer()), model.spec, model.backend)
    with pytest.raises(ModelError, match="logits are not finite"):
        decode(sick, [request])


def test_a_model_in_training_is_left_as_it_was() -> None:
    quiet = model_of()
    module = golden_module("qwen3").train()
    module.lm_head.weight.data *= 4
    module.model.layers[0].eval()
    modes = [part.training for part in module.modules()]
    model = RankModel(LoadedModel(module, byte_tokenizer()), quiet.spec, quiet.backend)
    assert decode(model, [many(5)]) == decode(quiet, [many(5)])
    assert [part.training for part in module.modules()] == modes
    assert torch.is_grad_enabled()


def test_an_answer_in_the_prompt_is_left_out() -> None:
    """Training requests carry the answer."""
    model = model_of()
    assert model.tokenizer is not None
    tokenised = model.tokenizer.tokenise_request(many(5), model.spec, answer=(3,))
    assert decode(model, [tokenised]) == decode(model, [many(5)])


@pytest.mark.parametrize(("count", "forwards"), [(1, 1), (10, 1), (12, 2), (100, 2), (101, 3)])
def test_what_is_forced_costs_no_forward(count: int, forwards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten ids of a digit each need the prompt alone; of more, each digit that does not decide needs none."""
    ran: list[int] = []
    forward = RankModel.forward

    def counted(self: RankModel, layout: PackedLayout, *args: Any, **kwargs: Any) -> Any:
        ran.append(len(layout.starts_S))
        return forward(self, layout, *args, **kwargs)

    monkeypatch.setattr(RankModel, "forward", counted)
    [found] = decode(model_of(), [many(count)], beams=count)
    assert sorted(found.generated) == list(range(count))
    assert float(np.logaddexp.reduce(found.log_probs)) == pytest.approx(0, abs=1e-6)
    assert len(ran) == forwards
    assert ran[1:] == ([] if forwards == 1 else [1] if count == 12 else [9] if count == 100 else [9, 1])


def test_nothing_to_decode() -> None:
    assert decode(model_of(), []) == []
    [found] = decode(model_of(), [many(1)])
    assert found == Decoded((0,), (0.0,), 1)


# Behind the ranker


@pytest.mark.parametrize("form", ["first", "list", "full"])
def test_a_ranker_ranks_by_what_is_decoded(form: Any) -> None:
    model, requests = model_of(), [many(12), many(4, "oak")]
    ranker = Ranker(model, DecodeScorer(beams=3, form=form))
    for ranking, decoded in zip(ranker.rank_many(requests), decode(model, requests, beams=3, form=form), strict=True):
        assert tuple(entry.index for entry in ranking) == decoded.order
        assert [entry.score for entry in ranking] == [-float(entry.rank) for entry in ranking]
    with pytest.raises(InputError, match="a decoded ranking has no evidence"):
        ranker.rank("red", ["a", "b"], evidence=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model whose scoring layer is not its last."""
    path = tmp_path_factory.mktemp("model")
    golden_module("qwen3").save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    RankSpec.of(layer=1, template=TEMPLATE, query_offset=None).save(path)
    return path


def test_a_checkpoint_is_loaded_with_its_head(folder: Path) -> None:
    ranker = Ranker.from_pretrained(folder, scorer="decode", device="cpu")
    assert ranker.model.weights.has_head
    assert ranker.model.module.config.num_hidden_layers == 4
    assert ranker.model.module.config._attn_implementation == SEAM
    assert sorted(entry.index for entry in ranker.rank("red", ["a", "b", "c"])) == [0, 1, 2]
    assert not Ranker.from_pretrained(folder, device="cpu").model.weights.has_head
    with pytest.raises(InputError, match="scorer 'decoding' is unknown"):
        Ranker.from_pretrained(folder, scorer="decoding")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="has no language-model head"):
        Ranker.from_pretrained(scorer="decode", device="cpu")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def test_the_command_line_decodes(folder: Path, tmp_path: Path) -> None:
    texts = [f"{WORDS[i % 6]} {i}" for i in range(12)]
    (tmp_path / "lines").write_text("\n".join(texts), encoding="utf-8")
    shown = run(
        "rank",
        "red",
        "--lines",
        str(tmp_path / "lines"),
        "--model",
        str(folder),
        "--scorer",
        "decode:beams=2",
        "--json",
    )
    results = json.loads(shown.stdout)["results"]
    expected = Ranker.from_pretrained(folder, scorer=DecodeScorer(beams=2), device="cpu").rank("red", texts)
    assert [entry["index"] for entry in results] == [entry.index for entry in expected]
    assert [entry["score"] for entry in results] == [-float(rank) for rank in range(1, 13)]
    assert "has no language-model head" in failed(
        run("rank", "red", "--lines", str(tmp_path / "lines"), "--scorer", "decode")
    )
    wrong = run("rank", "red", "--lines", str(tmp_path / "lines"), "--beams", "2")
    assert (wrong.exit_code, "--beams" in wrong.stderr) == (2, True)
    causal = run(
        "rank", "red", "--lines", str(tmp_path / "lines"), "--model", str(folder), "--pattern", "causal", "--json"
    )
    block = run("rank", "red", "--lines", str(tmp_path / "lines"), "--model", str(folder), "--json")
    scores = [[entry["score"] for entry in json.loads(item.stdout)["results"]] for item in (causal, block)]
    assert scores[0] != scores[1]


def test_an_evaluation_decodes(folder: Path, tmp_path: Path) -> None:
    documents = [Document(f"{word} {i}", f"d{i}") for i, word in enumerate(WORDS)]
    write_collection(tmp_path / "small", documents, {"q": "red oak"}, {"q": {"d0": 1}})
    stage = {"q": {document.doc_id or "": -float(at) for at, document in enumerate(documents)}}
    write_run(tmp_path / "given.trec", stage)
    arguments = ["--model", str(folder), "--first-stage", str(tmp_path / "given.trec"), "--no-report"]
    arguments += ["--latency-queries", "0", "--pattern", "causal", "--scorer", "decode:beams=6"]
    done = run("eval", str(tmp_path / "small"), "--output", str(tmp_path / "out"), *arguments)
    assert done.exit_code == 0, done.output
    ranker = Ranker.from_pretrained(folder, scorer=DecodeScorer(beams=6), device="cpu").with_spec(pattern="causal")
    expected = ranker.rank("red oak", documents).doc_ids
    [ranked] = [path for path in (tmp_path / "out" / "small" / "runs").glob("*.trec") if "model" in path.name]
    assert list(read_run(ranked)["q"]) == expected
    assert ranker_identity(ranker)["scorer"] == {"name": "decode", "beams": 6, "form": "first"}


def test_pairs_of_answers_are_distinct() -> None:
    """Answers of twelve candidates as text, all pairs: what the grammar writes is what the tokenizer would."""
    tokenizer = PromptTokenizer(byte_tokenizer())
    tokens = answer_tokens(tokenizer, TEMPLATE, 12)
    seen = set()
    for one, two in itertools.permutations(range(12), 2):
        ids = (*tokens.first[one], *tokens.separator, *tokens.later[two], *tokens.end)
        assert list(ids) == tokenizer.encode(f"[{one}, {two}]").tolist()[1:]
        seen.add(ids)
    assert len(seen) == 132
