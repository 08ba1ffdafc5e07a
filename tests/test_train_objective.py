"""The loss of a step by the names of a configuration, and the answers that it learns to write."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from conftest import CPU, byte_tokenizer, golden_module, golden_spec, tokenised
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from blockrank import InputError, RankRequest, RankSpec, Template
from blockrank.attention import get_backend
from blockrank.engine.capture import Wanted
from blockrank.layout import PromptTokenizer, Segment, TokenisedRequest
from blockrank.model import LoadedModel, RankModel
from blockrank.scorers import Prompts
from blockrank.train.batch import Batch, collate
from blockrank.train.config import DataConfig, LossConfig, TrainConfig
from blockrank.train.objective import training_loss
from blockrank.train.run import build_trainer
from blockrank.train.sets import Example, answer_of, open_sources
from blockrank.train.teacher import TeacherEnsemble

SPEC = golden_spec(query_offset=64)
RUN_SPEC = RankSpec.of(
    layer=1,
    template=Template(("{query};",), ("D{id}:{text};",), ("Q:{query};A",), answer="["),
    query_offset=None,
    max_segment_tokens=64,
)
BYTES = PromptTokenizer(byte_tokenizer())
BY_RELEVANCE = LossConfig(answer_order="relevance")
HINTS = get_type_hints(LossConfig)


# Parts of a step


def golden_batch() -> Batch:
    """Two requests of three and two documents with a teacher, and answers of which some tokens are of ids."""
    generator = np.random.default_rng(0)
    examples = []
    for lengths, ranks, scores in (([5, 4, 7, 3, 6], [1, 0, 2], [1, 0, 2]), ([4, 6, 2, 5], [1, 1], [0, 1])):
        request = tokenised([generator.integers(3, 512, length) for length in lengths])
        ids = np.concatenate([request.segments[-1].ids, generator.integers(3, 512, len(ranks))])
        query = Segment("query", ids, lengths[-1], signal_end=lengths[-1], ranks_A=np.array(ranks, dtype=np.int64))
        positives = np.arange(len(scores)) == int(np.argmax(scores))
        teachers = {"a": np.array(scores, dtype=np.float32)}
        examples.append(Example(Prompts((TokenisedRequest((*request.segments[:-1], query)),)), positives, teachers))
    return collate(examples, SPEC)


@pytest.fixture(scope="module")
def model() -> RankModel:
    module = golden_module("qwen3").train()
    return RankModel(LoadedModel(module, name="qwen3"), SPEC, get_backend("sdpa", CPU, torch.float32))


def parts_of(model: RankModel, **config: Any) -> dict[str, torch.Tensor]:
    found = LossConfig(teachers={"a": 1.0}, **config)
    return training_loss(model, golden_batch(), found, TeacherEnsemble(found.teachers))


@pytest.mark.parametrize("name", get_args(HINTS["distil_loss"]))
def test_every_distillation_loss_trains(model: RankModel, name: str) -> None:
    model.module.zero_grad()
    parts = parts_of(model, contrastive_weight=0.0, lm=0.0, distil=0.5, distil_loss=name, teacher_temperature=2.0)
    parts["loss"].backward()
    assert set(parts) == {"distil", "loss"}
    assert float(parts["loss"].detach()) == pytest.approx(0.5 * float(parts["distil"].detach()))
    gradients = [weight.grad for weight in model.module.parameters() if weight.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert any(bool((gradient != 0).any()) for gradient in gradients)


def test_temperatures_divide_scores(model: RankModel) -> None:
    """On both sides, before the loss: half the teacher's scores under half the temperature are the same teacher."""

    def distil(teacher: list[list[float]], **config: Any) -> float:
        batch = replace(golden_batch(), teachers={"a": torch.tensor(teacher)})
        found = LossConfig(contrastive_weight=0.0, lm=0.0, distil=1.0, teachers={"a": 1.0}, **config)
        return float(training_loss(model, batch, found, TeacherEnsemble(found.teachers))["distil"].detach())

    whole, half = [[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]], [[0.5, 0.0, 1.0], [0.0, 0.5, 0.0]]
    for name in ("list_kl", "margin_mse", "lambda"):
        one = distil(whole, distil_loss=name, teacher_temperature=1.0)
        assert distil(half, distil_loss=name, teacher_temperature=0.5) == pytest.approx(one, rel=1e-5)
        assert distil(whole, distil_loss=name, teacher_temperature=0.5) != pytest.approx(one, rel=1e-3)
        assert distil(whole, distil_loss=name, teacher_temperature=1, distil_temperature=0.2) != pytest.approx(one)


def test_labels_are_a_teacher() -> None:
    batch = golden_batch()
    assert TeacherEnsemble({"labels": 1.0}).scores(batch, CPU).tolist() == [[0, 0, 1], [0, 1, 0]]
    both = TeacherEnsemble({"labels": 1.0, "a": 1.0}).scores(batch, CPU)
    assert both.argmax(1).tolist() == [2, 1]


def test_the_lm_loss_by_name(model: RankModel) -> None:
    relevance = {"answer_order": "relevance", "lm_loss": "importance"}
    plain, whole, ids_alone = (
        float(parts_of(model, **config)["lm"].detach())
        for config in ({}, relevance, {**relevance, "lm_separator_weight": 0.0})
    )
    assert plain < whole
    batch = golden_batch()
    # Each answer's opening, then its tokens.
    assert batch.rank_A.tolist() == [0, 1, 0, 2, 0, 1, 1]
    capture = model.forward(batch.layout, Wanted(logits_R=batch.context_A.numpy()))
    assert capture.logits_RV is not None
    nll = -capture.logits_RV.log_softmax(-1)[torch.arange(7), batch.label_A].detach()
    weights = torch.tensor([0.0, 2.0, 0.0, 1 + 1 / math.log2(3), 0.0, 2.0, 2.0])
    assert ids_alone == pytest.approx(float((nll * weights).sum() / 7), rel=1e-5)
    weights[weights == 0] = 1
    assert whole == pytest.approx(float((nll * weights).sum() / 7), rel=1e-5)


# Answers


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LossConfig(), (1, 3)),
        (BY_RELEVANCE, (3, 1)),
        (LossConfig(answer_order="relevance", answer_length=1), (2,)),
        (LossConfig(answer_order="relevance", answer_length=3), (2, 3, 1)),
        (LossConfig(answer_order="relevance", answer_length=9), (2, 3, 1, 0)),
    ],
)
def test_what_an_answer_lists(config: LossConfig, expected: tuple[int, ...]) -> None:
    # Candidates 0 and 1 are equals of the teacher: the positive one goes first.
    scores = np.array([0.5, 0.5, 0.9, 0.7], dtype=np.float32)
    assert answer_of(np.array([False, True, False, True]), scores, config) == expected


def write_lines(folder: Path, *rows: dict[str, Any]) -> DataConfig:
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return DataConfig((str(folder / "in.jsonl"),), candidates=12)


def test_a_full_list_is_written_by_the_teachers_scores(tmp_path: Path) -> None:
    texts = "abcdefghijkl"
    row = {"query": "q", "documents": list(texts), "positives": [3], "teacher": list(range(12))}
    config = LossConfig(answer_order="relevance", answer_length=12)
    [source] = open_sources(write_lines(tmp_path, row), BYTES, RUN_SPEC, config)
    found = source.example(0, np.random.default_rng(0))
    written = str(byte_tokenizer().decode(found.prompts.only.segments[-1].ids)).removeprefix("Q:q;A[").removesuffix("]")
    # A document's text stands between colon and semicolon: "D10:k;".
    order = [str(byte_tokenizer().decode(item.ids)).split(":")[1][0] for item in found.prompts.documents]
    assert order != list(texts)
    assert [order[int(i)] for i in written.split(", ")] == list(reversed(texts))


def test_answers_by_relevance_need_the_teacher_in_every_line(tmp_path: Path) -> None:
    rows = [{"query": "q", "documents": ["a", "b"], "positives": [0], "teacher": [1, 2]}]
    rows.append({"query": "q", "documents": ["a"], "positives": [0]})
    config = write_lines(tmp_path, *rows)
    with pytest.raises(InputError, match=r"in\.jsonl:2: loss\.answer_order is 'relevance', which needs teacher"):
        open_sources(config, BYTES, RUN_SPEC, BY_RELEVANCE)
    assert len(open_sources(config, BYTES, RUN_SPEC)[0]) == 2
    # A template without answers has no order to write them in.
    bare = RUN_SPEC.changed(template=replace(RUN_SPEC.prompt, answer=""))
    assert len(open_sources(config, BYTES, bare, BY_RELEVANCE)[0]) == 2


def merging_tokenizer() -> PromptTokenizer:
    """A token a byte, but for two: a space with the digit that follows it, and digits in pairs."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(a, b) for a in ("Ġ", *"123456789") for b in "0123456789"]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *map("".join, merges)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PromptTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


MERGING = merging_tokenizer()


def test_the_merging_tokenizer_merges_over_seams() -> None:
    assert [len(MERGING.encode(text)) for text in ("[", "[12", "[12,", "[12, 3", "[12, 34]")] == [1, 2, 3, 4, 6]


@pytest.mark.parametrize("tokenizer", [BYTES, MERGING], ids=["bytes", "merging"])
@settings(deadline=None, max_examples=25)
@given(answer=st.lists(st.integers(0, 24), min_size=1, max_size=25, unique=True))
def test_each_token_of_an_answer_knows_its_id(tokenizer: PromptTokenizer, answer: list[int]) -> None:
    query = tokenizer.tokenise_request(RankRequest("q", ["a"] * 25), RUN_SPEC, tuple(answer)).segments[-1]
    assert query.ranks_A is not None
    assert len(query.ranks_A) == len(query.ids) - query.signal_end
    # Read the ids back from the tokens that are said to be theirs, and what is left from the others.
    texts: dict[int, bytes] = {}
    for token, rank in zip(query.ids[query.signal_end :], query.ranks_A, strict=True):
        piece = tokenizer._encoder._backend.decode([int(token)])
        texts[int(rank)] = texts.get(int(rank), b"") + piece.encode()
    separators = texts.pop(0).decode()
    assert [int(texts[rank]) for rank in range(1, len(answer) + 1)] == answer
    assert set(separators) <= set(", ]")
    assert separators.count(",") == len(answer) - 1


def test_without_an_answer_there_are_no_ranks() -> None:
    query = BYTES.tokenise_request(RankRequest("q", ["a"]), RUN_SPEC).segments[-1]
    assert query.ranks_A is None


def test_the_docs_list_every_loss() -> None:
    text = (Path(__file__).parents[1] / "docs" / "losses.md").read_text(encoding="utf-8")
    for key in ("contrastive", "distil_loss", "lm_loss"):
        for name in get_args(HINTS[key]):
            assert f"\n| `{name}` |" in text


# A whole run


def test_a_run_learns_lists_by_relevance(tmp_path: Path) -> None:
    shape = AutoConfig.for_model(
        "qwen3", vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512, bos_token_id=None, eos_token_id=257,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    RUN_SPEC.save(tmp_path / "base")
    row = {"query": "q", "documents": ["a", "b", "c"], "positives": [1], "teacher": [1, 2, 0]}
    data = write_lines(tmp_path, row)
    (tmp_path / "run.toml").write_text(
        f"output = {json.dumps(str(tmp_path / 'out'))}\n[model]\nbase = {json.dumps(str(tmp_path / 'base'))}\n"
        f"[data]\nsets = [{json.dumps(data.sets[0])}]\n"
        '[loss]\nlm_loss = "importance"\nlm_separator_weight = 0.5\nanswer_order = "relevance"\nanswer_length = 3\n'
        'distil = 10.0\ndistil_loss = "weighted_ranknet"\nteachers = { given = 1.0 }\n'
        "[trainer]\nmax_steps = 8\nper_device_train_batch_size = 2\nlearning_rate = 1e-2\nwarmup_steps = 0\n"
        "logging_steps = 1\nuse_cpu = true\ndisable_tqdm = true\n",
        encoding="utf-8",
    )
    trainer = build_trainer(TrainConfig.load(tmp_path / "run.toml"))
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss_distil" in entry]
    assert len(log) == 8
    for part in ("loss_lm", "loss_distil"):
        assert log[-1][part] < 0.8 * log[0][part]


# Mistakes


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lm_loss": "importance"}, r"loss\.lm_loss = 'importance' .* needs answer_order = 'relevance'"),
        ({"answer_length": 3}, r"loss\.answer_length .* needs answer_order = 'relevance'"),
        ({"answer_order": "relevance", "answer_length": 0}, r"loss\.answer_length must be at least 1, not 0"),
        ({"lm_separator_weight": 1.5}, r"loss\.lm_separator_weight must lie in \[0, 1\], not 1\.5"),
        ({"temperature": 0.0}, r"loss\.temperature must be positive, not 0\.0"),
        ({"teacher_temperature": -1.0}, r"loss\.teacher_temperature must be positive"),
        ({"distil_temperature": math.nan}, r"loss\.distil_temperature must be positive"),
    ],
)
def test_values_that_make_no_sense(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        LossConfig(**values)


@pytest.mark.parametrize(("key", "value"), [("distil_loss", "hinge"), ("lm_loss", "focal"), ("answer_order", "random")])
def test_names_that_are_in_no_table(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(f'output = "o"\n[model]\nbase = "b"\n[data]\nsets = []\n[loss]\n{key} = "{value}"\n')
    with pytest.raises(InputError, match=rf"\[loss\]: {key} must be one of .*, not '{value}'"):
        TrainConfig.load(path)
