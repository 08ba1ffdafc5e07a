"""The scripts of `benchmarks/`, tried at a size for two cores."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from labelled import saved_model
from serving import running

from blockrank import Document, Ranker
from blockrank.data import write_collection
from blockrank.serve.settings import ServeSettings

FOLDER = Path(__file__).parents[1] / "benchmarks"
TINY = ("--model", "tiny", "--device", "cpu", "--repeats", "1")
pytestmark = pytest.mark.usefixtures("small_ceiling")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, script: str = "gpu_latency.py") -> None:
    """Run a script as from its checkout."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(FOLDER / script), run_name="__main__")


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
    fp8 = [row["p50_ms"] for row in found["results"]["latency, 8 bits"]["rows"]]
    assert [float(row[3]) for row in rows] == pytest.approx([peer["ratio"] for peer in full], abs=0.006)
    expected = [peer["p50_ms"] / ms for peer, ms in zip(full, fp8, strict=True)]
    assert [float(row[5]) for row in rows] == pytest.approx(expected, abs=0.006)
    assert found["results"]["prune, 8 bits"]["model"]["prune"] == "0:0.5"


def test_parts_of_gpu_latency(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, *TINY, "--parts", "prune")
    last = capsys.readouterr().out.splitlines()[-1].split("|")
    assert [bool(cell.strip()) for cell in last[1:-1]] == [True, *[False] * 5, True]
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *TINY, "--parts", "devices")
    assert "the part devices needs --devices 2 or more" in capsys.readouterr().err


@pytest.mark.parametrize("ragged", ["0", "0.5"])
def test_packed_pointwise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, ragged: str
) -> None:
    """Every system gives the same scores."""
    output = tmp_path / "packed.json"
    size = ("--documents", "9", "--length", "8", "--prefix", "6", "--batch", "4", "--ragged", ragged)
    run(monkeypatch, *TINY, *size, "--out", str(output), script="packed_pointwise.py")
    found = json.loads(output.read_text(encoding="utf-8"))
    names = ["packed", "one pair, sdpa", "batches of 4, sdpa"]
    assert [row["system"] for row in found["rows"]] == names
    assert found["tokens"]["pairs"] - found["tokens"]["packed"] == 8 * 6
    for row in found["rows"]:
        assert row["largest_difference"] < 1e-5
        assert row["times_packed"] == pytest.approx(row["p50_ms"] / found["rows"][0]["p50_ms"], abs=1e-3)
    assert found["model"] == {"shape": "tiny", "dtype": "float32", "backend": "sdpa"}
    assert {"date", "commit", "hardware", "versions"} <= found.keys()
    assert [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[2:]] == names


def test_train_distil(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    texts = {
        "mars": "Mars looks red in the sky. Iron oxide in its soil is the cause.",
        "venus": "Venus is the hottest planet. Its dense air traps heat.",
        "saturn": "Saturn has rings made of ice. They are thin.",
        "git": "Changes can be put aside for later. The command is called stash.",
    }
    documents = [Document(text, name) for name, text in texts.items()]
    queries = {"q1": "why is Mars red", "q2": "rings of ice"}
    for name in ("one", "two"):
        write_collection(tmp_path / name, documents, queries, {"q1": {"mars": 1}, "q2": {"saturn": 1}})
    output = tmp_path / "distil.json"
    systems = ["ranker, own document left out", "own document (no ranker)"]
    run(
        monkeypatch, "--collections", str(tmp_path), "--tune", "one", "--test", "two", "--candidates", "3",
        "--depth", "3", "--take", "sentences", "--teachers", *systems, "--teacher-temperatures", "2", "--device", "cpu",
        "--ranker-row", "--out", str(output), script="distil.py",
    )  # fmt: skip
    found = json.loads(output.read_text(encoding="utf-8"))
    assert [row["system"] for row in found["rows"]] == 2 * ["bi-encoder before", "ranker over the best 100", *systems]
    assert [row["use"] for row in found["rows"]] == ["tune"] * 4 + ["test"] * 4
    assert all(0 <= row["nDCG@10"] <= 1 and row["R@100"] == 1 for row in found["rows"])
    assert [row["requests"] for row in found["rows"] if "requests" in row] == [4] * 4
    assert [(row["teacher"], row["take"]) for row in found["tuning"]] == [(name, "sentences") for name in systems]
    assert list(found["settings"]) == systems
    assert systems[0] in capsys.readouterr().out


def test_first_stage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    texts = ["Stoker wrote Dracula.", "Shelley wrote Frankenstein.", "如果忘记了密码，请点击重置密码链接"]
    documents = [Document(text, f"d{place}") for place, text in enumerate(texts)]
    queries = {"latin": "who wrote Dracula", "chinese": "重置密码"}
    qrels = {"latin": {"d0": 1}, "chinese": {"d2": 1}}
    write_collection(tmp_path / "all" / "small", documents, queries, qrels)
    arguments = ("--collections", str(tmp_path / "all"), "--out", str(tmp_path / "record.json"))
    run(monkeypatch, *arguments, script="first_stage.py")
    row = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))["rows"]["small"]
    assert row["bm25s"] == {"nDCG@10": 0.5, "R@100": 0.5}
    assert row["blockrank"] == {"nDCG@10": 1.0, "R@100": 1.0}
    assert row["difference"] == {"nDCG@10": 0.5, "R@100": 0.5}
    assert capsys.readouterr().out.splitlines()[2] == "| small | 0.5000 | 1.0000 | 0.5000 | 1.0000 |"


def test_zero_shot(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Three steps; a method that fails is in the table with its reason, one out of time with how many it has ranked."""
    texts = ["Stoker wrote Dracula.", "Shelley wrote Frankenstein.", "Mary wrote letters."]
    documents = [Document(text, f"d{place}") for place, text in enumerate(texts)]
    folder = tmp_path / "small"
    queries = {"one": "who wrote Dracula", "two": "letters that Mary wrote"}
    write_collection(folder, documents, queries, {"one": {"d0": 1}, "two": {"d2": 1, "d1": 0}})
    (folder / "runs").mkdir()
    lines = [f"{query} Q0 d{place} {place + 1} {3 - place} bm25" for query in queries for place in range(3)]
    (folder / "runs" / "bm25s_top100.trec").write_text("\n".join(lines) + "\n", encoding="utf-8")
    saved_model(tmp_path / "model")
    requests, rankings, record = (tmp_path / name for name in ("requests.json.gz", "rankings.json", "record.json"))
    step = partial(run, monkeypatch, script="zero_shot.py")
    step("prepare", str(requests), str(folder))
    how = ("rank", str(requests), str(tmp_path / "model"), str(rankings), "--device", "cpu", "--most-seconds", "0")
    step(*how, "--only", "setwise, sliding window", "embedding")
    step("measure", str(requests), str(rankings), "--out", str(record))
    found = json.loads(record.read_text(encoding="utf-8"))
    first, chance, setwise, embedding = found["rows"]
    assert found["queries"] == first["queries"] == chance["queries"] == {"small": 2}
    assert first["ndcg"]["mean"] == pytest.approx((1 + 1 / 2) / 2)
    assert setwise["queries"] == {"small": 1}
    assert (setwise["calls"], setwise["repaired"]) == (1, 0)
    assert setwise["median_ms"] > 0
    assert setwise["read_tokens"] > 0
    assert embedding["error"].startswith("the scorer 'embedding': end must be one token")
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in table[2:]] == [row["method"] for row in found["rows"]]
    assert table[4][1].endswith(" (1)")


def test_faults(mini: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attack plays and ends, on a server that goes on; what the probes see is counted."""
    monkeypatch.syspath_prepend(str(FOLDER))
    from fault_attacks import _PARSING, ATTACKS, documents, filled, post

    small = {"count": 2, "seconds": 0.5, "size": 20, "requests": 5}
    settings = ServeSettings(body_timeout_s=1, header_timeout_s=1, max_body_bytes=1 << 20)
    with running(mini, settings) as server:
        probes = subprocess.Popen(
            [sys.executable, str(FOLDER / "probes.py"), str(server.port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        found = {}
        for attack in ATTACKS:
            play = attack.play
            assert isinstance(play, partial)
            if play.func is not post:
                chosen = {name: small.get(name, value) for name, value in play.keywords.items()}
                found[attack.name] = play.func(server.port, **chosen)
        found["bodies"] = post(server.port, bodies=lambda: [documents("[SEP]" * 9, "b"), b"[]"])
        assert server.post().status_code == 200
        seen = json.loads(probes.communicate("")[0])
    assert found["terabytes declared"] == found["four times the limit"] == {"413": 2}
    assert (found["tiny chunks"], found["unread log"]) == ({"200": 2}, {"404": 2})
    assert found["bodies"] == {"200": 1, "400": 1}
    assert set(seen["livez"]["statuses"]) | set(seen["good"]["statuses"]) == {"200"}
    assert all(0 < len(body) <= 16 << 20 for make in _PARSING.values() for body in make())
    assert filled(b"[", b"1,", b"1]").endswith(b"1,1]")
