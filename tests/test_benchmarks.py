"""The scripts of `benchmarks/`, tried at a size for two cores."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from blockrank.bench import timing

FOLDER = Path(__file__).parents[1] / "benchmarks"
TINY = ("--model", "tiny", "--device", "cpu", "--repeats", "1")


@pytest.fixture(autouse=True)
def small_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SMALL_CEILING", (64, 2))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run a script as from its checkout."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", ["gpu_latency.py", *arguments])
    runpy.run_path(str(FOLDER / "gpu_latency.py"), run_name="__main__")


def test_gpu_latency(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "latency.json"
    run(monkeypatch, *TINY, "--out", str(output))
    latency, growth, exponent, memory = capsys.readouterr().out.split("\n\n")
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in latency.splitlines())
    assert header == [
        "shape", "full attention (transformers)", "blockrank bf16", "ratio", "float32", "ratio", "float32 pruned",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["10 x 8", "20 x 16"]
    assert all(float(cell) > 0 for row in rows for cell in row[1:])
    assert [line.split("|")[1].strip() for line in growth.splitlines()[2:]] == ["10 x 8", "20 x 8", "40 x 8"]
    assert exponent.startswith("time ~ documents^x at 8 tokens: x = ")
    assert [line.split("|")[3].strip() for line in memory.splitlines()[2:]] == ["float32", "bfloat16"]

    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["command"] == "gpu_latency.py --model tiny --device cpu --repeats 1 --out latency.json"
    assert found["results"].keys() == {
        "latency, 16 bits", "latency, 8 bits", "prune, 8 bits", "growth", "memory, 8 bits", "memory, 16 bits",
    }  # fmt: skip
    peers = {name: result["settings"]["against"] for name, result in found["results"].items()}
    assert [name for name, against in peers.items() if against] == ["latency, 16 bits"]
    full = [row["peers"]["hf-full"] for row in found["results"]["latency, 16 bits"]["rows"]]
    eight = [row["p50_ms"] for row in found["results"]["latency, 8 bits"]["rows"]]
    assert [float(row[3]) for row in rows] == pytest.approx([peer["ratio"] for peer in full], abs=0.006)
    expected = [peer["p50_ms"] / ms for peer, ms in zip(full, eight, strict=True)]
    assert [float(row[5]) for row in rows] == pytest.approx(expected, abs=0.006)
    assert found["results"]["prune, 8 bits"]["model"]["prune"] == "0:0.5"


def test_parts_of_gpu_latency(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, *TINY, "--parts", "prune")
    last = capsys.readouterr().out.splitlines()[-1].split("|")
    assert [bool(cell.strip()) for cell in last[1:-1]] == [True, *[False] * 5, True]
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *TINY, "--parts", "devices")
    assert "the part devices needs --devices 2 or more" in capsys.readouterr().err
