"""Which requests share a forward: token budget, curriculum, and what follows for resuming."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PATIENCE_S, tokenised
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_train import COLOURS, base_model, config_file, request_lines
from transformers import TrainerCallback

from blockrank import InputError, Ranker, RankRequest
from blockrank.scorers import Prompts
from blockrank.train import run
from blockrank.train.batch import ExampleStream
from blockrank.train.config import DataConfig, TrainConfig
from blockrank.train.forwards import ForwardStream
from blockrank.train.run import newest_checkpoint, train_from_config
from blockrank.train.sets import Example

BUDGET = "max_tokens = 90\ncurriculum = [[0.0, 2], [0.5, 4]]"


class Ragged:
    """A source whose requests have random lengths; the first token of a request is its row."""

    name = "ragged"

    def __len__(self) -> int:
        return 40

    def example(self, row: int, generator: np.random.Generator, candidates: int | None = None) -> Example:
        lengths = generator.integers(1, 9, candidates or 3)
        segments = [np.array([row]), *(np.arange(n) for n in lengths), np.arange(2)]
        return Example(Prompts((tokenised(segments),)), np.arange(len(lengths)) == 0)


def stream(steps: int, lanes: int, most: int, budget: int | None, curriculum: Any = ()) -> ForwardStream:
    config = DataConfig(("x",), candidates=3, max_tokens=budget, curriculum=curriculum)
    return ForwardStream(ExampleStream([Ragged()], steps * lanes * most, seed=5), steps, lanes, most, config)


def shape(forward: list[Example]) -> list[tuple[int, int]]:
    """Row and tokens of each request."""
    return [(int(item.prompts.only.segments[0].ids[0]), item.prompts.length) for item in forward]


@settings(deadline=None, max_examples=30)
@given(
    steps=st.integers(1, 6), lanes=st.integers(1, 4), most=st.integers(1, 6), budget=st.integers(1, 120),
    order=st.randoms(use_true_random=False),
)  # fmt: skip
def test_a_budget_is_kept_and_nothing_is_skipped(steps: int, lanes: int, most: int, budget: int, order: Any) -> None:
    curriculum = ((0.0, 2.0), (0.4, 5.0))
    whole = stream(steps, lanes, most, budget, curriculum)
    forwards = [shape(whole[index]) for index in range(len(whole))]
    assert len(forwards) == steps * lanes
    plain = ExampleStream([Ragged()], steps * lanes * most, seed=5)
    for lane in range(lanes):
        taken, index = forwards[lane::lanes], lane
        for step, forward in enumerate(taken):
            candidates = 2 if step < 0.4 * steps else 5
            assert 1 <= len(forward) <= most
            assert len(forward) == 1 or sum(length for _, length in forward) <= budget
            expected = [plain.example(index + lanes * place, candidates) for place in range(len(forward))]
            assert forward == shape(expected)
            index += lanes * len(forward)
            if len(forward) < most:  # the next one would not have fitted
                following = plain.example(index, candidates).prompts.length
                assert sum(length for _, length in forward) + following > budget
    indices = list(range(len(forwards)))
    order.shuffle(indices)
    again = stream(steps, lanes, most, budget, curriculum)
    assert [shape(again[index]) for index in indices] == [forwards[index] for index in indices]


def test_without_a_budget_forwards_take_equal_parts_of_the_stream() -> None:
    found = stream(3, 2, 4, None)
    plain = ExampleStream([Ragged()], 24, seed=5)
    assert [row for index in range(6) for row in shape(found[index])] == shape([plain[index] for index in range(24)])


def test_a_curriculum_is_a_function_of_the_step() -> None:
    config = DataConfig(("x",), candidates=30, curriculum=((0.0, 8), (0.5, 16), (0.8, 30)))
    counts = [config.candidates_at(step, 10) for step in range(10)]
    assert counts == [8] * 5 + [16] * 3 + [30] * 2
    assert DataConfig(("x",), candidates=7).candidates_at(3, 10) == 7
    found = stream(4, 1, 2, None, ((0.0, 2), (0.5, 6)))
    assert [[len(item.positives_C) for item in found[index]] for index in range(4)] == [[2, 2]] * 2 + [[6, 6]] * 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("max_tokens = 0", r"data\.max_tokens must be positive"),
        ("curriculum = [[0.5, 4]]", "must begin with 0"),
        ("curriculum = [[0.0, 4], [0.0, 5]]", "must begin with 0, increase"),
        ("curriculum = [[0.0, 4], [1.0, 5]]", "stay below 1"),
        ("curriculum = [[0.0, 1]]", "must list pairs"),
        ("curriculum = [[0.0, 4.5]]", "must list pairs"),
        ("curriculum = [[0.0]]", "must list pairs"),
        ("curriculum = [4]", "curriculum must be a list of which each is a list"),
    ],
)
def test_mistakes(tmp_path: Path, data: str, words: str) -> None:
    path = config_file(tmp_path)
    path.write_text(path.read_text().replace("candidates = 4", f"candidates = 4\n{data}"), encoding="utf-8")
    with pytest.raises(InputError, match=words):
        TrainConfig.load(path)


# Whole runs


@pytest.fixture
def work(tmp_path: Path) -> Path:
    base_model(tmp_path / "base")
    request_lines(tmp_path)
    return tmp_path


def full_file(work: Path, **trainer: Any) -> Path:
    """A run with a budget, a curriculum, a dev set, and a checkpoint at every step."""
    values = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 10, **trainer}
    path = config_file(work, "lm = 0.5", **values)
    text = path.read_text().replace("candidates = 4", f"candidates = 4\n{BUDGET}")
    path.write_text(f'{text}\n[dev]\nrequests = "{work}/requests.jsonl"\nevery = 1\npatience = 9\n', encoding="utf-8")
    return path


class Kill(TrainerCallback):  # type: ignore[misc]
    """Ends the process with the second checkpoint on disk, in the middle of the run."""

    def on_save(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_after_two_steps(path: Path) -> None:
    """In a process of its own."""
    build = run.build_trainer

    def build_mortal(config: TrainConfig) -> run.RankTrainer:
        trainer = build(config)
        trainer.add_callback(Kill())
        return trainer

    run.build_trainer = build_mortal
    train_from_config(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it forks, which CUDA does not allow")
def test_a_killed_run_that_goes_on_equals_an_uninterrupted_one(work: Path) -> None:
    path = full_file(work)
    whole = load_file(train_from_config(path) / "model.safetensors")
    (work / "out").rename(work / "whole")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: the child starts none
        process = multiprocessing.get_context("fork").Process(target=killed_after_two_steps, args=(path,))
        process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL
    assert not (work / "out" / "model.safetensors").exists()
    resumed = load_file(train_from_config(path, resume=True) / "model.safetensors")
    assert set(resumed) == set(whole)
    for name, weight in resumed.items():
        torch.testing.assert_close(weight, whole[name], atol=1e-7, rtol=0)
    states = [(work / name / "checkpoint-6" / "trainer_state.json").read_text() for name in ("out", "whole")]
    assert [text.count("eval_nDCG@10") for text in states] == [6, 6]


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    for step, state in ((2, "{}"), (10, "{"), (4, "{}"), (12, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert newest_checkpoint(tmp_path / "none") is None


def test_sixteen_requests_are_learnt_by_heart_in_fifty_steps(work: Path) -> None:
    generator = np.random.default_rng(1)
    lines = (work / "requests.jsonl").read_text().splitlines()[:16]
    (work / "requests.jsonl").write_text("\n".join(lines), encoding="utf-8")
    values = {"max_steps": 50, "per_device_train_batch_size": 16, "learning_rate": 2e-2, "logging_steps": 50}
    out = train_from_config(config_file(work, "lm = 1.0", **values))
    ranker = Ranker.from_pretrained(out, device="cpu")
    for query in COLOURS:
        documents = [COLOURS[index] for index in generator.permutation(4)]
        assert ranker.rank_many([RankRequest(query, documents)])[0][0].text == query
