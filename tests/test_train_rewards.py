"""Rewards of written rankings by hand, and a run that learns from them."""

from __future__ import annotations

import json
import math
import sys
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from labelled import chat_tokenizer, saved_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from blockrank import InputError, MissingExtraError, Ranker, RankRequest
from blockrank.scorers import resolve_scorer
from blockrank.train.rewards import choice_reward, choice_rewards, grades_reward, grades_rewards, jensen_shannon

RECIPE = Path(__file__).parents[1] / "recipes" / "grpo"
COLOURS = ["ash", "blue", "cyan", "red"]
CHOICE = "<think>a</think>\n<answer>{}</answer>"
GRADES = "<reason>because</reason>\n<answer>\n```json\n{}\n```\n</answer>"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RECIPE))
    monkeypatch.delitem(sys.modules, "train", raising=False)
    return import_module("train")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CHOICE.format("[2]"), 1.0),
        (CHOICE.format(" [2] "), 1.0),
        (CHOICE.format("2"), 1.0),
        (CHOICE.format("[1]"), 0.0),
        (CHOICE.format("[1] or [2]"), 0.0),
        (CHOICE.format("[4]"), 0.0),
        (CHOICE.format("[2]").removesuffix("</answer>"), 0.0),
        ("<answer>[2]</answer>", 0.0),
        ("<answer>[2]</answer><think>a</think>", 0.0),
        ("", 0.0),
    ],
)
def test_a_choice_is_worth_one_in_the_form_asked_for(text: str, expected: float) -> None:
    assert choice_reward(text, 3, [1]) == expected


def test_grades_by_hand() -> None:
    """Relevance 3, 0, 1 graded 2, 8, 0: the order is the second, the first, the third document."""
    found = grades_reward(GRADES.format('{"[1]": 2, "[2]": 8, "[3]": 0}'), [3.0, 0.0, 1.0])
    ndcg = (3 / math.log2(3) + 1 / 2) / (3 + 1 / math.log2(3))
    p, q = (0.2, 0.8, 0.0), (0.75, 0.0, 0.25)
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    both = [sum(a * math.log2(a / m) for a, m in zip(row, middle, strict=True) if a) for row in (p, q)]
    assert found == pytest.approx(ndcg + 0.2 * 1 + 0.1 * (1 - sum(both) / 2))
    assert grades_reward(GRADES.format('{"[1]": 9, "[2]": 0, "[3]": 3}'), [3.0, 0.0, 1.0]) == pytest.approx(1.3)


def test_recall_is_of_the_first_ten() -> None:
    grades = {f"[{place}]": 0 if place == 12 else 5 for place in range(1, 13)}
    found = grades_reward(GRADES.format(json.dumps(grades)), [0.0] * 11 + [1.0])
    assert found == pytest.approx(0.1 * (1 - jensen_shannon(list(grades.values()), [0.0] * 11 + [1.0])))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GRADES.format('{"[1]": 2, "[2]": 8'), -0.1),
        (GRADES.format('{"[1]": 2}'), -0.1),
        (GRADES.format('{"[1]": 2, "[2]": 11}'), -0.1),
        ('{"[1]": 2, "[2]": 8}', -0.5),
        ('<answer>{"[1]": 2, "[2]": 8}</answer>', -0.5),
        (GRADES.format('{"[1]": 2, "[2]": 8}') + "more", -0.5),
        ("", -0.5),
    ],
)
def test_grades_in_another_form_cost(text: str, expected: float) -> None:
    assert grades_reward(text, [1.0, 0.0]) == expected


@given(text=st.text(max_size=60), form=st.sampled_from(["{}", CHOICE, GRADES]))
def test_rewards_of_whatever_is_written_are_in_their_range(text: str, form: str) -> None:
    written = form.replace("{}", text)
    assert choice_reward(written, 3, [1]) in (0.0, 1.0)
    assert -0.5 <= grades_reward(written, [0.0, 2.0, 1.0]) <= 1.3


@given(row=st.lists(st.integers(0, 10), min_size=1, max_size=6), other=st.data())
def test_divergence_lies_between_equal_and_disjoint(row: list[int], other: st.DataObject) -> None:
    against = other.draw(st.lists(st.integers(0, 10), min_size=len(row), max_size=len(row)))
    assert jensen_shannon(row, row) == pytest.approx(0, abs=1e-12)
    assert jensen_shannon(row, against) == pytest.approx(jensen_shannon(against, row), abs=1e-12)
    assert -1e-12 <= jensen_shannon(row, against) <= 1 + 1e-12
    assert jensen_shannon([1, 0], [0, 3]) == pytest.approx(1)


def test_rewards_of_texts_and_of_turns() -> None:
    """As TRL hands them over, with columns that a reward does not need."""
    texts = [CHOICE.format("[1]"), CHOICE.format("[2]")]
    turns = [[{"role": "assistant", "content": text}] for text in texts]
    for completions in (texts, turns):
        assert choice_rewards(completions, [[1, 0], [1, 0]], prompts=["a", "a"]) == [1.0, 0.0]
    assert grades_rewards(texts, relevance=[[1, 0], [1, 0]]) == [-0.5, -0.5]


def requests_file(folder: Path, **more: Any) -> Path:
    path = folder / "requests.jsonl"
    rows = [{"query": colour, "documents": COLOURS, "positives": [0], **more} for colour in COLOURS]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_prompts_are_those_that_rank(tmp_path: Path, recipe: Any) -> None:
    folder = saved_model(tmp_path / "base")
    for name in ("reasoned_choice", "groupwise"):
        scorer, spec = resolve_scorer(folder, name)
        path, tokenizer = requests_file(tmp_path, teacher=[3, 0, 0.5, 1]), AutoTokenizer.from_pretrained(folder)
        rows = list(recipe.rows_of(path, scorer, spec, tokenizer, graded=name == "groupwise"))
        ranker = Ranker.from_pretrained(folder, scorer=name, device="cpu")
        for row, colour in zip(rows, COLOURS, strict=True):
            prompt = ranker.tokenise(ranker_request(colour)).only
            own = [int(token) for segment in prompt.segments for token in segment.ids]
            assert tokenizer(row["prompt"])["input_ids"] == own
            assert row["relevance"] == ([3, 0, 0.5, 1] if name == "groupwise" else [1, 0, 0, 0])
    with pytest.raises(InputError, match=r"requests.jsonl:1: with --graded it needs teacher"):
        list(recipe.rows_of(requests_file(tmp_path), scorer, spec, tokenizer, graded=True))


def ranker_request(query: str) -> Any:
    return RankRequest(query, COLOURS)


def test_without_trl_the_extra_is_named(recipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MissingExtraError, match=r"GRPO needs TRL: pip install 'blockrank\[grpo\]'"):
        recipe.train("none", tmp_path, tmp_path, "groupwise", {})


def taught_the_form(folder: Path, requests: Path, recipe: Any) -> Path:
    """A tiny model that answers in the form asked for, with any of four labels: its head alone has learnt that."""
    tokenizer = deepcopy(chat_tokenizer(whole_numbers=False))
    tokenizer.add_tokens(CHOICE.format("[{}]").split("{}"))  # an answer is four tokens
    scorer, spec = resolve_scorer(saved_model(folder), "reasoned_choice")
    tokenizer.save_pretrained(folder)
    module = AutoModelForCausalLM.from_pretrained(folder)
    prompts = [row["prompt"] for row in recipe.rows_of(requests, scorer, spec, tokenizer, graded=False)]
    ids = [
        torch.tensor(tokenizer(f"{prompt}{CHOICE.format(f'[{label}]')}{tokenizer.eos_token}")["input_ids"])
        for prompt in prompts
        for label in range(1, 5)
    ]
    with torch.no_grad():
        hidden_TD = torch.cat([module.model(text[None]).last_hidden_state[0, -5:-1] for text in ids])
    head, wanted_T = module.lm_head, torch.cat([text[-4:] for text in ids])
    optimiser = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(300):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(head(hidden_TD), wanted_T).backward()
        optimiser.step()
    module.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")  # of trl
def test_a_run_raises_the_reward_and_its_result_ranks(tmp_path: Path, recipe: Any) -> None:
    """The first of four documents is always the best; the model begins by naming any of them."""
    pytest.importorskip("trl")
    torch.manual_seed(0)
    requests = requests_file(tmp_path)
    base = taught_the_form(tmp_path / "base", requests, recipe)
    trainer_settings = {
        "max_steps": 16, "learning_rate": 5e-4, "max_completion_length": 6, "per_device_train_batch_size": 8,
        "logging_steps": 1, "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no", "seed": 0,
        "lr_scheduler_type": "constant", "activation_checkpointing": False,
    }  # fmt: skip
    lora = {"target_modules": "all-linear", "lora_dropout": 0.0}
    trainer = recipe.train(
        str(base), requests, tmp_path / "out", "reasoned_choice:max_new_tokens=6",
        {"trainer": trainer_settings, "lora": lora},
    )  # fmt: skip
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[:2]) / 2 < 0.6  # without learning it stays at a quarter
    assert sum(rewards[-4:]) / 4 > 0.85
    ranking = Ranker.from_pretrained(tmp_path / "out", device="cpu").rank("red", COLOURS)
    assert (ranking.repaired, ranking[0].text) == (0, "ash")
