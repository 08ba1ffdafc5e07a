"""Several scorers over weights that are loaded once: each ranks as it does over weights of its own."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
from labelled import saved_model

import blockrank.model.probe
from blockrank import Ranker, RankRequest, RankSpec
from blockrank.evaluate.sharing import Loaded, load_rankers, together
from blockrank.model import Needs
from blockrank.types import ModelError

TEXTS = ["The Irish coast is rainy.", "Bram Stoker wrote Dracula in 1897.", "Mary Shelley wrote Frankenstein."]
REQUEST = RankRequest("who wrote Dracula", TEXTS)


def scores(ranker: Any) -> list[tuple[int, float]]:
    return [(entry.index, entry.score) for entry in ranker.rank_many([REQUEST])[0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that is read at layer 1 of 3, in blocks, and has a head."""
    place = saved_model(tmp_path_factory.mktemp("models") / "tiny")
    RankSpec.of(template="blockrank", layer=1, signal_tokens=4, query_offset=512).save(place)
    return place


@pytest.mark.parametrize("options", [{}, {"dtype": "int8"}])
def test_scorers_of_a_checkpoint_share_its_weights(
    options: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reads it up to a layer and in blocks, another needs its head, a third full attention over all layers."""
    names, probed, probe = ["attention", "decode:beams=1", "icr"], list[Any](), blockrank.model.probe.probe_model
    with monkeypatch.context() as patch:
        patch.setattr(blockrank.model.probe, "probe_model", lambda model, **k: probed.append(k) or probe(model, **k))
        rankers = load_rankers(folder, names, **options)
    assert len({id(ranker.model.weights) for ranker in rankers}) == 1
    assert len(probed) == (0 if options else 1), "another pattern is probed too, before products are quantised"
    for name, ranker in zip(names, rankers, strict=True):
        alone = Ranker.from_pretrained(folder, scorer=name, **options)
        assert scores(ranker) == scores(alone)
        assert ranker.identity() == alone.identity()


def test_scorers_under_one_spec_keep_documents_apart() -> None:
    first, second = load_rankers(None, ["attention", "attention"])
    plain = scores(first)
    assert first.remember(REQUEST.candidates, 1 << 20)
    assert first.model.store is not None
    assert second.model.store is None
    assert scores(second) == plain
    first.forget()


def test_a_head_for_classification_is_loaded_apart(tmp_path: Path) -> None:
    folder = saved_model(tmp_path)
    names = ["icr", "scalar", "setwise", "embedding", "pointwise"]
    assert together(folder, names) == [["icr", "setwise", "embedding", "pointwise"], ["scalar"]]
    with pytest.raises(ModelError, match=r"has no blockrank\.json"):
        together(folder, ["icr", None])


def test_one_model_is_held_at_a_time(mini: Ranker) -> None:
    loaded, loads = Loaded(), list[str]()
    held: list[weakref.ref[Any]] = []

    def load(name: str) -> list[Ranker]:
        assert all(item() is None for item in held), "the one before is gone"
        loads.append(name)
        ranker = Ranker(mini.model)
        held.append(weakref.ref(ranker))
        return [ranker]

    for name in "aabba":
        loaded.rankers(name, lambda name=name: load(name))  # type: ignore[misc]
    assert loads == ["a", "b", "a"]


def test_needs_of_both() -> None:
    one, other = Needs(layers=(8,)), Needs(layers=(3, 9), logits=True)
    assert one.joined(other, 14) == Needs(layers=(3, 8, 9, 14), logits=True)
    assert one.joined(Needs(generation=True, hidden=True), 0) == Needs(layers=(0, 8), hidden=True, generation=True)
    with pytest.raises(AssertionError):
        one.joined(Needs(score=True), 0)
