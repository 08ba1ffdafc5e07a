"""`blockrank train --dry-run`: what a run would take, against the run itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import failed
from test_train import base_model, config_file, request_lines
from typer.testing import CliRunner

from blockrank.cli import app
from blockrank.train.config import TrainConfig
from blockrank.train.plan import plan_training
from blockrank.train.run import build_trainer


@pytest.fixture
def work(tmp_path: Path) -> Path:
    base_model(tmp_path / "base")
    request_lines(tmp_path)
    return tmp_path


def with_tables(path: Path, tables: str) -> Path:
    path.write_text(path.read_text() + tables, encoding="utf-8")
    return path


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("loss", ["lm = 0.0", "lm = 1.0"])
def test_a_plan_counts_what_the_run_has(work: Path, loss: str, lora: bool) -> None:
    path = with_tables(config_file(work, loss), "\n[lora]\nrank = 2\n" if lora else "")
    plan = plan_training(TrainConfig.load(path))
    assert not (work / "out").exists()
    trainer = build_trainer(TrainConfig.load(path))
    weights = list(trainer.model.parameters())
    assert plan.parameters == sum(weight.numel() for weight in weights)
    assert plan.trainable == sum(weight.numel() for weight in weights if weight.requires_grad)
    assert (plan.trainable < plan.parameters) == lora
    trainer.create_optimizer()
    trained = sum(weight.numel() for group in trainer.optimizer.param_groups for weight in group["params"])
    assert plan.memory_bytes["gradients"] == 4 * trained
    assert plan.memory_bytes["optimiser"] == 8 * trained
    assert plan.steps == 4
    assert plan.requests_in_step == 4
    tokens = [sum(item.prompts.length for item in trainer.train_dataset[index]) for index in range(4)]
    assert plan.tokens_in_step == pytest.approx(sum(tokens) / 4, rel=0.1)
    assert plan.seconds == pytest.approx(4 * plan.flops_in_step / plan.flops_per_second)


def test_recomputing_trades_memory_for_time(work: Path) -> None:
    def plan(**trainer: Any) -> Any:
        return plan_training(TrainConfig.load(config_file(work, **trainer)))

    plain, lean, half = plan(), plan(gradient_checkpointing=True), plan(bf16=True)
    assert lean.memory_bytes["activations"] < plain.memory_bytes["activations"]
    assert lean.flops_in_step == pytest.approx(4 / 3 * plain.flops_in_step)
    assert 2 * half.memory_bytes["activations"] == plain.memory_bytes["activations"]
    assert plan(optim="adafactor").memory_bytes["optimiser"] == 0


def test_the_command_prints_the_plan_and_trains_nothing(work: Path) -> None:
    dev = f'\n[dev]\nrequests = "{work}/requests.jsonl"\n'
    path = with_tables(config_file(work, report_to="tensorboard"), dev)
    found = CliRunner().invoke(app, ["train", str(path), "--dry-run"])
    assert found.exit_code == 0, found.output
    lines = dict(line.split("  ", 1) for line in found.stdout.splitlines())
    assert lines["source requests"].strip() == "24 queries, 100.0% of the requests"
    assert "24 queries, nDCG@10 every 500 steps" in lines["dev set"]
    assert str(work / "out") in lines["output"]
    found = CliRunner().invoke(app, ["train", str(path), "--dry-run", "--json"])
    plan = json.loads(found.stdout)
    assert plan["total_tokens"] == round(plan["tokens_in_step"] * 4)
    assert not (work / "out").exists()


def test_a_plan_fails_as_the_run_would(work: Path) -> None:
    path = config_file(work)
    path.write_text(path.read_text().replace("requests.jsonl", "none.jsonl"), encoding="utf-8")
    assert "cannot be read" in failed(CliRunner().invoke(app, ["train", str(path), "--dry-run"]))
    assert CliRunner().invoke(app, ["train", str(path), "--json"]).exit_code == 2
    assert CliRunner().invoke(app, ["train", str(path), "--dry-run", "--resume"]).exit_code == 2


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_missing_trainer_is_named(tmp_path: Path, options: list[str]) -> None:
    config = tmp_path / "run.toml"
    config.write_text("", encoding="utf-8")
    code = "import sys; sys.modules['accelerate'] = None; from blockrank.cli import main; sys.exit(main())"
    found = subprocess.run(
        [sys.executable, "-c", code, "train", str(config), *options], capture_output=True, text=True, timeout=120
    )
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == "blockrank: error: training needs accelerate: pip install 'blockrank[train]'.\n"
