"""Training: candidates, batches, gradients against the dense reference, and whole small runs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU, byte_tokenizer, golden_module, golden_spec, tokenised
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from blockrank import InputError, Ranker, RankSpec, Template
from blockrank.attention import get_backend
from blockrank.layout import PromptTokenizer, Segment, TokenisedRequest, pack
from blockrank.model import LoadedModel, RankModel
from blockrank.scorers import Prompts
from blockrank.spec import SPEC_FILE
from blockrank.train.batch import ExampleStream, collate
from blockrank.train.config import DataConfig, LossConfig, TrainConfig
from blockrank.train.objective import is_checkpointing, training_loss
from blockrank.train.run import build_trainer, train_from_config
from blockrank.train.sampling import sample_candidates
from blockrank.train.sets import Example, RequestFile, open_sources
from blockrank.train.teacher import TeacherEnsemble, standardised

RECOMPUTE = "activation_checkpointing"  # the name until transformers 5 was another
if not hasattr(PreTrainedModel, f"{RECOMPUTE}_enable"):
    RECOMPUTE = "gradient_checkpointing"


def mask(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_attention_computes_in_the_type_of_autocast(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = RankModel(
        LoadedModel(golden_module(family), name=family), golden_spec(), get_backend("sdpa", CPU, torch.float32)
    )
    seen: set[torch.dtype] = set()
    attend = model.backend.attend

    def recorded(*parts: Any) -> Tensor:
        seen.update(part.dtype for part in parts[:3])
        return attend(*parts)

    monkeypatch.setattr(model.backend, "attend", recorded)
    layout = pack([tokenised([np.arange(3, 3 + length) for length in (4, 6, 5, 7)])], model.spec)
    with torch.autocast("cpu", torch.bfloat16):
        model.forward(layout, whole=True)
    assert seen == {torch.bfloat16}, "rotary positions must not leave queries and keys in float32"


# Teachers


def test_teachers_are_standardised_and_added() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [5.0, 7.0, 99.0]])
    present = mask([1, 1, 1], [1, 1, 0])
    expected = torch.tensor([[-math.sqrt(1.5), 0.0, math.sqrt(1.5)], [-1.0, 1.0, 0.0]])
    torch.testing.assert_close(standardised(scores, present), expected)
    assert bool((standardised(torch.ones(1, 3), mask([1, 1, 1])) == 0).all())
    batch = collate([example([3, 4, 5, 6, 2], seed=i, teachers={"a": [1, 2, 3], "b": [3, 2, 1]}) for i in (0, 1)], SPEC)
    both = TeacherEnsemble({"a": 1.0, "b": 0.5}).scores(batch, CPU)
    torch.testing.assert_close(both, 0.5 * standardised(batch.teachers["a"], batch.present_BM))
    assert TeacherEnsemble({"b": 2.0}).scores(batch, CPU).tolist() == [[3, 2, 1], [3, 2, 1]]
    with pytest.raises(InputError, match=r"names 'c', but the data holds only \['a', 'b'\]"):
        TeacherEnsemble({"c": 1.0}).scores(batch, CPU)
    with pytest.raises(InputError, match="teacher_checkpoint is not set"):
        TeacherEnsemble({"model": 1.0})


# Candidates


@settings(deadline=None, max_examples=25)
@given(
    pool=st.integers(1, 60), positives=st.sets(st.integers(0, 59), min_size=1, max_size=6),
    hard=st.lists(st.integers(0, 59), max_size=12, unique=True), count=st.integers(2, 20),
    hard_count=st.integers(0, 20), most=st.integers(1, 5), seed=st.integers(0, 99),
)  # fmt: skip
def test_candidates(
    pool: int, positives: set[int], hard: list[int], count: int, hard_count: int, most: int, seed: int
) -> None:
    kept = np.array(sorted(item % pool for item in positives), dtype=np.int64)
    kept = np.unique(kept)
    mined = np.unique(np.array([item % pool for item in hard], dtype=np.int64))
    rows, labels = sample_candidates(np.random.default_rng(seed), kept, mined, pool, count, hard_count, most)
    assert len(set(rows.tolist())) == len(rows) <= count
    assert set(rows.tolist()) <= set(range(pool))
    assert labels.sum() == min(len(kept), most, max(1, count - 1))
    assert set(rows[labels].tolist()) <= set(kept.tolist())
    assert not set(rows[~labels].tolist()) & set(kept.tolist())
    assert len(rows) == min(count, labels.sum() + pool - len(kept))
    again = sample_candidates(np.random.default_rng(seed), kept, mined, pool, count, hard_count, most)
    assert again[0].tolist() == rows.tolist()


def test_mined_negatives_come_first() -> None:
    hard = np.arange(10, 16)
    rows, _ = sample_candidates(np.random.default_rng(0), np.array([0]), hard, 100_000, 16, 4)
    assert len(set(rows.tolist()) & set(hard.tolist())) == 4
    assert len(rows) == 16


# Batches

SPEC = golden_spec(query_offset=64)


def example(
    lengths: list[int], seed: int = 0, answer: int = 0, teachers: dict[str, list[float]] | None = None
) -> Example:
    """A random request whose query segment ends in `answer` tokens after the signal tokens."""
    generator = np.random.default_rng(seed)
    request = tokenised([generator.integers(3, 512, length) for length in lengths])
    if answer:
        ids = np.concatenate([request.segments[-1].ids, generator.integers(3, 512, answer)])
        request = TokenisedRequest((*request.segments[:-1], Segment("query", ids, lengths[-1], signal_end=lengths[-1])))
    documents = len(lengths) - 2
    tables = {name: np.array(row, dtype=np.float32) for name, row in (teachers or {}).items()}
    return Example(Prompts((request,)), np.arange(documents) == seed % documents, tables)


def test_a_batch_is_the_packed_layout_with_labels() -> None:
    examples = [example([3, 4, 5, 6, 2], seed=1, answer=3, teachers={"a": [1, 2, 3]}), example([2, 4, 3], answer=2)]
    batch = collate(examples, SPEC)
    layout = pack([item.prompts.only for item in examples], SPEC)
    for name in ("ids_T", "positions_T", "starts_S", "reads_R2", "signal_G"):
        assert getattr(batch.layout, name).tolist() == getattr(layout, name).tolist()
    assert batch.present_BM.tolist() == [[True, True, True], [True, False, False]]
    assert batch.positives_BM.tolist() == [[False, True, False], [True, False, False]]
    assert batch.teachers == {}
    # The opening `[` is learnt too: the token before it predicts it.
    expected = [*examples[0].prompts.only.segments[-1].ids[1:], *examples[1].prompts.only.segments[-1].ids[2:]]
    assert batch.label_A.tolist() == expected
    assert layout.ids_T[batch.context_A.numpy() + 1].tolist() == expected


class Numbers:
    """A source of requests that tell their row and what they were drawn with."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self._size = name, size

    def __len__(self) -> int:
        return self._size

    def example(self, row: int, generator: np.random.Generator, candidates: int | None = None) -> Example:
        drawn = [np.array([row, int(generator.integers(1000))])] * 3
        return Example(Prompts((tokenised(drawn),)), np.array([True]))


def test_a_stream_is_a_function_of_seed_and_index() -> None:
    def rows(stream: ExampleStream, order: Any) -> dict[int, list[int]]:
        return {i: stream[i].prompts.only.segments[1].ids.tolist() for i in order}

    sources = [Numbers("a", 10), Numbers("b", 30)]
    one, two = (ExampleStream(sources, 80, seed=3) for _ in range(2))
    assert len(one) == 80
    assert rows(one, range(80)) == rows(two, reversed(range(80)))
    assert rows(one, range(80)) != rows(ExampleStream(sources, 80, seed=4), range(80))
    only_b = ExampleStream(sources, 60, weights={"a": 0.0})
    passes = [only_b[i].prompts.only.segments[1].ids[0] for i in range(60)]
    assert sorted(passes[:30]) == sorted(passes[30:]) == list(range(30))
    with pytest.raises(InputError, match="nothing to train on"):
        ExampleStream([], 10)
    with pytest.raises(InputError, match="names 'c', which is no source"):
        ExampleStream(sources, 10, weights={"c": 1.0})


# Gradients


def gradients(family: str, backend: str, checkpointing: bool) -> dict[str, Tensor]:
    """Gradients of the whole loss of one packed step."""
    module = golden_module(family).train()
    if checkpointing:
        getattr(module, f"{RECOMPUTE}_enable")({"use_reentrant": False})
    assert is_checkpointing(module) == checkpointing
    model = RankModel(LoadedModel(module, name=family), SPEC, get_backend(backend, CPU, torch.float32))
    examples = [example([5, 4, 7, 3, 6], 1, 3, {"a": [1, 0, 2]}), example([4, 6, 2, 5], 2, 2, {"a": [0, 1]})]
    config = LossConfig(contrastive_weight=1.0, lm=0.5, distil=0.7, teachers={"a": 1.0}, teacher_temperature=1.0)
    parts = training_loss(model, collate(examples, SPEC), config, TeacherEnsemble(config.teachers))
    assert set(parts) == {"contrastive", "lm", "distil", "loss"}
    parts["loss"].backward()
    return {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_gradients_equal_the_dense_reference(family: str) -> None:
    expected = gradients(family, "reference", checkpointing=False)
    assert {"lm_head.weight", "model.layers.0.self_attn.q_proj.weight"} <= set(expected)
    for checkpointing in (False, True):
        found = gradients(family, "sdpa", checkpointing)
        assert set(found) == set(expected)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


# Whole runs

TEMPLATE = Template(("{query};",), ("D{id}:{text};",), ("Q:{query};A",), answer="[")
RUN_SPEC = RankSpec.of(layer=1, template=TEMPLATE, signal_tokens=2, query_offset=None, max_segment_tokens=64)
COLOURS = ("red", "blue", "green", "black")


def base_model(folder: Path) -> Path:
    """A random Qwen3 of three layers, its tokenizer and its spec."""
    config = AutoConfig.for_model(
        "qwen3", vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512, bos_token_id=None, eos_token_id=257,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    RUN_SPEC.save(folder)
    return folder


def request_lines(folder: Path) -> Path:
    """Requests to find the document that names the query's colour."""
    generator = np.random.default_rng(0)
    rows = []
    for index in range(24):
        order = [COLOURS[i] for i in generator.permutation(4)]
        wanted = COLOURS[index % 4]
        rows.append({"query": wanted, "documents": order, "positives": [order.index(wanted)], "teacher": [1, 2, 3, 4]})
    path = folder / "requests.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def config_file(folder: Path, loss: str = "", **trainer: Any) -> Path:
    """A run of a few steps on a CPU."""
    values = {
        "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 3e-3, "warmup_steps": 0, "logging_steps": 1,
        "use_cpu": True, "disable_tqdm": True, **trainer,
    }  # fmt: skip
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path = folder / "run.toml"
    path.write_text(
        f"output = {json.dumps(str(folder / 'out'))}\nseed = 1\n"
        f"[model]\nbase = {json.dumps(str(folder / 'base'))}\n"
        f"[data]\nsets = [{json.dumps(str(folder / 'requests.jsonl'))}]\ncandidates = 4\n"
        f"[loss]\ncontrastive_weight = 1.0\n{loss}\n[trainer]\n" + "\n".join(lines),
        encoding="utf-8",
    )
    return path


@pytest.fixture
def work(tmp_path: Path) -> Path:
    base_model(tmp_path / "base")
    request_lines(tmp_path)
    return tmp_path


def logged(folder: Path, key: str) -> list[float]:
    state = json.loads(next(folder.glob("out/checkpoint-*/trainer_state.json")).read_text())
    return [entry[key] for entry in state["log_history"] if key in entry]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_lowers_the_loss_and_its_result_ranks(work: Path, checkpointing: bool) -> None:
    loss = 'distil = 0.1\nteacher_temperature = 1.0\nteachers = { "given" = 1.0 }'
    steps = {"max_steps": 12, "save_strategy": "steps", "save_steps": 12, RECOMPUTE: checkpointing}
    out = train_from_config(config_file(work, loss, **steps))
    found = logged(work, "loss")
    assert sum(found[-3:]) < 0.8 * sum(found[:3])
    for part in ("contrastive", "lm", "distil"):
        assert len(logged(work, f"loss_{part}")) == 12
    assert RankSpec.load(out) == RUN_SPEC
    assert (out / SPEC_FILE).is_file()
    ranking = Ranker.from_pretrained(out, device="cpu").rank("red", list(COLOURS))
    assert sum(entry.score for entry in ranking) == pytest.approx(1, abs=1e-5)


def test_without_the_lm_loss_upper_layers_are_left_out(work: Path) -> None:
    out = train_from_config(config_file(work, "lm = 0.0", max_steps=1))
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 2
    assert not [name for name in load_file(out / "model.safetensors") if "layers.2." in name or "lm_head" in name]
    assert len(Ranker.from_pretrained(out, device="cpu").rank("red", list(COLOURS))) == 4


def test_a_resumed_run_equals_an_uninterrupted_one(work: Path) -> None:
    config = config_file(work, save_strategy="steps", save_steps=2)
    whole = load_file(train_from_config(config) / "model.safetensors")
    shutil.rmtree(work / "out" / "checkpoint-4")
    (work / "out" / "model.safetensors").unlink()
    resumed = load_file(train_from_config(config, resume=True) / "model.safetensors")
    start = load_file(work / "base" / "model.safetensors")
    assert set(resumed) == set(whole)
    for name, weight in resumed.items():
        torch.testing.assert_close(weight, whole[name], atol=1e-7, rtol=0)
    assert any(not torch.equal(whole[name], start[name]) for name in whole)


def test_resuming_needs_a_checkpoint(work: Path) -> None:
    with pytest.raises(InputError, match=r"no checkpoint to resume from in .*out; set save_steps"):
        train_from_config(config_file(work), resume=True)


def test_progress_is_logged_and_leaves_standard_output_alone(
    work: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="blockrank")
    train_from_config(config_file(work, "lm = 0.0", max_steps=2))
    assert capsys.readouterr().out == ""
    assert "step 2: loss " in caplog.text


def test_checkpointing_is_never_reentrant(work: Path) -> None:
    path = config_file(work, gradient_checkpointing=True)
    path.write_text(f"{path.read_text()}\ngradient_checkpointing_kwargs = {{ use_reentrant = true }}\n")
    arguments = build_trainer(TrainConfig.load(path)).args
    assert getattr(arguments, RECOMPUTE) is True
    assert getattr(arguments, f"{RECOMPUTE}_kwargs") == {"use_reentrant": False}


def test_accumulated_steps_equal_large_ones(work: Path) -> None:
    whole = load_file(train_from_config(config_file(work, "lm = 0.0", max_steps=2)) / "model.safetensors")
    halves = {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    parts = load_file(train_from_config(config_file(work, "lm = 0.0", **halves)) / "model.safetensors")
    for name, weight in parts.items():
        torch.testing.assert_close(weight, whole[name], atol=1e-4, rtol=0)


# Mistakes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("seed = 1", "sed = 1"), r"run\.toml: unknown key 'sed'"),
        (("[model]\n", "[model]\nbas = 1\n"), r"run\.toml \[model\]: unknown key 'bas'"),
        (("output", "[output"), "is not valid TOML"),
        (("[loss]\n", "[loss]\ntau = 1\n"), r"\[loss\]: unknown key 'tau'"),
        (("[trainer]\n", "[trainer]\nlearning_speed = 1\n"), r"\[trainer\]: .*learning_speed"),
        (("max_steps = 4", "max_steps = 0"), "max_steps must be positive"),
        (("[model]\n", "[model]\nspec = { layer = -1 }\n"), "layer counts from 0"),
        (("[model]\n", "[model]\nspec = { colour = 1 }\n"), "unknown key 'colour'"),
        (("requests.jsonl", "none.jsonl"), r"none\.jsonl: cannot be read"),
        (("[data]\n", "[data]\nweights = { other = 1 }\n"), "names 'other', which is no source"),
        (("[loss]\n", "[loss]\ndistil = 1.0\n"), "loss.teachers names no teacher"),
        (("[loss]\n", '[loss]\ndistil = 1.0\nteachers = { "lexical" = 1.0 }\n'), "names 'lexical', but the data holds"),
        (("candidates = 4", 'candidates = "four"'), r"\[data\]: candidates must be"),
        (("[loss]\n", '[loss]\ncontrastive = "hinge"\n'), r"\[loss\]: contrastive must be"),
        (("contrastive_weight = 1.0", "contrastive_weight = 0.0\nlm = 0.0"), "nothing to learn"),
        (("[model]\nbase", "[model]\nbackend"), r"\[model\]: .*base"),
    ],
)
def test_mistakes_in_a_configuration(work: Path, change: tuple[str, str], words: str) -> None:
    path = config_file(work)
    path.write_text(path.read_text().replace(*change), encoding="utf-8")
    with pytest.raises(InputError, match=words):
        train_from_config(path)


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml cannot be read"):
        TrainConfig.load(tmp_path / "none.toml")


def test_the_research_codes_dialect_trains(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"query": "q", "documents": {"7": "a", "9": {"text": "c"}}, "answer_ids": ["9"]}\n')
    source = RequestFile(path, PromptTokenizer(byte_tokenizer()), RUN_SPEC, DataConfig((str(path),)))
    found = source.example(0, np.random.default_rng(0))
    order = [str(byte_tokenizer().decode(item.ids))[3] for item in found.prompts.documents]
    assert sorted(order) == ["a", "c"]
    assert found.positives_C.tolist() == [text == "c" for text in order]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not valid JSON"),
        ("[1]", "a JSON object is needed"),
        ('{"query": "q"}', "not a training request: .*documents"),
        ('{"query": "", "documents": ["a"], "positives": [0]}', "not a training request: query is empty"),
        ('{"query": "q", "documents": ["a"]}', r"positives must list indices of documents \(0\.\.0\)"),
        ('{"query": "q", "documents": ["a"], "positives": [1]}', "not a training request: positives lists 1"),
        ('{"query": "q", "documents": ["a"], "positives": []}', "positives must list"),
        ('{"query": "q", "documents": ["a"], "positives": [false]}', "not a training request: positives lists False"),
        ('{"query": "q", "documents": ["a", "b"], "positives": [0, 0]}', "not a training request: .* twice"),
        ('{"query": "q", "documents": ["a", "b"], "positives": [0], "teacher": [1]}', "teacher has 1 scores for 2"),
        ('{"query": "q", "documents": ["a"], "positives": [0], "teacher": [NaN]}', "teacher must list a finite number"),
        ('{"query": "q", "documents": ["a"], "positives": [0], "teacher": ["x"]}', "teacher must list"),
        ('{"query": "q", "documents": ["a"], "positives": [0], "teacher": 3}', "teacher must list"),
    ],
)
def test_mistakes_in_a_line_name_it(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "in.jsonl"
    good = '{"query": "q", "documents": ["a"], "positives": [0]}'
    path.write_text(f"{good}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"in\.jsonl:3: {words}"):
        open_sources(DataConfig((str(path),)), PromptTokenizer(byte_tokenizer()), RUN_SPEC)


def test_a_file_without_requests(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no request"):
        RequestFile(path, PromptTokenizer(byte_tokenizer()), RUN_SPEC, DataConfig((str(path),)))


def test_requests_hold_their_answer(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    row = {"query": "q", "documents": ["a", "b", "c"], "positives": [0, 2], "teacher": [1, 2, 3]}
    path.write_text(json.dumps(row), encoding="utf-8")
    [source] = open_sources(DataConfig((str(path),)), PromptTokenizer(byte_tokenizer()), RUN_SPEC)
    found = source.example(0, np.random.default_rng(0))
    order = [str(byte_tokenizer().decode(item.ids))[3] for item in found.prompts.documents]
    assert found.positives_C.tolist() == [text in "ac" for text in order]
    assert found.teachers["given"].tolist() == ["abc".index(text) + 1 for text in order]
    ids = ", ".join(str(i) for i in np.flatnonzero(found.positives_C))
    assert str(byte_tokenizer().decode(found.prompts.only.segments[-1].ids)) == f"Q:q;A[{ids}]"


def test_line_separators_inside_a_text_are_no_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    row = {"query": "q", "documents": ["a\u2028b\x85c", "d"], "positives": [0]}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert len(RequestFile(path, PromptTokenizer(byte_tokenizer()), RUN_SPEC, DataConfig((str(path),)))) == 1
