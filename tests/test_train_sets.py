"""Pre-tokenised training sets, their teachers, a whole run from one, and the release step of the recipe."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import CPU
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file
from safetensors.torch import load_file

from blockrank import Document, InputError, Ranker, RankRequest, RankSpec
from blockrank.layout import PromptTokenizer, Segment
from blockrank.layout.prompt import segments
from blockrank.model import EMBEDDED_MODEL, load_model, load_tokenizer
from blockrank.model.int8_file import is_int8, read_int8
from blockrank.retrieve.bm25 import K1, Bm25Index
from blockrank.spec import TEMPLATES, Template
from blockrank.train.batch import collate
from blockrank.train.config import DataConfig, LossConfig, TrainConfig
from blockrank.train.objective import check_answers, training_loss
from blockrank.train.run import build_trainer, train_from_config
from blockrank.train.sets import Framer, Lexicon, TrainingSet, open_sources

RELEASE = Path(__file__).parents[1] / "recipes" / "mini" / "release.py"
DOCUMENTS = (
    "Iron oxide makes Mars look red.",
    "Venus is the hottest planet.",
    "Mercury circles the Sun in 88 days.",
    "Jupiter is a giant of gas, and larger than all other planets together.",
    "Saturn has rings of ice.",
    "Neptune is windy and far away.",
)
QUERIES = ("Why is Mars red?", "Which planet is hottest?", "In how many days does Mercury circle the Sun?")
POSITIVES = ((0,), (1,), (2, 5))
NEGATIVES = ((1, 2), (0, 3), ())
# Rows of a unit circle: the products with a query at angle 0 are the cosines of these angles.
ANGLES = (0.0, 0.1, 0.5, 1.0, 1.5, 2.0)


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    return load_tokenizer()[0]


def ragged(rows: Any, dtype: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Rows of any lengths as flat values and starts."""
    starts = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return np.concatenate([np.asarray(row, dtype=dtype) for row in rows]), starts


def circle(angles: Any) -> NDArray[np.float16]:
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float16)


def tensors(tokenizer: PromptTokenizer) -> dict[str, NDArray[Any]]:
    """The training set of the texts above, with all its optional parts."""
    found: dict[str, NDArray[Any]] = {}
    for owner, name, rows, dtype in (
        ("document", "document_tokens", [tokenizer.encode(text) for text in DOCUMENTS], np.uint16),
        ("query", "query_tokens", [tokenizer.encode(text) for text in QUERIES], np.uint16),
        ("positive", "positives", POSITIVES, np.int32),
        ("negative", "negatives", NEGATIVES, np.int32),
    ):
        found[name], found[f"{owner}_starts"] = ragged(rows, dtype)
    found["dense"] = np.array([[3, 1, -1], [-1, -1, -1], [4, -1, -1]], dtype=np.int32)
    found["document_vectors"] = circle(ANGLES)
    found["query_vectors"] = circle([0.0] * len(QUERIES))
    return found


def opened(
    folder: Path, tokenizer: PromptTokenizer, values: dict[str, NDArray[Any]] | None = None, **config: Any
) -> TrainingSet:
    """The set written to a file and read back, by default without random fillers."""
    path = folder / "planets.safetensors"
    save_file(tensors(tokenizer) if values is None else values, path)
    [source] = open_sources(DataConfig((str(path),), **config), tokenizer, RankSpec.load(EMBEDDED_MODEL))
    assert isinstance(source, TrainingSet)
    return source


def bodies(tokenizer: PromptTokenizer, parts: tuple[Segment, ...]) -> list[int]:
    """Which pool rows the document segments hold; [CLS] and [SEP] around each."""
    pool = [tokenizer.encode(text).tolist() for text in DOCUMENTS]
    return [pool.index(part.ids[1:-1].tolist()) for part in parts]


def drawn(source: TrainingSet, tokenizer: PromptTokenizer, row: int = 0, draws: int = 8) -> set[int]:
    """Pool rows that any of several draws takes as negatives."""
    found: set[int] = set()
    for seed in range(draws):
        item = source.example(row, np.random.default_rng(seed))
        rows = np.array(bodies(tokenizer, item.prompts.documents))
        found |= set(rows[~item.positives_C].tolist())
    return found


# Frames


@pytest.mark.parametrize("template", ["query-free-bert", "query-first-bert"])
def test_framed_bodies_equal_the_tokenised_prompt(tokenizer: PromptTokenizer, template: str) -> None:
    spec = RankSpec.of(layer=6, template=template, signal_tokens="query", query_offset=None)
    framer = Framer(tokenizer, spec)
    for query in (*QUERIES, "a", "A cat's naïve café?"):
        expected = tokenizer.tokenise(segments(spec.prompt, RankRequest(query, list(DOCUMENTS))), spec)
        found = framer.request(tokenizer.encode(query), [tokenizer.encode(text) for text in DOCUMENTS])
        for mine, theirs in zip(found.segments, expected.segments, strict=True):
            assert (mine.kind, mine.ids.tolist()) == (theirs.kind, theirs.ids.tolist())
            assert mine.signal_end == theirs.signal_end
        assert [part.body_tokens for part in found.documents] == [part.body_tokens for part in expected.documents]


def test_templates_that_cannot_be_framed(tokenizer: PromptTokenizer) -> None:
    with pytest.raises(InputError, match="without document numbers"):
        Framer(tokenizer, RankSpec.of(layer=6, template="blockrank"))
    merged = Template(instruction=(), document=("[CLS]pre{text}[SEP]",), query=("[CLS]{query}[SEP]",))
    with pytest.raises(InputError, match="merges frame and body tokens"):
        Framer(tokenizer, RankSpec.of(layer=6, template=merged))


# BM25


def test_bm25_of_a_hand_worked_pool() -> None:
    # Three documents of mean length 2; token 5 is in one of them, token 6 in two.
    lexicon = Lexicon(np.array([5, 6, 5, 6, 7, 8], dtype=np.uint16), np.array([0, 3, 5, 6]))
    rare, common = math.log(1 + 2.5 / 1.5), math.log(1 + 1.5 / 2.5)
    first = rare * 2 * 1.9 / (2 + 0.9 * (0.6 + 0.4 * 3 / 2)) + common * 1.9 / (1 + 1.08)
    second = common * 1.9 / (1 + 0.9)
    pool = [np.array([5, 6, 5]), np.array([6, 7]), np.array([8])]
    assert first == pytest.approx(1.639445, abs=1e-6)
    np.testing.assert_allclose(lexicon.scores(np.array([6, 5, 6]), pool), [first, second, 0], rtol=1e-6)
    for absent in (3, 9, 60_000):  # below the largest token of the pool, and above it
        assert lexicon.scores(np.array([absent]), pool).tolist() == [0, 0, 0]
        np.testing.assert_allclose(lexicon.scores(np.array([6, 5, absent]), pool), [first, second, 0], rtol=1e-6)


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=6), st.lists(st.integers(0, 9))
)
def test_bm25_over_tokens_is_that_of_the_index(pool: list[list[int]], query: list[int]) -> None:
    words = [f"w{number}w" for number in range(10)]  # no stop words, no other forms of each other
    index = Bm25Index.build(Document(" ".join(words[i] for i in row), str(at)) for at, row in enumerate(pool))
    found = dict(index.positions(" ".join(words[i] for i in set(query)), len(pool)))
    tokens = np.array([token for row in pool for token in row], dtype=np.uint16)
    lexicon = Lexicon(tokens, np.cumsum([0, *map(len, pool)]))
    scores = lexicon.scores(np.array(query, dtype=np.int64), [np.array(row, dtype=np.int64) for row in pool])
    np.testing.assert_allclose(scores, [(K1 + 1) * found.get(at, 0.0) for at in range(len(pool))], rtol=1e-5)


# Examples


def test_an_example_holds_framed_rows_labels_and_teachers(tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    source = opened(tmp_path, tokenizer, candidates=6, hard=2)
    assert (source.name, len(source)) == ("planets", 3)
    for row, query in enumerate(QUERIES):
        item = source.example(row, np.random.default_rng(row))
        rows = bodies(tokenizer, item.prompts.documents)
        assert sorted(rows) == list(range(6))
        assert {i for i, good in zip(rows, item.positives_C, strict=True) if good} == set(POSITIVES[row])
        assert item.prompts.only.segments[-1].ids[1:-1].tolist() == tokenizer.encode(query).tolist()
        vectors = circle(ANGLES).astype(np.float32)[rows] @ np.array([1, 0], dtype=np.float32)
        np.testing.assert_allclose(item.teachers["vectors"], vectors, rtol=1e-6)
        np.testing.assert_allclose(item.teachers["vectors"], np.cos(ANGLES)[rows], atol=1e-3)
        best = rows[int(item.teachers["lexical"].argmax())]
        assert best == POSITIVES[row][0]


def test_documents_are_cut_and_positives_limited(tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    source = opened(tmp_path, tokenizer, candidates=5, max_document_tokens=3, max_positives=1)
    item = source.example(2, np.random.default_rng(0))
    assert [len(part.ids) for part in item.prompts.documents] == [5] * 5
    assert item.positives_C.sum() == 1


def test_mined_negatives_leave_out_the_filling_of_the_dense_table(tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    assert drawn(opened(tmp_path, tokenizer, candidates=4, hard=3), tokenizer) == {1, 2, 3}
    assert drawn(opened(tmp_path, tokenizer, candidates=3, hard=2, dense=False), tokenizer) == {1, 2}
    # Row 1 has no dense negative at all: -1 is never taken for the last document.
    assert drawn(opened(tmp_path, tokenizer, candidates=3, hard=2), tokenizer, row=1) == {0, 3}
    lean = {k: v for k, v in tensors(tokenizer).items() if not k.startswith(("negative", "dense"))}
    found = opened(tmp_path, tokenizer, lean, candidates=6).example(0, np.random.default_rng(0))
    assert sorted(bodies(tokenizer, found.prompts.documents)) == list(range(6))


def test_negatives_as_good_as_the_positive_are_left_out(tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    # Cosines to the query: positive 1.0, mined negatives 0.995 (document 1), 0.878 (2) and 0.540 (3).
    assert drawn(opened(tmp_path, tokenizer, candidates=3, hard=3, drop_above=0.95), tokenizer) == {2, 3}
    assert drawn(opened(tmp_path, tokenizer, candidates=2, hard=3, drop_above=0.6), tokenizer) == {3}
    # Where candidates run short, a negative that was left out does not come back as a random one.
    assert drawn(opened(tmp_path, tokenizer, candidates=6, hard=3, drop_above=0.6), tokenizer).isdisjoint({1, 2})
    blind = {k: v for k, v in tensors(tokenizer).items() if "vectors" not in k}
    source = opened(tmp_path, tokenizer, blind, candidates=4, hard=3, drop_above=0.6)
    assert drawn(source, tokenizer) == {1, 2, 3}
    assert set(source.example(0, np.random.default_rng(0)).teachers) == {"lexical"}


def test_a_positive_below_zero_leaves_out_the_negatives_above_it(tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    """As where requests are mined: a share of a score that is not above zero would let some of them pass."""
    angles = np.array(ANGLES)
    angles[:4] = np.arccos([-0.5, -0.48, -0.2, -0.9])  # the positive; just above it; above it; below it
    turned = {**tensors(tokenizer), "document_vectors": circle(list(angles)).astype(np.float16)}
    source = opened(tmp_path, tokenizer, turned, candidates=2, hard=3, drop_above=0.9)
    assert drawn(source, tokenizer) == {3}


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused_before_training(
    tmp_path: Path, tokenizer: PromptTokenizer, share: float
) -> None:
    with pytest.raises(InputError, match=r"drop_above must be above 0 and at most 1"):
        opened(tmp_path, tokenizer, drop_above=share)


# Mistakes


@pytest.mark.parametrize(("name", "value"), [("candidates", 1), ("max_positives", 0), ("hard", -1)])
def test_counts_that_make_no_sense(name: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"data\.{name} must be at least"):
        DataConfig(("x.jsonl",), **{name: value})


def test_files_that_are_no_training_set(tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    (tmp_path / "text.safetensors").write_text("no tensors here", encoding="utf-8")
    spec = RankSpec.load(EMBEDDED_MODEL)
    for name in ("text.safetensors", "none.safetensors"):
        with pytest.raises(InputError, match=rf"{name} is not a training set"):
            open_sources(DataConfig((str(tmp_path / name),)), tokenizer, spec)
    lacking = {k: v for k, v in tensors(tokenizer).items() if k != "positives"}
    with pytest.raises(InputError, match=r"planets\.safetensors is not a training set: it lacks 'positives'"):
        opened(tmp_path, tokenizer, lacking)


def test_training_sets_hold_no_answers(tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    frames = TEMPLATES["query-free-bert"]
    spec = RankSpec.of(
        layer=6, template=Template(frames.instruction, frames.document, frames.query, answer="["), query_offset=None
    )
    save_file(tensors(tokenizer), tmp_path / "planets.safetensors")
    [source] = open_sources(DataConfig((str(tmp_path / "planets.safetensors"),)), tokenizer, spec)
    batch = collate([source.example(0, np.random.default_rng(0))], spec)
    assert len(batch.label_A) == 0


# A whole run


def config_file(folder: Path, teachers: str, temperature: float) -> Path:
    """Two steps on a CPU from the embedded model, which is its own frozen teacher too."""
    base = json.dumps(str(EMBEDDED_MODEL))
    path = folder / "run.toml"
    path.write_text(
        f"output = {json.dumps(str(folder / 'out'))}\n[model]\nbase = {base}\n"
        f"[data]\nsets = [{json.dumps(str(folder / '*.safetensors'))}]\ncandidates = 4\nhard = 2\n"
        f'[loss]\ncontrastive = "cross_entropy"\ncontrastive_weight = 0.1\ntemperature = 1.0\nlm = 0.0\ndistil = 1.0\n'
        f"teacher_temperature = {temperature}\nteacher_checkpoint = {base}\n[loss.teachers]\n{teachers}\n"
        "[trainer]\nmax_steps = 2\nper_device_train_batch_size = 3\nlearning_rate = 1e-4\nwarmup_steps = 0\n"
        "logging_steps = 1\nuse_cpu = true\ndisable_tqdm = true\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tokenizer: PromptTokenizer) -> Iterator[Path]:
    """The result of a run with three teachers."""
    folder = tmp_path_factory.mktemp("run")
    save_file(tensors(tokenizer), folder / "planets.safetensors")
    yield train_from_config(config_file(folder, "model = 1.0\nvectors = 0.3\nlexical = 0.2", 0.4))
    shutil.rmtree(folder)


def test_a_run_from_a_training_set_ranks(trained: Path) -> None:
    ranker = Ranker.from_pretrained(trained, device="cpu")
    ranking = ranker.rank("Why is Mars red?", list(DOCUMENTS))
    assert ranking[0].text == DOCUMENTS[0]
    assert sum(entry.score for entry in ranking) == pytest.approx(1, abs=1e-5)
    assert RankSpec.load(trained) == RankSpec.load(EMBEDDED_MODEL)
    before, after = read_int8(EMBEDDED_MODEL)[0], load_file(trained / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    assert 0 < float((before[name] - after[name]).abs().max()) < 1e-2


def test_a_teacher_that_is_the_student_has_nothing_to_say(tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    save_file(tensors(tokenizer), tmp_path / "planets.safetensors")
    trainer = build_trainer(TrainConfig.load(config_file(tmp_path, "model = 1.0", 1.0)))
    assert trainer.teacher is not None
    batch = collate(trainer.train_dataset[0], trainer.rank_model.spec)
    parts = training_loss(trainer.rank_model, batch, trainer.loss_config, trainer.teacher)
    assert float(parts["distil"].detach()) == pytest.approx(0, abs=1e-5)
    assert float(parts["contrastive"].detach()) > 0
    assert not trainer.teacher.scores(batch, CPU).requires_grad
    with pytest.raises(InputError, match=r"a batch holds no answers for loss\.lm"):
        training_loss(trainer.rank_model, batch, LossConfig(contrastive_weight=0.0, lm=1.0))


def test_answers_alone_cannot_be_learnt_from_a_training_set(tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    save_file(tensors(tokenizer), tmp_path / "planets.safetensors")
    [source] = open_sources(
        DataConfig((str(tmp_path / "planets.safetensors"),)), tokenizer, RankSpec.load(EMBEDDED_MODEL)
    )
    with pytest.raises(InputError, match=r"training set 'planets' holds no answers for loss\.lm"):
        check_answers(LossConfig(contrastive_weight=0.0), [source])
    check_answers(LossConfig(), [source])


# The release step of the recipe


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", RELEASE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_release_omits_what_no_score_depends_on(
    trained: Path, release: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    omitted = release.unused_weights(load_model(trained, device="cpu"))
    last = ("attention.self.value.", "attention.output.", "intermediate.", "output.")
    allowed = (*(f"encoder.layer.6.{name}" for name in last), "pooler.")
    assert [name for name in omitted if not name.startswith(allowed)] == []
    assert all(any(name.startswith(prefix) for name in omitted) for prefix in allowed)

    monkeypatch.setattr("sys.argv", ["release.py", "--checkpoint", str(trained), "--out", str(tmp_path)])
    release.main()
    assert is_int8(tmp_path)
    assert read_int8(tmp_path)[1] == set(omitted)
    assert not set(load_file(tmp_path / "model.safetensors")) & set(omitted)
    # Every weight is off by half a step of its row at most; the scale's float16 adds a little.
    whole, small = load_file(trained / "model.safetensors"), read_int8(tmp_path)[0]
    assert set(small) == set(whole) - set(omitted)
    for name in (name for name in small if whole[name].ndim == 2):
        step = whole[name].abs().amax(1, keepdim=True) / 127
        assert bool(((small[name] - whole[name]).abs() <= 0.51 * step + 1e-7).all())
    ranker = Ranker(load_model(tmp_path, device="cpu", probe=True))
    assert [ranker.rank(query, list(DOCUMENTS))[0].text for query in QUERIES] == list(DOCUMENTS[:3])
