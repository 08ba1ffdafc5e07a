"""Training on two GPUs, by torchrun: FSDP2 and DDP equal one process, and what they save ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_train import COLOURS, base_model, config_file, request_lines

from blockrank import Ranker

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]

DEV = "\n[dev]\nrequests = {requests!r}\nevery = 2\n"
LORA = "\n[lora]\nrank = 4\nmerge = {merge}\n"
WAYS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp-checkpointing": {"gradient_checkpointing": True},
    "fsdp2": {"fsdp": True},
    "fsdp2-checkpointing": {"fsdp": True, "gradient_checkpointing": True},
    "fsdp2-kept": {"fsdp": True, "fsdp_config": "{ reshard_after_forward = false }"},
    "fsdp2-own-checkpointing": {"fsdp": True, "fsdp_config": "{ activation_checkpointing = true }"},
}


def prepared(folder: Path, tables: str, loss: str, **trainer: Any) -> Path:
    folder.mkdir()
    base_model(folder / "base")
    request_lines(folder)
    shards = trainer.pop("fsdp_config", None)
    values = {
        "use_cpu": False, "per_device_train_batch_size": 4, "optim": "sgd", "learning_rate": 0.1,
        "save_strategy": "steps", "save_steps": 2, "save_total_limit": 5, **trainer,
    }  # fmt: skip
    path = config_file(folder, loss, **values)
    text = path.read_text().replace("candidates = 4", "candidates = 4\nmax_tokens = 120")
    shards_line = f"\nfsdp_config = {shards}" if shards else ""
    path.write_text(text + shards_line + tables.format(requests=str(folder / "requests.jsonl")), encoding="utf-8")
    return path


def launched(path: Path, processes: int, *options: str) -> None:
    """Run the command by torchrun; standard output stays empty, and one process alone logs."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    command = [*launcher, "-m", "blockrank", "train", str(path), *options]
    environment = {**os.environ, "NCCL_NVLS_ENABLE": "0"}
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert found.returncode == 0, found.stderr[-6000:]
    assert found.stdout == ""
    assert found.stderr.count("progress: step 4: loss ") == 1


def history(folder: Path, key: str) -> list[float]:
    """What the run logged under a key, up to its last step."""
    state = json.loads((folder / "out" / "checkpoint-4" / "trainer_state.json").read_text())
    return [entry[key] for entry in state["log_history"] if key in entry]


def compare(one: Path, two: Path, weights: str) -> None:
    expected, found = load_file(one / "out" / weights), load_file(two / "out" / weights)
    assert set(found) == set(expected)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-4, rtol=0, msg=name)
    for key in ("loss", "loss_contrastive"):
        assert history(two, key) == pytest.approx(history(one, key), rel=1e-3)


@pytest.mark.parametrize("loss", ["lm = 0.0", "lm = 0.5"])
@pytest.mark.parametrize("way", WAYS)
def test_two_gpus_equal_one_process(tmp_path: Path, way: str, loss: str) -> None:
    launched(prepared(tmp_path / "one", DEV, loss, gradient_accumulation_steps=2), 1)
    launched(prepared(tmp_path / "two", DEV, loss, **WAYS[way]), 2)
    compare(tmp_path / "one", tmp_path / "two", "model.safetensors")
    keys = [history(tmp_path / name, "eval_nDCG@10") for name in ("one", "two")]
    assert keys[1] == pytest.approx(keys[0], abs=1e-2)
    assert len(Ranker.from_pretrained(tmp_path / "two" / "out").rank("red", list(COLOURS))) == 4


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_adapters_on_two_gpus(tmp_path: Path, way: str) -> None:
    kept = LORA.format(merge="false")
    launched(prepared(tmp_path / "one", kept, "lm = 0.0", gradient_accumulation_steps=2), 1)
    launched(prepared(tmp_path / "two", kept, "lm = 0.0", **WAYS[way]), 2)
    compare(tmp_path / "one", tmp_path / "two", "adapter_model.safetensors")
    launched(prepared(tmp_path / "merged", LORA.format(merge="true"), "lm = 0.0", **WAYS[way]), 2)
    scores = [
        sorted((entry.index, entry.score) for entry in Ranker.from_pretrained(folder / "out").rank("red", COLOURS))
        for folder in (tmp_path / "two", tmp_path / "merged")
    ]
    for (_, expected), (_, found) in zip(*scores, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


def test_a_run_of_shards_goes_on(tmp_path: Path) -> None:
    # Plain gradient descent has no state, and an optimiser's empty state is one that the library cannot load in shards.
    path = prepared(tmp_path / "one", DEV, "lm = 0.0", fsdp=True, optim="adamw_torch", learning_rate=1e-3)
    launched(path, 2)
    whole = load_file(tmp_path / "one" / "out" / "model.safetensors")
    for item in (tmp_path / "one" / "out" / "checkpoint-4").iterdir():
        item.unlink() if item.is_file() else None
    launched(path, 2, "--resume")
    for name, weight in load_file(tmp_path / "one" / "out" / "model.safetensors").items():
        torch.testing.assert_close(weight, whole[name], atol=1e-6, rtol=0, msg=name)


def test_bfloat16_in_shards(tmp_path: Path) -> None:
    launched(prepared(tmp_path / "one", DEV, "lm = 0.5", fsdp=True, bf16=True), 2)
    assert len(Ranker.from_pretrained(tmp_path / "one" / "out").rank("red", list(COLOURS))) == 4
