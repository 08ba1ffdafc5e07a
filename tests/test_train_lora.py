"""LoRA: adapters trained, kept beside the checkpoint or merged into it, and ranked with."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CPU, failed
from safetensors.torch import load_file, save_file
from test_train import COLOURS, RECOMPUTE, base_model, config_file, request_lines
from typer.testing import CliRunner

from blockrank import InputError, MissingExtraError, ModelError, Ranker, RankRequest
from blockrank.cli import app
from blockrank.model import EMBEDDED_MODEL, load_model
from blockrank.train.batch import collate
from blockrank.train.config import TrainConfig
from blockrank.train.objective import training_loss
from blockrank.train.run import build_trainer, train_from_config

ADAPTERS = "adapter_model.safetensors"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    base_model(tmp_path / "base")
    request_lines(tmp_path)
    return tmp_path


def lora_file(folder: Path, table: str = "rank = 4\nmerge = false", loss: str = "", **trainer: Any) -> Path:
    path = config_file(folder, loss, **trainer)
    path.write_text(f"{path.read_text()}\n[lora]\n{table}\n", encoding="utf-8")
    return path


def scores(folder: Path) -> list[float]:
    ranking = Ranker.from_pretrained(folder, device="cpu").rank_many([RankRequest("red", list(COLOURS))])[0]
    return [entry.score for entry in sorted(ranking, key=lambda entry: entry.index)]


@pytest.mark.parametrize("lm", [0.0, 1.0])
def test_adapters_merged_and_beside_rank_alike(work: Path, lm: float) -> None:
    """With the LM loss the adapters reach above the scoring layer, where ranking has no layers to add them to."""
    beside = train_from_config(lora_file(work, loss=f"lm = {lm}"))
    assert sorted(path.name for path in beside.iterdir() if "token" not in path.name) == [
        "adapter_config.json", ADAPTERS, "blockrank.json",
    ]  # fmt: skip
    names = set(load_file(beside / ADAPTERS))
    assert all("lora_" in name for name in names)
    assert any("layers.2." in name for name in names) == (lm > 0)
    expected = scores(beside)
    assert max(abs(a - b) for a, b in zip(expected, scores(work / "base"), strict=True)) > 1e-3
    shutil.move(beside, work / "beside")
    merged = train_from_config(lora_file(work, "rank = 4", f"lm = {lm}"))
    assert not list(merged.glob("adapter_*")) + list(merged.glob(".merged*"))
    assert scores(merged) == pytest.approx(expected, abs=1e-6)
    assert load_model(work / "beside", device=CPU).module.config.num_hidden_layers == 2


def test_the_command_line_ranks_with_adapters(work: Path) -> None:
    beside = train_from_config(lora_file(work, max_steps=1))
    documents = work / "lines.txt"
    documents.write_text("\n".join(COLOURS), encoding="utf-8")
    found = CliRunner().invoke(app, ["rank", "red", "--lines", str(documents), "--model", str(beside)])
    assert found.exit_code == 0, found.output
    assert "lines.txt:" in found.stdout
    shutil.rmtree(work / "base")
    found = CliRunner().invoke(app, ["rank", "red", "--lines", str(documents), "--model", str(beside)])
    assert "the base model of the adapters in" in failed(found)


def test_gradients_of_adapters_under_checkpointing_and_autocast(work: Path) -> None:
    def gradients(**trainer: Any) -> dict[str, torch.Tensor]:
        trainer_ = build_trainer(TrainConfig.load(lora_file(work, **trainer)))
        trainer_.accelerator.prepare_model(trainer_.model)
        if trainer.get(RECOMPUTE):
            getattr(trainer_.model, f"{RECOMPUTE}_enable")({"use_reentrant": False})
        for name, weight in trainer_.model.named_parameters():  # the second factor begins with zeros
            if "lora_B" in name:
                torch.nn.init.constant_(weight, 0.02)
        batch = collate(trainer_.train_dataset[0], trainer_.rank_model.spec)
        training_loss(trainer_.rank_model, batch, trainer_.loss_config, None, trainer_.model)["loss"].backward()
        return {n: p.grad for n, p in trainer_.model.named_parameters() if p.grad is not None}

    plain = gradients()
    assert plain
    assert all("lora_" in name for name in plain)
    again = gradients(**{RECOMPUTE: True})
    assert set(again) == set(plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-4)
    half = gradients(bf16=True)
    assert set(half) == set(plain)
    top = max(plain, key=lambda name: float(plain[name].norm()))
    assert torch.cosine_similarity(half[top].flatten(), plain[top].flatten(), dim=0) > 0.99


def test_a_resumed_run_of_adapters_equals_an_uninterrupted_one(work: Path) -> None:
    config = lora_file(work, "rank = 4\nmerge = false\ndropout = 0.1", save_strategy="steps", save_steps=2)
    whole = load_file(train_from_config(config) / ADAPTERS)
    shutil.rmtree(work / "out" / "checkpoint-4")
    resumed = load_file(train_from_config(config, resume=True) / ADAPTERS)
    assert set(resumed) == set(whole)
    for name, weight in resumed.items():
        torch.testing.assert_close(weight, whole[name], atol=1e-7, rtol=0)


def test_adapters_on_adapters(work: Path) -> None:
    first = train_from_config(lora_file(work, max_steps=2)).rename(work / "first")
    path = lora_file(work, max_steps=2)
    path.write_text(path.read_text().replace(str(work / "base"), str(first)), encoding="utf-8")
    second = train_from_config(path)
    differences = [abs(a - b) for a, b in zip(scores(second), scores(first), strict=True)]
    assert max(differences) > 1e-4
    assert json.loads((second / "adapter_config.json").read_text())["base_model_name_or_path"] == str(first)


@pytest.mark.parametrize("merge", ["true", "false"])
def test_adapters_of_the_embedded_model(work: Path, merge: str) -> None:
    """Its weights are stored as int8 and loaded in their own way; its name stands for its folder."""
    path = lora_file(work, f"rank = 4\nmerge = {merge}", "lm = 0.0", max_steps=2)
    path.write_text(path.read_text().replace(str(work / "base"), "embedded"), encoding="utf-8")
    out = train_from_config(path)
    differences = [abs(a - b) for a, b in zip(scores(out), scores(EMBEDDED_MODEL), strict=True)]
    assert max(differences) > 1e-4


def test_full_weights_over_old_adapters(work: Path) -> None:
    train_from_config(lora_file(work, max_steps=1))
    out = train_from_config(config_file(work, max_steps=1))
    assert not (out / "adapter_config.json").exists()
    assert len(scores(out)) == 4


def test_adapters_that_do_not_fit(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"\[lora\]: .*nowhere"):
        train_from_config(lora_file(work, 'targets = ["nowhere"]'))
    beside = train_from_config(lora_file(work, max_steps=1))
    state = load_file(beside / ADAPTERS)
    gone = next(name for name in state if "layers.0." in name)
    save_file({name: tensor for name, tensor in state.items() if name != gone}, beside / ADAPTERS)
    with pytest.raises(ModelError, match=r"lack 1 tensors, such as .*lora_"):
        load_model(beside, device=CPU)
    (beside / ADAPTERS).unlink()
    with pytest.raises(ModelError, match="cannot be added"):
        load_model(beside, device=CPU)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"adapters need peft: pip install 'blockrank\[train\]'"):
        load_model(beside, device=CPU)
    (beside / "adapter_config.json").write_text(json.dumps({}), encoding="utf-8")
    with pytest.raises(ModelError, match="names no base model"):
        load_model(beside, device=CPU)
