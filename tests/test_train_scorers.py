"""Training of scorers beside attention: their own scores are learnt, and the result is read as it was trained."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelled import saved_model
from safetensors.torch import load_file
from test_scorers_scalar import SCALAR, save
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel

from blockrank import InputError, Ranker, RankRequest, RankSpec
from blockrank.model import RankModel, load_tokenizer
from blockrank.scorers import SCORERS, Prompts, PromptWriter, resolve_scorer
from blockrank.spec import HeadSet
from blockrank.train import losses
from blockrank.train.batch import collate
from blockrank.train.config import LossConfig, TrainConfig
from blockrank.train.objective import trained_scorer, training_loss
from blockrank.train.plan import plan_training
from blockrank.train.run import build_trainer, train_from_config
from blockrank.train.sets import Example, Framer
from blockrank.train.teacher import TeacherEnsemble

COLOURS = ["ash", "blue", "cyan", "red"]
LABELS, POINTWISE = "first_token", "pointwise:yes=y,no=n"
EMBEDDING = "embedding:top=4,end=<|im_end|>"


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
    temperature = 0.03 if scorer == EMBEDDING else 1.0
    path = folder / "run.toml"
    path.write_text(
        f"output = {json.dumps(str(folder / 'out'))}\n"
        f"[model]\nbase = {json.dumps(str(folder / 'base'))}\nscorer = {json.dumps(scorer)}\n"
        f"[data]\nsets = [{json.dumps(str(folder / 'requests.jsonl'))}]\ncandidates = 4\n"
        f"[loss]\ncontrastive_weight = 1.0\ntemperature = {temperature}\n{loss}\n[trainer]\n" + "\n".join(lines),
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize(
    ("scorer", "loss"),
    [
        (LABELS, 'contrastive = "cross_entropy"\nlm = 0.1'),
        ("setwise", 'contrastive = "cross_entropy"\nlm = 0.0'),
        (POINTWISE, 'contrastive = "bce"'),
        (f"{POINTWISE},packed=false", 'contrastive = "bce"'),
        (POINTWISE, 'contrastive = "cross_entropy"'),
        (SCALAR, 'contrastive = "bce"'),
        (EMBEDDING, 'contrastive = "cross_entropy"\nlm = 0.0'),
    ],
    ids=["first_token", "setwise", "pointwise, bce", "apart", "pointwise, lists", "scalar", "embedding"],
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


def config_file_of(folder: Path, scorer: str, loss: str) -> TrainConfig:
    return TrainConfig.load(config_file(folder, scorer, loss))


def parts_ids(prompts: Prompts) -> list[Tensor]:
    """The tokens of each prompt that a document stands at the end of, or that ends in the query."""
    found = []
    for part in prompts.parts:
        first, *documents, last = (torch.from_numpy(segment.ids) for segment in part.segments)
        alone = [] if len(last) else [torch.cat([first, document]) for document in documents]
        found += alone or [torch.cat([first, *documents, last])]
    return found


def plain_logits(plain: Any, scorer: Any, model: RankModel, prompts: Prompts) -> Tensor:
    """(C,) what the scorer's documentation says, by the plain library, a prompt at a time."""
    outputs = [plain(input_ids=ids[None], output_hidden_states=True) for ids in parts_ids(prompts)]
    hidden_PD = torch.stack([output.hidden_states[-1][0, -1] for output in outputs])
    if scorer.name == "embedding":
        query_D, *documents = F.normalize(hidden_PD, dim=1)
        return torch.stack(documents) @ query_D
    if scorer.name == "scalar":
        return plain.score(hidden_PD)[:, 0]  # type: ignore[no-any-return]
    assert model.tokenizer is not None
    last_PV = torch.stack([output.logits[0, -1] for output in outputs])
    if scorer.name == "pointwise":
        yes, no = (int(model.tokenizer.encode(text)[0]) for text in (scorer.yes, scorer.no))
        return last_PV[:, yes] - last_PV[:, no]
    labels = [int(model.tokenizer.encode(label)[0]) for label in "ABCD"]
    return last_PV[0, labels].log_softmax(0)


@pytest.mark.parametrize("scorer", [LABELS, POINTWISE, f"{POINTWISE},packed=false", SCALAR, EMBEDDING])
def test_gradients_are_those_of_the_plain_library(tmp_path: Path, scorer: str) -> None:
    """Of every weight, through the step that trains: a request of four documents and one of two."""
    base_model(tmp_path / "base", scorer)
    trainer = build_trainer(config_file_of(tmp_path, scorer, "lm = 0.0\n"))
    model, own = trainer.rank_model, trainer.scorer
    assert model.tokenizer is not None
    writer = PromptWriter(model.tokenizer, model.spec)
    prompts = [own.prompts(RankRequest("red", COLOURS[:count]), writer) for count in (4, 2)]
    positives = [np.arange(count) == 1 for count in (4, 2)]
    batch = collate([Example(*pair) for pair in zip(prompts, positives, strict=True)], model.spec)
    config = LossConfig(contrastive="cross_entropy", temperature=0.5, contrastive_weight=1.0, lm=0.0)
    training_loss(model, batch, config)["loss"].backward()
    kind = AutoModel if own.name == "embedding" else type(model.module)
    plain = kind.from_pretrained(tmp_path / "base", attn_implementation="eager", dtype=torch.float32).eval()
    terms = [(plain_logits(plain, own, model, part)[: len(part.indices)] / 0.5).log_softmax(0) for part in prompts]
    (-torch.stack([logs[1] for logs in terms]).mean()).backward()
    expected = {name: weight.grad for name, weight in plain.named_parameters() if weight.grad is not None}
    found = {name: weight.grad for name, weight in model.module.named_parameters() if weight.grad is not None}
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-3
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: name + text)


def test_e2ranks_objective_by_hand(tmp_path: Path) -> None:
    """InfoNCE of the cosines, tau 0.03, and twice RankNet of ten times the cosines."""
    base_model(tmp_path / "base", EMBEDDING)
    trainer = build_trainer(config_file_of(tmp_path, EMBEDDING, "lm = 0.0\n"))
    batch = trainer.data_collator([trainer.train_dataset[0]])["batch"]
    generator = torch.Generator().manual_seed(0)
    order_BM = torch.rand(batch.present_BM.shape, generator=generator)
    config = LossConfig(
        contrastive="cross_entropy", contrastive_weight=1.0, temperature=0.03, lm=0.0,
        distil=2.0, distil_loss="ranknet", distil_temperature=0.1, teachers={"given": 1.0},
    )  # fmt: skip
    taught = replace(batch, teachers={"given": order_BM})
    with torch.no_grad():
        parts = training_loss(trainer.rank_model, taught, config, TeacherEnsemble(config.teachers))
        layout = batch.layout
        capture = trainer.rank_model.forward(layout, trainer.scorer.wanted(trainer.rank_model, layout))
        cosines_BM = trainer.scorer.logits(trainer.rank_model, capture).view(order_BM.shape)
    nce = -(cosines_BM / 0.03).log_softmax(1)[batch.positives_BM].mean()
    pairs = [
        np.mean([
            math.log1p(math.exp(10 * float(cosines[j] - cosines[i])))
            for i, j in permutations(range(4), 2) if order[i] > order[j]
        ])
        for cosines, order in zip(cosines_BM, order_BM, strict=True)
    ]  # fmt: skip
    assert float(parts["loss"]) == pytest.approx(float(nce) + 2 * np.mean(pairs), abs=1e-4)


@pytest.mark.parametrize("scorer", [POINTWISE, EMBEDDING, SCALAR])
def test_merged_adapters_are_read_as_they_were_trained(tmp_path: Path, scorer: str) -> None:
    """Every layer and the head are in the result."""
    base_model(tmp_path / "base", scorer)
    path = config_file(tmp_path, scorer, "lm = 0.0\n", max_steps=4)
    path.write_text(f"{path.read_text()}\n[lora]\nrank = 4\nmerge = false\n")
    beside = Ranker.from_pretrained(train_from_config(path), device="cpu").rank("red", COLOURS)
    if scorer == SCALAR:  # a head with one output is trained whole
        head, own = (load_file(tmp_path / name) for name in ("base/model.safetensors", "out/adapter_model.safetensors"))
        assert float((own["base_model.model.score.weight"] - head["score.weight"]).abs().max()) > 1e-3
    path.write_text(path.read_text().replace("merge = false", "merge = true"))
    merged = Ranker.from_pretrained(train_from_config(path), device="cpu").rank("red", COLOURS)
    assert {entry.text: entry.score for entry in merged} == pytest.approx(
        {entry.text: entry.score for entry in beside}, abs=1e-5
    )


def test_a_plan_counts_all_that_is_trained(tmp_path: Path) -> None:
    for place, scorer in enumerate((POINTWISE, SCALAR)):
        folder = tmp_path / str(place)
        folder.mkdir()
        base_model(folder / "base", scorer)
        config = config_file_of(folder, scorer, "")
        trained = build_trainer(config).rank_model.module
        assert plan_training(config).parameters == sum(weight.numel() for weight in trained.parameters())


def test_a_teacher_that_nobody_trained_for_it(tmp_path: Path) -> None:
    """It needs no blockrank.json either; taught by its own logits, a copy has nothing to learn."""
    base_model(tmp_path / "base", POINTWISE)
    teacher = f"teachers = {{ model = 1.0 }}\nteacher_checkpoint = {json.dumps(str(tmp_path / 'base'))}\n"
    config = config_file_of(
        tmp_path, POINTWISE, f'lm = 0.0\ndistil = 1.0\ndistil_loss = "bce_logits"\nteacher_temperature = 1.0\n{teacher}'
    )
    trainer = build_trainer(config)
    batch = trainer.data_collator([trainer.train_dataset[0]])["batch"]
    own = replace(config.loss, contrastive_weight=0.0)
    training_loss(trainer.rank_model, batch, own, trainer.teacher)["loss"].backward()
    gradients = [weight.grad for weight in trainer.rank_model.module.parameters() if weight.grad is not None]
    assert gradients
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-4


@pytest.mark.parametrize(
    ("scorer", "loss", "sentence"),
    [
        ("listwise", "", r"\[model\]: the scorer 'listwise' cannot be trained"),
        ("groupwise", "", r"the scorer 'groupwise' cannot be trained"),
        ("embedding", "", r"end must be one token of this tokenizer, and '<\|endoftext\|>' is"),
        (EMBEDDING, 'contrastive = "bce"', r"loss.contrastive 'bce' is for scorers that score each document by itself"),
        (
            LABELS,
            'distil = 1.0\ndistil_loss = "bce"\nteachers = { labels = 1.0 }',
            r"loss.distil_loss 'bce' is for scorers that score each document by itself",
        ),
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


def test_single_heads_cannot_be_trained(tmp_path: Path) -> None:
    """They are told before weights are read, as scorers without scores are."""
    base_model(tmp_path / "base", LABELS)
    RankSpec.of(layer=1, template="query-free", query_offset=None).save(tmp_path / "base")
    heads = HeadSet(model="any", layers=3, heads=4, pairs=((1, 0),))
    (tmp_path / "heads.json").write_text(json.dumps(heads.to_dict()), encoding="utf-8")
    with pytest.raises(InputError, match=r"\[model\]: the scorer 'attention' cannot be trained"):
        train_from_config(config_file(tmp_path, f"attention:heads={tmp_path / 'heads.json'}"))


def test_training_sets_are_of_one_prompt(tmp_path: Path) -> None:
    """A stored body has no place where each document has a prompt of its own."""
    folder = base_model(tmp_path / "base", SCALAR)
    tokenizer = load_tokenizer(folder)[0]

    def framer(scorer: str) -> Framer:
        return Framer(tokenizer, resolve_scorer(folder, scorer)[1].changed(scorer=scorer))

    with pytest.raises(InputError, match=r"need all documents in one prompt, and 'scalar:.*' writes several"):
        framer(f"{SCALAR},packed=false")
    own = tokenizer.tokenise_request(RankRequest("one", ["two"]), resolve_scorer(folder, SCALAR)[1])
    framed = framer(SCALAR).request(tokenizer.encode("one"), [tokenizer.encode("two")])
    assert [part.ids.tolist() for part in framed.segments] == [part.ids.tolist() for part in own.segments]


def test_binary_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0, -torch.inf], [1.0, -1.0, 3.0]])
    positives = torch.tensor([[True, False, False], [False, False, True]])
    one = np.mean([np.log(2), np.log1p(np.exp(2.0))])
    two = np.mean([np.log1p(np.exp(1.0)), np.log1p(np.exp(-1.0)), np.log1p(np.exp(-3.0))])
    found = losses.binary_cross_entropy(logits, positives)
    assert float(found) == pytest.approx((one + two) / 2, abs=1e-6)


def test_soft_binary_cross_entropy_by_hand() -> None:
    """It also leaves absent candidates out, and is at its least where the student says what the teacher says."""
    logits = torch.tensor([[0.5, -1.0, -torch.inf]], requires_grad=True)
    teacher = torch.tensor([[0.25, 1.0, 7.0]])
    one, two = (math.log1p(math.exp(-logit)) for logit in (0.5, -1.0))
    expected = (0.25 * one + 0.75 * (one + 0.5) + two) / 2
    assert float(losses.soft_binary_cross_entropy(logits, teacher).detach()) == pytest.approx(expected, abs=1e-6)
    losses.logit_binary_cross_entropy(logits, logits.detach()).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros(1, 3))
    with pytest.raises(InputError, match=r"'bce' takes teachers' scores that are in \[0, 1\]"):
        losses.soft_binary_cross_entropy(logits, torch.tensor([[0.5, 1.5, 0.0]]))


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
