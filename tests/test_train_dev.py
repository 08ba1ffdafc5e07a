"""A run judged on a dev set while it lasts; reporting; optimisers of other packages."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from test_train import COLOURS, base_model, config_file, request_lines

from blockrank import InputError, MissingExtraError, Ranker
from blockrank.train.config import DevConfig, TrainConfig
from blockrank.train.dev import open_dev_set
from blockrank.train.run import build_trainer, train_from_config


@pytest.fixture
def work(tmp_path: Path) -> Path:
    base_model(tmp_path / "base")
    request_lines(tmp_path)
    return tmp_path


def dev_file(work: Path, table: str = "every = 2", loss: str = "lm = 0.0", **trainer: Any) -> Path:
    path = config_file(work, loss, **trainer)
    requests = json.dumps(str(work / "requests.jsonl"))
    path.write_text(f"{path.read_text()}\n[dev]\nrequests = {requests}\n{table}\n", encoding="utf-8")
    return path


def test_the_best_weights_are_what_is_kept(work: Path) -> None:
    """A learning rate that ruins the model: its first evaluation is its best."""
    path = dev_file(work, "every = 1\npatience = 3", max_steps=40, learning_rate=0.3)
    out = train_from_config(path)
    state = json.loads(next(out.glob("checkpoint-*/trainer_state.json")).read_text())
    scores = [entry["eval_nDCG@10"] for entry in state["log_history"] if "eval_nDCG@10" in entry]
    best = load_file(out / f"checkpoint-{state['best_global_step']}" / "model.safetensors")
    found = load_file(out / "model.safetensors")
    assert all(bool((found[name] == weight).all()) for name, weight in best.items())
    dev = open_dev_set(DevConfig(str(work / "requests.jsonl")))
    ranker = Ranker.from_pretrained(out, device="cpu")
    assert dev.score(dev.run(ranker)) == pytest.approx(max(scores), abs=1e-6)


def test_a_run_without_progress_ends(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="blockrank")
    train_from_config(dev_file(work, "every = 1\npatience = 3", max_steps=30, learning_rate=0.0))
    evaluations = [line for line in caplog.messages if "eval_nDCG@10" in line]
    assert len(evaluations) == 4  # the first is the best; three more are not better
    assert "step 4: eval_nDCG@10" in evaluations[-1]


def test_the_last_step_is_evaluated_and_saved_too(work: Path) -> None:
    saves = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 3}
    train_from_config(dev_file(work, "every = 3", max_steps=4, **saves))
    state = json.loads((work / "out" / "checkpoint-4" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "eval_nDCG@10" in entry] == [3, 4]


def test_evaluation_equals_the_saved_checkpoints_ranking(work: Path) -> None:
    """Also where attention runs in another type and gradients are recomputed: the model is left as it was."""
    trainer = build_trainer(TrainConfig.load(dev_file(work, gradient_checkpointing=True)))
    trainer.accelerator.prepare_model(trainer.model)
    value = trainer.evaluate()["eval_nDCG@10"]
    assert trainer.model.training
    dev = open_dev_set(DevConfig(str(work / "requests.jsonl")))
    assert dev.score(dev.run(Ranker.from_pretrained(work / "base", device="cpu"))) == pytest.approx(value, abs=1e-6)


def test_a_folder_is_a_dev_set(tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    with gzip.open(folder / "corpus.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps({"_id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(COLOURS))
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{i}", "text": f"is it {text}"}) + "\n" for i, text in enumerate(COLOURS))
    )
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t2\nq3\td9\t1\n")
    (folder / "run.trec").write_text("q0 Q0 d0 1 3 x\nq0 Q0 d1 2 2 x\nq0 Q0 d2 3 1 x\nq1 Q0 d2 1 1 x\n")
    dev = open_dev_set(DevConfig(str(folder), run="run.trec", candidates=2))
    assert [(item.query, [d.doc_id for d in item.candidates]) for item in dev] == [
        ("is it red", ["d0", "d1"]), ("is it blue", ["d2"]),
    ]  # fmt: skip
    assert dev.score({"q0": {"d0": 2.0, "d1": 1.0}, "q1": {"d2": 1.0}}) == pytest.approx(1 / 3)  # q3 counts 0
    by_words = open_dev_set(DevConfig(str(folder), candidates=2))
    assert {item.query_id: item.candidates[0].doc_id for item in by_words} == {"q0": "d0", "q1": "d1", "q3": "d3"}
    with pytest.raises(InputError, match="its splits are dev"):
        open_dev_set(DevConfig(str(folder), split="train"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"query": "q", "documents": ["a"]}', "a dev request needs positives"),
        ('{"query": "q", "documents": ["a"], "positives": [1]}', "not a dev request: positives lists 1"),
        ('{"query": "q", "query_id": "0", "documents": ["a"], "positives": [0]}', "the query_id '0' was there before"),
    ],
)
def test_mistakes_in_a_dev_set_name_the_line(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text('{"query": "q", "documents": ["a"], "positives": [0]}\n' + line, encoding="utf-8")
    with pytest.raises(InputError, match=rf"dev\.jsonl:2: {words}"):
        open_dev_set(DevConfig(str(path)))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("every = 0", r"dev\.every must be at least 1"),
        ('measure = "nDGC@10"', "measure 'nDGC@10' is unknown"),
        ("patience = 1.5", r"\[dev\]: patience must be an integer"),
    ],
)
def test_mistakes_in_the_table(work: Path, table: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        build_trainer(TrainConfig.load(dev_file(work, table)))


def test_reports_are_written_where_asked_for_alone(work: Path) -> None:
    out = train_from_config(config_file(work, "lm = 0.0", max_steps=1))
    assert not list(out.rglob("events.out.tfevents*"))
    pytest.importorskip("tensorboard")
    logs = {"report_to": "tensorboard", "max_steps": 1}
    train_from_config(config_file(work, "lm = 0.0", **logs))
    assert len(list(work.rglob("events.out.tfevents*"))) == 1


@pytest.mark.parametrize(
    ("trainer", "package"),
    [
        ({"report_to": "tensorboard"}, "tensorboard"),
        ({"report_to": ["wandb"]}, "wandb"),
        ({"optim": "adamw_8bit"}, "bitsandbytes"),
        ({"optim": "paged_adamw_32bit"}, "bitsandbytes"),
    ],
)
def test_what_is_missing_is_named(
    work: Path, monkeypatch: pytest.MonkeyPatch, trainer: dict[str, Any], package: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest)
    )
    with pytest.raises(MissingExtraError, match=rf"needs {package}: pip install 'blockrank\[{package}\]'"):
        build_trainer(TrainConfig.load(config_file(work, **trainer)))
