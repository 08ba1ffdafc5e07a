"""Training that leaves the finite numbers ends with a sentence and saves nothing; the same run saves the same files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_model import BASE, SPEC, stored
from test_train import config_file, work
from test_train_distil import ITEMS, LEARNS, requests, tiny
from transformers import BertConfig, BertModel
from typer.testing import CliRunner

from blockrank import InputError, ModelError
from blockrank.cli import app
from blockrank.train.config import TrainConfig
from blockrank.train.distil import ListTrainer, distil
from blockrank.train.divergence import FiniteTrainer
from blockrank.train.run import train_from_config

__all__ = ["requests", "tiny", "work"]  # fixtures
LR = {"learning_rate": 1e37, "logging_steps": 1}


def tensors_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))


@pytest.mark.parametrize("lora", ["", "[lora]\nrank = 2\n"])
def test_a_run_that_diverges_ends_with_a_sentence(lora: str, work: Path) -> None:
    path = config_file(work, "lm = 0.5", max_steps=6, **LR)
    path.write_text(path.read_text().replace("[trainer]", f"{lora}[trainer]"), encoding="utf-8")
    result = CliRunner().invoke(app, ["train", str(path)])
    assert (result.exit_code, result.stdout) == (1, "")
    *logged, sentence = result.stderr.splitlines()
    assert sentence.startswith("blockrank: error: training diverged at step 2: the loss is nan; nothing is saved.")
    assert not [line for line in logged if "step 2" in line], "no loss of another step is shown for it"
    assert not tensors_in(work / "out")


def test_the_last_good_checkpoint_stays(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that break at a later step are neither evaluated nor saved."""
    values = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    step = FiniteTrainer.training_step

    def breaking(self: FiniteTrainer, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == 3:
            next(self.model.parameters()).data[5, 0] = torch.inf
        return step(self, *arguments, **options)

    monkeypatch.setattr(FiniteTrainer, "training_step", breaking)
    with pytest.raises(ModelError, match=r"training diverged at step 4: .*; what was saved before stays\."):
        train_from_config(config_file(work, "lm = 0.0", **values))
    assert tensors_in(work / "out") == ["checkpoint-3/model.safetensors"]
    found = load_file(work / "out" / "checkpoint-3" / "model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())


def test_a_last_step_that_breaks_the_weights_is_not_saved(work: Path) -> None:
    with pytest.raises(ModelError, match=r"diverged at step 1: .* holds values that are not finite; nothing is saved"):
        train_from_config(config_file(work, "lm = 0.0", max_steps=1, learning_rate=1e39))
    assert not tensors_in(work / "out")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite(value: float, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is a number, and a step with this gradient would break every weight."""
    step = FiniteTrainer.training_step

    def breaking(self: FiniteTrainer, *arguments: Any, **options: Any) -> Any:
        loss = step(self, *arguments, **options)
        next(weight for weight in self.model.parameters() if weight.grad is not None).grad.view(-1)[0] = value  # type: ignore[union-attr]
        return loss

    monkeypatch.setattr(FiniteTrainer, "training_step", breaking)
    with pytest.raises(ModelError, match=r"training diverged at step 1: the gradient of .* is not finite"):
        train_from_config(config_file(work, "lm = 0.0", max_steps=2))
    assert not tensors_in(work / "out")


def test_a_distillation_that_diverges_leaves_no_folder(tiny: Path, requests: Path, tmp_path: Path) -> None:
    output = tmp_path / "student"
    arguments = ["distil", str(requests), "--encoder", str(tiny), "-o", str(output), "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--learning-rate", "1e38", "--warmup", "0", "--steps", "4"])
    assert result.exit_code == 1
    assert "blockrank: error: training diverged at step " in result.stderr
    assert not output.exists()
    assert issubclass(ListTrainer, FiniteTrainer)
    assert len(ITEMS) > 1


# The same files


def bert(folder: Path) -> Path:
    """Without a pooler, as the library leaves it out where no one asked for one."""
    values = {key: BASE[key] for key in list(BASE)[:5]}
    torch.manual_seed(0)
    module = BertModel(BertConfig(**values, is_decoder=True), add_pooling_layer=False)
    return stored(folder, module, SPEC)


@pytest.mark.parametrize("base", ["embedded", "bert"])
def test_identical_runs_save_identical_files(base: str, work: Path) -> None:
    if base == "bert":
        shutil.rmtree(work / "base")
        bert(work / "base")
    path = config_file(work, "lm = 0.0", max_steps=1)
    if base == "embedded":
        path.write_text(path.read_text().replace(json.dumps(str(work / "base")), '"embedded"'), encoding="utf-8")
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)  # whatever was drawn before
        found.append((train_from_config(path) / "model.safetensors").read_bytes())
    assert found[0] == found[1]
    tensors = load_file(work / "out" / "model.safetensors")
    assert all(bool((tensors[name] == 0).all()) for name in tensors if name.startswith("pooler"))


def test_identical_distillations_save_identical_files(requests: Path, tiny: Path, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    shutil.copytree(tiny, encoder)
    weights = load_file(encoder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "pooler" not in k}, encoder / "model.safetensors", {"format": "pt"})
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        distil(requests, encoder, tmp_path / str(seed), LEARNS, device="cpu")
        found.append((tmp_path / str(seed) / "model.safetensors").read_bytes())
    assert found[0] == found[1]


# Values of a configuration


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('learning_rate = "fast"', "learning_rate must be a finite number, not 'fast'"),
        ("learning_rate = inf", "learning_rate must be a finite number, not inf"),
        ("learning_rate = nan", "learning_rate must be a finite number, not nan"),
        ("learning_rate = true", "learning_rate must be a finite number, not True"),
        ("learning_rate = -1.0", "learning_rate must be at least 0, not -1.0"),
        ("max_steps = 1.5", "max_steps must be an integer, not 1.5"),
        ('warmup_steps = "x"', "warmup_steps must be a finite number, not 'x'"),
        ("gradient_accumulation_steps = 0", "gradient_accumulation_steps must be at least 1, not 0"),
        ('save_steps = "2"', "save_steps must be a finite number, not '2'"),
        ('bf16 = "yes"', "bf16 must be true or false, not 'yes'"),
        ("report_to = [3]", r"report_to must be a string or a list of which each is a string, not \[3\]"),
        ('report_to = "somewhere"', "somewhere is not supported"),
        ("adam_beta1 = 1.5", "adam_beta1 must be below 1, not 1.5"),
        ("optim_args = 3", "optim_args must be a string, not 3"),
        ("dataloader_num_workers = -1", "dataloader_num_workers must be at least 0, not -1"),
        ('lr_scheduler_type = "zigzag"', "zigzag is not a valid SchedulerType"),
        ('output_dir = "x"', "output_dir is said by output, at the top of the file"),
        ("learning_speed = 1", "unknown key 'learning_speed'"),
    ],
)
def test_wrong_values_for_the_trainer(line: str, words: str, work: Path) -> None:
    path = config_file(work)
    name = line.split(" = ")[0]
    lines = [item for item in path.read_text().splitlines() if not item.startswith(f"{name} ")]
    path.write_text("\n".join([*lines, line]), encoding="utf-8")
    with pytest.raises(InputError, match=rf"^\[trainer\]: {words}"):
        train_from_config(path)
    assert not (work / "out").exists(), "nothing was begun"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'output = "a"\nseed = "\xff"', r":2: not valid UTF-8\."),
        ('output = "a"'.encode("utf-16"), r":1: not valid UTF-8\."),
        (b"seed = " + b"[" * 100_000, r" is not valid TOML: nested too deeply\."),
        (b'output = "a"\na' + b".a" * 1000 + b" = 1", r":2: not valid TOML: nested too deeply\."),
        (b"seed = " + b"9" * 5000, r" is not valid TOML: a number has too many digits\."),
        (b'output = "a"\n= 1', r" is not valid TOML: .*line 2"),
        (b"", r": 'output', 'model' and 'data' are missing\."),
        (b'seed = -1\noutput = "a"\ndata = { sets = ["a"] }', r": 'model' is missing\."),
        (b'output = "a"\nmodel = {}\ndata = { sets = ["a"] }', r" \[model\]: 'base' is missing\."),
    ],
)
def test_a_configuration_that_is_none(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"^{path}{words}"):
        TrainConfig.load(path)


@pytest.mark.parametrize(
    ("line", "table", "words"),
    [
        ("seed = 1", "seed = -1", r"run\.toml: seed must lie in \[0, 2\^32\), not -1"),
        ("[data]\n", "[data]\nweights = { requests = -1.0 }\n", "data.weights gives 'requests' -1.0"),
        ("[data]\n", "[data]\nweights = { requests = inf }\n", "each value is a finite number, not {'requests': inf}"),
        ("[data]\n", "[data]\nweights = { requests = 0.0 }\n", "gives every source a share of 0"),
        ("[loss]\n", "[loss]\ntemperature = inf\n", "temperature must be a finite number, not inf"),
        ("[loss]\n", "[loss]\ndistil = -1.0\n", "loss.distil must be at least 0, not -1.0"),
        ("[model]\n", '[model]\nspec = { layer = "1" }\n', r"\[model\]: spec: RankSpec.layer must be an integer"),
        ("[trainer]\n", "[lora]\nalpha = nan\n[trainer]\n", r"\[lora\]: alpha must be a finite number, not nan"),
    ],
)
def test_wrong_values_of_a_configuration(line: str, table: str, words: str, work: Path) -> None:
    path = config_file(work)
    path.write_text(path.read_text().replace(line, table), encoding="utf-8")
    with pytest.raises(InputError, match=words):
        train_from_config(path)
