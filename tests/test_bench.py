"""`blockrank bench`: the grid, the arithmetic, peers, the record, and one sentence for every mistake."""

from __future__ import annotations

import itertools
import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU, TOLERANCE, failed, random_layout
from test_model import saved
from typer.testing import CliRunner

import blockrank.model
from blockrank import InputError, RankSpec, __version__
from blockrank.bench import (
    BenchResult,
    BenchSettings,
    Ceiling,
    Row,
    Shape,
    Timing,
    grid,
    random_request,
    read_schedule,
    read_shapes,
    timing,
    whole_numbers,
)
from blockrank.bench import run as running
from blockrank.bench.flops import Arithmetic, attention_pairs, useful_flops
from blockrank.bench.record import checkout
from blockrank.bench.result import slope
from blockrank.bench.subject import arithmetic, find_subject, plain_model, position_table, rank_model, skeleton
from blockrank.bench.timing import gemm_ceiling, time_call
from blockrank.cli import app
from blockrank.cli.bench import result_text
from blockrank.layout import pack
from blockrank.model import RankModel
from blockrank.scorers import AttentionScorer, Prompts, Scorer

SMALL = ("--documents", "2,4", "--length", "8", "--repeats", "2", "--device", "cpu")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


def python(code: str) -> str:
    """A command that runs a line of Python."""
    return shlex.join([sys.executable, "-c", code, "{documents}", "{length}"])


def misused(result: Any) -> str:
    """What is said of wrong usage, without the frame around it."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return " ".join("".join(" " if ord(letter) > 127 else letter for letter in result.stderr).split())


# The grid


def test_the_grid_goes_length_by_length() -> None:
    shapes = grid(whole_numbers("documents", "10, 100,10"), (96, 208))
    assert shapes == (Shape(10, 96), Shape(100, 96), Shape(10, 208), Shape(100, 208))


@pytest.mark.parametrize("text", ["0", "a,b", "-5", "10,", "", "1.5", "10;20", "\N{SUPERSCRIPT TWO}"])
def test_numbers_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"documents must be whole numbers from 1 on, separated by commas, not '"):
        whole_numbers("documents", text)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shapes": ()}, "shapes must hold at least one"),
        ({"repeats": 0}, "repeats must be at least 1, not 0"),
        ({"peer_repeats": 0}, "peer_repeats must be at least 1, not 0"),
        ({"instruction": -1}, "instruction must be at least 0, not -1"),
        ({"ragged": 1.0}, "ragged must lie in"),
        ({"dtype": "int3"}, "dtype must be one of float32, bfloat16, float16, fp8, int8, not 'int3'"),
        ({"layers": "mine"}, "layers must be one of fused, library, not 'mine'"),
        ({"against": ("no-such-program {length}",)}, "neither hf-full nor a command that can be found"),
        ({"against": ("python '",)}, "is no command: No closing quotation"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        BenchSettings(**changes)


def test_shapes_that_are_no_grid() -> None:
    assert read_shapes("100x96, 500x208") == (Shape(100, 96), Shape(500, 208))
    with pytest.raises(InputError, match="length must be at least 1, not 0"):
        read_shapes("100x0")


@pytest.mark.parametrize("text", ["", "100", "100x", "x96", "100x96,", "-1x5", "1.5x2", "100 x 96", "100X96", "1x2x3"])
def test_shapes_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"shapes must be documents x tokens, separated by commas, such as .*, not '"):
        read_shapes(text)


def test_a_schedule() -> None:
    assert read_schedule("6:0.5, 10:.25,14:0.125,15:1") == ((6, 0.5), (10, 0.25), (14, 0.125), (15, 1.0))


@pytest.mark.parametrize(
    "text", ["", "6", "6:", ":0.5", "6:0.5,", "6=0.5", "-1:0.5", "6:-0.5", "6:nan", "a:0.5", "6:5e-1"]
)
def test_schedules_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"prune must be layer:share, separated by commas, such as .*, not '"):
        read_schedule(text)


def test_the_command_line_says_everything() -> None:
    settings = BenchSettings(
        "tiny", shapes=read_shapes("2x8,4x16"), peer_repeats=3, device="cuda:0,cuda:1", dtype="fp8", layers="fused",
        prune=read_schedule("6:0.5,10:.25"), prune_by="lens", seed=1, against=("hf-full", "python 'a b.py'"),
    )  # fmt: skip
    assert settings.command == (
        "blockrank bench tiny --shapes 2x8,4x16 --query 40 --repeats 5 --peer-repeats 3 --device cuda:0,cuda:1 "
        "--dtype fp8 --layers fused --prune 6:0.5,10:0.25 --prune-by lens --seed 1 --against hf-full "
        """--against 'python '"'"'a b.py'"'"''"""
    )
    assert "--documents 4,2 --length 16,8 " in BenchSettings(shapes=grid((4, 2), (16, 8))).command


def test_a_request_of_a_shape() -> None:
    options: dict[str, Any] = {"instruction": 6, "query": 4, "vocabulary": 50}
    even = random_request(Shape(20, 10), **options)
    assert [len(segment.ids) for segment in even.segments] == [6, *[10] * 20, 4]
    ids = np.concatenate([segment.ids for segment in even.segments])
    assert (ids.min() >= 3, ids.max() < 50) == (True, True)
    again = random_request(Shape(20, 10), **options)
    assert np.array_equal(ids, np.concatenate([segment.ids for segment in again.segments]))
    lengths = [len(segment.ids) for segment in random_request(Shape(200, 10), **options, ragged=0.5).documents]
    assert (min(lengths), max(lengths)) == (5, 15)


# The arithmetic


def test_useful_operations_by_hand() -> None:
    layout = random_layout([2, 3, 4, 2], RankSpec.of(layer=2, signal_tokens=1))
    model = Arithmetic(weights_L=(10, 20, 99), width=4, heads=2, kv_heads=1, head_dim=2, layer=2)
    # Causal: the instruction 1 + 2; documents read 2 rows first, 6 + 6 and 8 + 10; the query reads 9 rows, 18 + 3.
    assert attention_pairs(layout) == 3 + 12 + 18 + 21
    linear = 2 * 11 * (10 + 20)
    attention = 2 * (2 + 2) * 54 * 4  # layers, two products, pairs, heads x head_dim
    scoring = 2 * 7 * 4 * 2 + 2 * 1 * 4 * 4 + 2 * 1 * 7 * 4  # keys of documents, a query, their products
    assert useful_flops(layout, model) == linear + attention + scoring == 2588


def test_pairs_where_segments_are_read_both_ways_and_the_query_reads_its_own() -> None:
    spec = RankSpec.of(layer=1, query_reads="own", document_attention="bidirectional", query_attention="bidirectional")
    assert attention_pairs(random_layout([2, 3, 4, 2], spec)) == 4 + (6 + 9) + (8 + 16) + (4 + 4)


def test_weights_are_counted_on_a_skeleton() -> None:
    found = arithmetic(skeleton(find_subject("tiny")))
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128  # q, k, v, o; gate, up, down
    assert found == Arithmetic([layer] * 3, width=64, heads=4, kv_heads=2, head_dim=16, layer=1)
    embedded = skeleton(find_subject("embedded"))
    assert arithmetic(embedded) == Arithmetic([12 * 384 * 384] * 7, 384, 12, 12, 32, layer=6)
    assert (position_table(embedded.module), embedded.module.device.type) == (512, "meta")
    assert arithmetic(skeleton(find_subject("tiny", prune=((0, 0.5),)))) is None


def test_known_shapes() -> None:
    for name, billions, layers in (("mistral-7b", 7.1, 32), ("qwen3-4b", 4.0, 36), ("qwen3-0.6b", 0.6, 28)):
        bare = skeleton(find_subject(name))
        assert sum(weight.numel() for weight in bare.module.parameters()) / 1e9 == pytest.approx(billions, abs=0.05)
        assert bare.module.config.num_hidden_layers == layers
        assert position_table(bare.module) is None


def test_the_slope_of_a_power_law() -> None:
    x = [10, 30, 100, 500]
    assert slope(x, [0.3 * value**1.7 for value in x]) == pytest.approx(1.7)


def test_growth_leaves_out_what_was_not_measured() -> None:
    settings = BenchSettings(shapes=grid((10, 100, 1000), (8, 16)), against=("hf-full",))
    rows = []
    for shape in settings.shapes:
        full = Timing([0.01 * shape.documents**2]) if shape.documents < 1000 else Timing(error="out of memory")
        ours = Timing([2.0 * shape.documents]) if shape.length == 8 else Timing(error="out of memory")
        rows.append(Row(shape, 100, None, ours, {"hf-full": full}))
    result = BenchResult(settings, {}, {}, Ceiling(8, [1.0]), rows)
    first, second = result.growth()
    assert first == {"length": 8, "blockrank": pytest.approx(1.0), "hf-full": pytest.approx(2.0)}
    assert (second["blockrank"], second["hf-full"]) == (None, pytest.approx(2.0))
    assert BenchResult(settings, {}, {}, Ceiling(8, [1.0]), [rows[0], rows[-1]]).growth() == []


def test_a_row() -> None:
    row = Row(Shape(10, 96), 1060, 4_000_000, Timing([4.0, 2.0, 3.0]), {"peer": Timing([6.0])})
    ceiling = Ceiling(100, [1.0, 0.5, 2.0])
    assert ceiling.flops_per_second == pytest.approx(2e9)
    assert Ceiling(100, [1.0], devices=2).flops_per_second == pytest.approx(4e9)
    found = row.to_dict(ceiling)
    assert (found["p50_ms"], found["p90_ms"], found["ms"]) == (3.0, pytest.approx(3.8), [4.0, 2.0, 3.0])
    assert found["tokens_per_second"] == pytest.approx(1060 / 0.003, abs=1e-3)
    assert found["ceiling_share"] == pytest.approx(4e6 / 0.003 / 2e9, abs=1e-4)
    assert (found["peers"]["peer"]["p50_ms"], found["peers"]["peer"]["ratio"]) == (6.0, 2.0)


# The models


def test_model_and_peer_share_their_weights() -> None:
    subject = find_subject("tiny")
    ours, full = rank_model(subject, [CPU], BenchSettings()).module, plain_model(subject, CPU, "float32")
    assert (ours.config.num_hidden_layers, full.config.num_hidden_layers) == (2, 3)
    assert full.config._attn_implementation == "sdpa"
    theirs = dict(full.named_parameters())
    for name, weight in ours.named_parameters():
        assert torch.equal(weight, theirs[name])
    one, other = theirs["layers.0.mlp.up_proj.weight"], theirs["layers.1.mlp.up_proj.weight"]
    assert not torch.equal(one, other)
    assert other.std().item() == pytest.approx(0.02, rel=0.05)


def test_the_peer_of_the_embedded_model_is_plain() -> None:
    module = plain_model(find_subject("embedded"), CPU, "bfloat16")
    assert (module.config._attn_implementation, module.dtype) == ("sdpa", torch.bfloat16)
    states = module(input_ids=torch.full((1, 5), 9), use_cache=False).last_hidden_state
    assert states.isfinite().all()


def test_a_schedule_changes_the_spec_of_the_model() -> None:
    subject = find_subject("embedded", prune=((4, 0.5),), prune_by="lens")
    model = rank_model(subject, [CPU], BenchSettings())
    assert (model.spec.exits.prune, model.spec.exits.prune_by) == (((4, 0.5),), "lens")
    request = random_request(Shape(6, 8), instruction=0, query=4, vocabulary=500)
    with torch.inference_mode():
        order = running.rank(model, AttentionScorer(), Prompts((request,)))
        capture = model.read(pack([request], model.spec))
    assert sorted(order) == list(range(6))
    assert capture.alive_C is not None
    assert set(order[:3]) == set(capture.alive_C.tolist())


def test_every_further_device_gets_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two copies on the processor stand for two devices."""
    monkeypatch.setattr("blockrank.model.rank_model._LEAST_SHARED_TOKENS", 1)
    subject, settings = find_subject("tiny", query_reads="own"), BenchSettings(backend="reference")
    one, two = (rank_model(subject, devices, settings) for devices in ([CPU], [CPU, CPU]))
    (replica,) = two.replicas
    theirs = dict(replica.module.named_parameters())
    assert replica.decoder is not None
    assert all(torch.equal(weight, theirs[name]) for name, weight in two.module.named_parameters())
    request = random_request(Shape(20, 16), instruction=6, query=4, vocabulary=500, ragged=0.5)
    with torch.inference_mode():
        assert len(two._decoders(pack([request], two.spec))) == 2
        found, expected = (AttentionScorer().read(model, pack([request], model.spec)).scores_C for model in (two, one))
    torch.testing.assert_close(found, expected, atol=TOLERANCE["float32"], rtol=0)


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ("library", "with the library's layers a request of tiny runs on one device"),
        (None, "with backend sdpa a request"),
    ],
)
def test_devices_that_would_stay_idle(layers: str | None, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        rank_model(find_subject("tiny"), [CPU, CPU], BenchSettings(layers=layers))


@pytest.mark.usefixtures("small_ceiling")
def test_several_devices_in_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockrank.model, "resolve_devices", lambda _: [CPU, CPU])
    monkeypatch.setattr("blockrank.bench.subject._check_sharing", lambda _: None)
    found = running.bench(BenchSettings("tiny", shapes=grid((2,), (8,)), repeats=1, against=("hf-full",)))
    assert (found.environment["hardware"]["device"], found.ceiling.devices) == ("cpu,cpu", 2)
    assert "the product of two 64 x 64 matrices on each of 2 devices\n" in result_text(found)
    assert found.rows[0].peers["hf-full"].p50 is not None


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
def test_two_devices(dtype: str) -> None:
    settings = BenchSettings("qwen3-0.6b", grid((100,), (96,)), repeats=1, device="cuda:0,cuda:1", dtype=dtype)
    row = json.loads(json.dumps(running.bench(settings).to_dict()))["rows"][0]
    assert (row["error"], row["p50_ms"] > 0, row["peak_memory_gib"] > 0.5) == (None, True, True)


def test_other_errors_are_no_lack_of_memory() -> None:
    def broken() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        time_call(broken, 1, [CPU])


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1024), (torch.bfloat16, 256)])
def test_the_ceiling_is_measured(dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, most = timing._SMALL_CEILING
    monkeypatch.setattr(timing, "_SMALL_CEILING", (size, most))  # some processors take seconds for one in bfloat16
    ceiling = gemm_ceiling([CPU], dtype)
    assert ceiling.size == size
    assert 3 <= len(ceiling.ms) <= 20
    assert ceiling.flops_per_second > 1e6


@pytest.mark.usefixtures("small_ceiling")
@pytest.mark.parametrize(("product_s", "products"), [(0.001, 20), (0.25, 7), (0.6, 3), (30.0, 3)])
def test_slow_products_make_a_ceiling_of_few(product_s: float, products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty, or as many as two seconds hold, the one that warms up among them, but three. The clock is a double."""
    ticks = itertools.count()  # one before each product and one after it
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: product_s * next(ticks)))
    monkeypatch.setattr(timing, "_SMALL_CEILING", (64, 20))
    ceiling = gemm_ceiling([CPU], torch.float32)
    assert ceiling.ms == pytest.approx([1000 * product_s] * products)


# The command


def test_the_table() -> None:
    done = run("tiny", *SMALL, "--against", "hf-full", "--against", python("print(1)"))
    assert done.exit_code == 0, done.output
    heading, ceiling, _, header, *rest = done.stdout.splitlines()
    assert heading.startswith("tiny (random weights, scoring layer 1 of 3), float32, fused layers, backend sdpa, ")
    assert ceiling.endswith("TFLOP/s, the product of two 1024 x 1024 matrices")
    assert header.split()[:6] == ["documents", "length", "tokens", "p50", "ms", "p90"]
    assert header.endswith("of ceiling  hf-full ms  ratio  command 1 ms  ratio")
    assert [row.split()[:3] for row in rest[:2]] == [["2", "8", "116"], ["4", "8", "132"]]
    assert rest[3].split() == ["time", "~", "documents^x,", "x", "at", "length", "blockrank", "hf-full", "command", "1"]
    assert rest[-1].startswith(f"command 1: {sys.executable}")
    assert done.stderr == ""


@pytest.mark.usefixtures("small_ceiling")
def test_json_and_the_record(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    done = run("tiny", *SMALL, "--against", "hf-full", "--ragged", "0.5", "--json", "--output", str(output))
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == json.loads(output.read_text(encoding="utf-8"))
    assert found.keys() == {
        "date", "command", "commit", "changed_files", "hardware", "versions", "model", "settings", "ceiling", "rows",
        "growth",
    }  # fmt: skip
    assert found["command"] == (
        "blockrank bench tiny --documents 2,4 --length 8 --query 40 --ragged 0.5 --repeats 2 --device cpu "
        "--against hf-full"
    )
    assert found["versions"].keys() >= {"blockrank", "torch", "transformers"}
    assert found["versions"]["blockrank"] == __version__
    assert found["hardware"].keys() == {"platform", "processor", "cores", "threads", "device", "gpu"}
    assert (found["model"]["dtype"], found["model"]["scoring_layer"], found["model"]["all_layers"]) == ("float32", 1, 3)
    assert [(row["documents"], row["length"]) for row in found["rows"]] == [(2, 8), (4, 8)]
    for row in found["rows"]:
        assert row.keys() == {
            "documents", "length", "tokens", "p50_ms", "p90_ms", "peak_memory_gib", "ms", "error", "tokens_per_second",
            "ceiling_share", "useful_flops", "peers",
        }  # fmt: skip
        assert row["p50_ms"] == pytest.approx(np.median(row["ms"]), abs=1e-3)
        assert row["peers"]["hf-full"]["ratio"] == pytest.approx(
            row["peers"]["hf-full"]["p50_ms"] / row["p50_ms"], rel=0.01
        )
    assert found["growth"][0].keys() == {"length", "blockrank", "hf-full"}


@pytest.mark.usefixtures("small_ceiling")
def test_a_schedule_is_said_and_its_operations_are_not_counted(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    arguments = ("tiny", "--shapes", "4x8,2x16", "--repeats", "2", "--peer-repeats", "1", "--device", "cpu")
    done = run(*arguments, "--against", "hf-full", "--prune", "0:0.5", "--prune-by", "lens", "--output", str(output))
    assert done.exit_code == 0, done.output
    assert ", backend sdpa, prune 0:0.5 by lens, " in done.stdout.splitlines()[0]
    assert "documents^x" not in done.stdout
    found = json.loads(output.read_text(encoding="utf-8"))
    assert "--shapes 4x8,2x16" in found["command"]
    assert "--prune 0:0.5 --prune-by lens" in found["command"]
    assert (found["model"]["prune"], found["model"]["prune_by"]) == ("0:0.5", "lens")
    assert found["settings"]["prune"] == [[0, 0.5]]
    for row in found["rows"]:
        assert (row["useful_flops"], row["ceiling_share"]) == (None, None)
        assert (len(row["ms"]), len(row["peers"]["hf-full"]["ms"])) == (2, 1)


@pytest.mark.usefixtures("small_ceiling")
def test_the_embedded_model_has_no_instruction() -> None:
    done = run(*SMALL, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["model"]["name"], found["model"]["random_weights"]) == ("embedded", False)
    assert [row["tokens"] for row in found["rows"]] == [2 * 8 + 40, 4 * 8 + 40]


@pytest.mark.usefixtures("small_ceiling")
def test_another_scorer_is_measured_and_recorded(tmp_path: Path) -> None:
    folder = str(saved(tmp_path, spec=RankSpec.of(layer=1, template="blockrank", query_offset=None)))
    done = run(folder, *SMALL, "--scorer", "decode:beams=2", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["model"]["scorer"] == {"name": "decode", "beams": 2, "form": "first"}
    assert (found["settings"]["scorer"], "--scorer decode:beams=2" in found["command"]) == ("decode:beams=2", True)
    assert all(row["p50_ms"] > 0 for row in found["rows"])
    assert [row["useful_flops"] for row in found["rows"]] == [None, None], "they are counted for attention alone"
    assert "needs a head and a tokenizer, which tiny lacks" in failed(run("tiny", *SMALL, "--scorer", "decode"))
    assert "scorer 'none' is unknown" in misused(run("tiny", "--scorer", "none"))


@pytest.mark.usefixtures("small_ceiling")
def test_memory_that_does_not_suffice_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = running.rank

    def rank(model: RankModel, scorer: Scorer, prompts: Prompts) -> list[int]:
        if len(prompts.documents) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return measured(model, scorer, prompts)

    monkeypatch.setattr(running, "rank", rank)
    arguments = ("tiny", "--documents", "2,3,4", "--length", "8", "--repeats", "1", "--device", "cpu")
    found = json.loads(run(*arguments, "--json", "--against", "hf-full").stdout)
    assert [row["error"] for row in found["rows"]] == [None, "out of memory", None]
    assert (found["rows"][1]["p50_ms"], found["rows"][1]["peers"]["hf-full"]["ratio"]) == (None, None)
    assert found["growth"][0]["blockrank"] is not None
    done = run(*arguments)
    assert (done.exit_code, done.stdout.count("out of memory")) == (0, 1)


@pytest.mark.usefixtures("small_ceiling")
def test_a_command_is_timed_or_tells_its_time() -> None:
    told = python("import json, sys; print('x'); print(json.dumps({'ms': 10 * int(sys.argv[1]) + int(sys.argv[2])}))")
    found = json.loads(run("tiny", *SMALL, "--json", "--against", told, "--against", python("print(5)")).stdout)
    assert [row["peers"][told]["ms"] for row in found["rows"]] == [[28.0, 28.0], [48.0, 48.0]]
    walls = found["rows"][0]["peers"][python("print(5)")]["ms"]
    assert len(walls) == 2
    assert min(walls) > 1


# Mistakes


def test_a_failing_command_is_one_sentence_and_leaves_no_record(tmp_path: Path) -> None:
    broken = python("import sys; sys.exit('no such model')")
    sentence = failed(run("tiny", *SMALL, "--against", broken, "--output", str(tmp_path / "bench.json")))
    assert "2 documents of 8 tokens: it failed with exit code 1: no such model" in sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("told", ["'fast'", "-1", "True", "float('inf')"])
def test_a_command_that_tells_no_time(told: str) -> None:
    sentence = failed(run("tiny", *SMALL, "--against", python(f"import json; print(json.dumps(dict(ms={told})))")))
    assert 'its "ms" must be a positive number, not ' in sentence


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--documents", "0"), "documents must be whole numbers from 1 on, separated by commas, not '0'."),
        (("--documents", "a,b"), "not 'a,b'."),
        (("--length", "-96"), "length must be whole numbers from 1 on, separated by commas, not '-96'."),
        (("--against", "sentence-bert"), "neither hf-full nor a command that can be found."),
        (("--dtype", "int3"), "dtype must be one of float32, bfloat16, float16, fp8, int8, not 'int3'."),
        (("--no-such-option",), "No such option: --no-such-option"),
        (("--documents", ""), "documents must be whole numbers from 1 on, separated by commas, not ''."),
        (("--shapes", "100"), "shapes must be documents x tokens, separated by commas,"),
        (("--shapes", "2x8", "--length", "8"), "shapes stands in place of documents and length"),
        (("--prune", "half"), "prune must be layer:share, separated by commas, such as 6:0.5,10:0.25, not 'half'."),
        (("--prune", "6:0.5"), "RankSpec.prune names layers [6]; they must rise and stay below layer 1."),
        (("--prune", "0:1.5"), "RankSpec.prune keeps shares [1.5]; they must fall and lie in (0, 1)."),
        (("--prune", "0:0.5", "--prune-by", "luck"), "RankSpec.prune_by must be one of ('layer', 'lens'), not 'luck'."),
        (
            ("--prune-by", "lens"),
            "RankSpec.prune_by 'lens' needs a schedule, and RankSpec.prune has none: give prune too.",
        ),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], sentence: str) -> None:
    assert sentence in misused(run("tiny", *arguments))


@pytest.mark.usefixtures("small_ceiling")
def test_what_cannot_be_measured(tmp_path: Path) -> None:
    assert "'no/such/model/here' does not exist" in failed(run("no/such/model/here", *SMALL))
    long = failed(run("embedded", "--documents", "10", "--length", "96", "--against", "hf-full"))
    assert "hf-full: 10 documents of 96 tokens make a prompt of 1000 tokens and embedded has 512 positions" in long
    assert "the prompt reaches position 599 and the model has 512" in failed(run("embedded", "--length", "600"))
    assert "cannot be written" in failed(run("tiny", *SMALL, "--output", str(tmp_path / "missing" / "bench.json")))
    assert "dtype 'fp8' needs a CUDA device" in failed(run("tiny", *SMALL, "--dtype", "fp8"))
    assert "it does not go with layers='library'" in failed(
        run("tiny", *SMALL, "--dtype", "int8", "--layers", "library")
    )
    unfused = failed(run("tiny", *SMALL, "--layers", "library", "--prune", "0:0.5"))
    assert "the spec prunes documents, which needs fused layers: it was loaded with the library's own" in unfused


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("cpu,cpu", "device 'cpu,cpu' must name each device once."),
        ("cpu, cpu", "device 'cpu, cpu' must name each device once."),
        ("cpu,", "device '' cannot be used: "),
        ("cpu,gpu7", "device 'gpu7' cannot be used: "),
    ],
)
def test_lists_of_devices_that_cannot_be_used(device: str, sentence: str) -> None:
    assert sentence in failed(run("tiny", *SMALL[:-2], "--device", device))


def test_a_folder_outside_any_checkout_has_no_commit(tmp_path: Path) -> None:
    assert checkout(tmp_path) == {"commit": None, "changed_files": None}
