"""Training of scorers beside attention: their own scores are learnt, and the result is read as it was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU
from labelled import saved_model
from test_scorers_scalar import SCALAR, save
from transformers import AutoModelForCausalLM

from blockrank import InputError, Ranker, RankRequest, RankSpec
from blockrank.layout import pack
from blockrank.model import load_model
from blockrank.scorers import SCORERS, resolve_scorer
from blockrank.train import losses
from blockrank.train.config import LossConfig
from blockrank.train.objective import trained_scorer, training_loss
from blockrank.train.run import build_trainer, train_from_config

COLOURS = ["ash", "blue", "cyan", "red"]
LABELS, POINTWISE = "first_token", "pointwise:yes=y,no=n"


def base_model(folder: Path, scorer: str) -> Path:
    """A checkpoint that says nothing of how it is read."""
    if scorer != SCALAR:
        return saved_model(folder)
    folder.mkdir()
    return save(folder)


def config_file(folder: Path, scorer: str, loss: str = "", **trainer: Any) -> Path:
    generator = np.random.default_rng(0)
    rows = []
    for index in range(24):
        order = [COLOURS[i] for i in generator.permutation(4)]
        wanted = COLOURS[index % 4]
        rows.append({"query": wanted, "documents": order, "positives": [order.index(wanted)]})
    (folder / "requests.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    values = {
        "max_steps": 16, "per_device_train_batch_size": 4, "learning_rate": 3e-3, "warmup_steps": 0, "logging_steps": 1,
        "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", **trainer,
    }  # fmt: skip
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path = folder / "run.toml"
    path.write_text(
        f"output = {json.dumps(str(folder / 'out'))}\n"
        f"[model]\nbase = {json.dumps(str(folder / 'base'))}\nscorer = {json.dumps(scorer)}\n"
        f"[data]\nsets = [{json.dumps(str(folder / 'requests.jsonl'))}]\ncandidates = 4\n"
        f"[loss]\ncontrastive_weight = 1.0\ntemperature = 1.0\n{loss}\n[trainer]\n" + "\n".join(lines),
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize(
    ("scorer", "loss"),
    [
        (LABELS, 'contrastive = "cross_entropy"\nlm = 0.1'),
        ("setwise", 'contrastive = "cross_entropy"\nlm = 0.0'),
        (POINTWISE, 'contrastive = "bce"'),
        (POINTWISE, 'contrastive = "cross_entropy"'),
        (SCALAR, 'contrastive = "bce"'),
    ],
    ids=["first_token", "setwise", "pointwise, bce", "pointwise, lists", "scalar"],
)
def test_a_run_lowers_the_loss_and_its_result_is_read_as_it_was_trained(tmp_path: Path, scorer: str, loss: str) -> None:
    base_model(tmp_path / "base", scorer)
    trainer = build_trainer(config_file_of(tmp_path, scorer, loss))
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    found = [entry["loss_contrastive"] for entry in trainer.state.log_history if "loss_contrastive" in entry]
    assert sum(found[-4:]) < 0.95 * 4 * found[0]
    trained = Ranker.from_pretrained(tmp_path / "out", device="cpu")
    assert trained.scorer == SCORERS.make(scorer)
    before = Ranker.from_pretrained(tmp_path / "base", scorer=scorer, device="cpu")
    assert trained.spec == before.spec.changed(scorer=scorer, template=trained.spec.template)
    trainer.rank_model.module.eval()
    in_memory = Ranker(trainer.rank_model)
    own, expected, untrained = (
        {entry.text: entry.score for entry in ranker.rank("red", COLOURS)} for ranker in (trained, in_memory, before)
    )
    assert own == pytest.approx(expected, abs=1e-4)
    assert own != pytest.approx(untrained, abs=1e-3)


@pytest.mark.parametrize("scorer", [LABELS, POINTWISE])
def test_the_loss_is_that_of_the_scores_that_a_ranking_shows(tmp_path: Path, scorer: str) -> None:
    """Cross-entropy of the scores of a request, computed from its ranking."""
    base_model(tmp_path / "base", scorer)
    trainer = build_trainer(config_file_of(tmp_path, scorer, "lm = 0.0\n"))
    model, [forward] = trainer.rank_model, [trainer.train_dataset[0]]
    batch = trainer.data_collator([forward])["batch"]
    config = LossConfig(contrastive="cross_entropy", temperature=1.0, contrastive_weight=1.0, lm=0.0)
    with torch.no_grad():
        parts = training_loss(model, batch, config)
        own = trained_scorer(model.spec)
        layout = batch.layout
        logits_C = own.logits(model, model.forward(layout, own.wanted(model, layout)))
        scored = own.read(model, layout)
    expected = logits_C.exp() if own.kind == "share" else logits_C.sigmoid()
    torch.testing.assert_close(scored.scores_C, expected)
    log_B = torch.stack([part.log_softmax(0) for part in logits_C.split([4] * layout.requests)])
    wanted = -log_B[batch.positives_BM].mean()
    torch.testing.assert_close(parts["contrastive"], wanted, atol=1e-5, rtol=0)


def config_file_of(folder: Path, scorer: str, loss: str) -> Any:
    from blockrank.train.config import TrainConfig

    return TrainConfig.load(config_file(folder, scorer, loss))


def test_gradients_are_those_of_the_librarys_own_logits(tmp_path: Path) -> None:
    """Of one pointwise prompt: the log-odds of yes against no, computed by the plain model."""
    folder = base_model(tmp_path / "base", POINTWISE)
    scorer, spec = resolve_scorer(folder, POINTWISE)
    model = load_model(folder, spec=spec, device=CPU, needs=scorer.needs(spec), layers="library")
    assert model.tokenizer is not None
    layout = pack([model.tokenizer.tokenise_request(RankRequest("q", ["one"]), spec)], spec)
    own: Any = scorer
    own.logits(model, model.forward(layout, own.wanted(model, layout))).sum().backward()
    found = model.module.lm_head.weight.grad.clone()
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    logits_V = plain(input_ids=torch.from_numpy(layout.ids_T)[None]).logits[0, -1]
    no, yes = own._answers(model)
    (logits_V[yes] - logits_V[no]).backward()
    torch.testing.assert_close(found, plain.lm_head.weight.grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("scorer", "loss", "sentence"),
    [
        ("listwise", "", r"\[model\]: the scorer 'listwise' cannot be trained"),
        ("embedding", "", r"the scorer 'embedding' cannot be trained"),
        (LABELS, 'contrastive = "bce"', r"loss.contrastive 'bce' is for scorers that score each document by itself"),
        (LABELS, "orthogonality = 0.1", r"loss.orthogonality is of signal tokens, and the scorer 'first_token'"),
        ("firts_token", "", r"scorer 'firts_token' is unknown"),
    ],
)
def test_what_cannot_be_trained_is_told_before_it_is_loaded(
    tmp_path: Path, scorer: str, loss: str, sentence: str
) -> None:
    base_model(tmp_path / "base", LABELS)
    with pytest.raises(InputError, match=sentence):
        train_from_config(config_file(tmp_path, scorer, loss))


def test_binary_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0, -torch.inf], [1.0, -1.0, 3.0]])
    positives = torch.tensor([[True, False, False], [False, False, True]])
    one = np.mean([np.log(2), np.log1p(np.exp(2.0))])
    two = np.mean([np.log1p(np.exp(1.0)), np.log1p(np.exp(-1.0)), np.log1p(np.exp(-3.0))])
    found = losses.binary_cross_entropy(logits, positives)
    assert float(found) == pytest.approx((one + two) / 2, abs=1e-6)


def test_orthogonality_by_hand() -> None:
    q_GNH = torch.tensor([[[2.0, 0.0]], [[0.0, 3.0]], [[1.0, 1.0]], [[5.0, 5.0]]])
    requests = np.array([0, 0, 1, 1])
    assert float(losses.orthogonality(q_GNH, requests)) == pytest.approx((0.0 + 2.0) / 2, abs=1e-6)


def test_orthogonality_is_part_of_the_loss(tmp_path: Path) -> None:
    base_model(tmp_path / "base", LABELS)
    RankSpec.of(layer=1, template="query-free", query_offset=None, signal_tokens=3).save(tmp_path / "base")
    config = config_file_of(tmp_path, "attention", "orthogonality = 0.5\nlm = 0.0\n")
    trainer = build_trainer(config)
    batch = trainer.data_collator([trainer.train_dataset[0]])["batch"]
    parts = training_loss(trainer.rank_model, batch, config.loss)
    assert float(parts["orthogonality"].detach()) > 0
    whole = parts["contrastive"] + 0.5 * parts["orthogonality"]
    torch.testing.assert_close(parts["loss"], whole)
