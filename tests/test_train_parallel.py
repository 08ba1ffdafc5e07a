"""Several processes: their gradients and runs equal those of one process on the same requests."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from conftest import CPU, golden_module
from safetensors.torch import load_file, save_file
from test_train import RECOMPUTE, SPEC, base_model, config_file, example, logged, request_lines
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from blockrank import InputError, Ranker
from blockrank.attention import get_backend
from blockrank.model import LoadedModel, RankModel
from blockrank.train.batch import collate
from blockrank.train.config import LossConfig
from blockrank.train.objective import training_loss
from blockrank.train.run import train_from_config

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="it forks, which CUDA does not allow")
PROCESSES = 2


def free_port() -> int:
    with socket.socket() as stream:
        stream.bind(("127.0.0.1", 0))
        return int(stream.getsockname()[1])


def _one(rank: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    for state in (AcceleratorState, PartialState, GradientState):  # what earlier tests of this process left
        state._reset_state()
    torch.manual_seed(rank)
    faulthandler.dump_traceback_later(60, exit=True)  # where it hangs, if it does
    try:
        work(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def in_processes(work: Callable[..., None], *arguments: Any) -> None:
    """Run a function in two processes that find each other; both must end well."""
    context, port = multiprocessing.get_context("fork"), free_port()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: the children start none
        processes = [context.Process(target=_one, args=(rank, port, work, arguments)) for rank in range(PROCESSES)]
        for process in processes:
            process.start()
    for process in processes:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * PROCESSES


# Gradients

# Whether requests have answers, for each process: with none, or with some in one of them, layers and head stay unused.
ANSWERS = {"all": (3, 2), "one": (0, 2), "none": (0, 0)}


def step(module: nn.Module, outer: nn.Module | None, answers: tuple[int, ...], parts: range, lm: float) -> None:
    """Backward of the mean loss of some of two requests."""
    model = RankModel(LoadedModel(module, name="qwen3"), SPEC, get_backend("sdpa", CPU, torch.float32))
    requests = [example([5, 4, 7, 3, 6], 1, answers[0]), example([4, 6, 2, 5], 2, answers[1])]
    for part in parts:
        loss = training_loss(model, collate([requests[part]], SPEC), LossConfig(lm=lm), None, outer)["loss"]
        (loss / len(parts)).backward()


def recomputing(module: Any, checkpointing: bool) -> Any:
    if checkpointing:
        getattr(module, f"{RECOMPUTE}_enable")({"use_reentrant": False})
    return module.train()


def parallel_gradients(folder: Path, kind: str, answers: tuple[int, ...], checkpointing: bool) -> None:
    dist.init_process_group("gloo")
    module = recomputing(golden_module("qwen3"), checkpointing)
    if kind == "ddp":
        outer: nn.Module = DistributedDataParallel(module)
    else:
        mesh = init_device_mesh("cpu", (PROCESSES,))
        halves = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if kind == "fsdp2-bf16" else {}
        policy = MixedPrecisionPolicy(**halves)
        for layer in module.model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        outer = fully_shard(module, mesh=mesh, mp_policy=policy)
    for _ in range(2):  # what a pass leaves behind, one for ranking too, must not hurt the next one
        module.zero_grad()
        model = RankModel(LoadedModel(module), SPEC, get_backend("sdpa", CPU, torch.float32)).through(outer)
        with torch.no_grad():
            model.forward(collate([example([3, 4, 2, 3])], SPEC).layout)
        step(module, outer, answers, range(dist.get_rank(), dist.get_rank() + 1), 0.5)
    found = {name: whole(weight.grad) for name, weight in module.named_parameters()}
    if dist.get_rank() == 0:
        save_file(found, folder / "gradients.safetensors")
    dist.barrier()


def whole(gradient: Any) -> Tensor:
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


@pytest.mark.parametrize("answers", ANSWERS)
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_gradients_of_processes_equal_those_of_one(tmp_path: Path, kind: str, answers: str) -> None:
    checkpointing = answers == "one"
    in_processes(parallel_gradients, tmp_path, kind, ANSWERS[answers], checkpointing)
    module = recomputing(golden_module("qwen3"), False)
    step(module, None, ANSWERS[answers], range(2), 0.5)
    found = load_file(tmp_path / "gradients.safetensors")
    for name, weight in module.named_parameters():
        expected = weight.grad if weight.grad is not None else torch.zeros_like(weight)
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5, msg=name)


def test_gradients_of_shards_in_bfloat16(tmp_path: Path) -> None:
    """FSDP2 casts what goes into a layer, and copies what it goes through to find it."""
    in_processes(parallel_gradients, tmp_path, "fsdp2-bf16", ANSWERS["all"], False)
    module = recomputing(golden_module("qwen3"), False)
    step(module, None, ANSWERS["all"], range(2), 0.5)
    found = load_file(tmp_path / "gradients.safetensors")
    pairs = [(found[name].flatten(), weight.grad.flatten()) for name, weight in module.named_parameters()]
    one, two = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    assert (one - two).norm() < 0.05 * two.norm()


# Runs


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        base_model(tmp_path / name / "base")
        request_lines(tmp_path / name)
    return tmp_path


def with_tables(path: Path, budget: bool, lora: bool) -> Path:
    text = path.read_text()
    if budget:
        text = text.replace("candidates = 4", "candidates = 4\nmax_tokens = 90\ncurriculum = [[0.0, 2], [0.5, 4]]")
    dev = json.dumps(str(path.parent / "requests.jsonl"))
    tables = "\n[lora]\nrank = 4\nmerge = false\n" if lora else f"\n[dev]\nrequests = {dev}\nevery = 2\n"
    path.write_text(text + tables, encoding="utf-8")
    return path


def both(work: Path, budget: bool, lora: bool, **trainer: Any) -> tuple[Path, Path]:
    """The same run for one process, which accumulates, and for two."""
    values = {"save_strategy": "steps", "save_steps": 4, "per_device_train_batch_size": 3, **trainer}
    one = config_file(work / "one", "lm = 0.5", gradient_accumulation_steps=2, **values)
    two = config_file(work / "two", "lm = 0.5", **values)
    return with_tables(one, budget, lora), with_tables(two, budget, lora)


def assert_same(work: Path, weights: str) -> None:
    one, two = (load_file(work / name / "out" / weights) for name in ("one", "two"))
    assert set(one) == set(two)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=1e-6, rtol=0, msg=name)
    for key in ("loss", "loss_lm", "grad_norm"):
        assert logged(work / "two", key) == pytest.approx(logged(work / "one", key), rel=1e-5)


def train(path: Path) -> None:
    train_from_config(path)


def test_two_processes_equal_one(work: Path) -> None:
    one, two = both(work, budget=True, lora=False)
    train_from_config(one)
    in_processes(train, two)
    assert_same(work, "model.safetensors")
    assert logged(work / "two", "eval_nDCG@10") == logged(work / "one", "eval_nDCG@10")
    assert len(Ranker.from_pretrained(work / "two" / "out", device="cpu").rank("red", ["red", "blue"])) == 2


def test_two_processes_equal_one_with_adapters(work: Path) -> None:
    one, two = both(work, False, lora=True, **{RECOMPUTE: True})
    train_from_config(one)
    in_processes(train, two)
    assert_same(work, "adapter_model.safetensors")


def test_shards_need_gpus(work: Path) -> None:
    with pytest.raises(InputError, match="fsdp needs GPUs"):
        train_from_config(config_file(work / "one", fsdp=True))


@pytest.mark.slow
def test_torchrun_starts_the_command_line(work: Path) -> None:
    one, two = both(work, budget=False, lora=False)
    train_from_config(one)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", f"--master-port={free_port()}"]
    found = subprocess.run(
        [*launcher, "-m", "blockrank", "train", str(two)], capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout == ""
    assert found.stderr.count("progress: step 4: loss ") == 1
    assert_same(work, "model.safetensors")
