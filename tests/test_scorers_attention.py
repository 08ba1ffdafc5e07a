"""Attention read by single heads of several layers: a head set, its file, and what it gives."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU, byte_tokenizer, golden_module
from hypothesis import given, settings
from hypothesis import strategies as st

from blockrank import InputError, ModelError, Ranker, RankSpec
from blockrank.attention import get_backend
from blockrank.engine.capture import Wanted
from blockrank.layout import pack
from blockrank.model import LoadedModel, RankModel
from blockrank.readout.signals import log_scores
from blockrank.scorers import SCORERS, AttentionScorer
from blockrank.spec import HeadSet, Template, head_set_names, prompt_hash
from blockrank.types import RankRequest

TEXTS = ["red oak", "a blue whale swims", "x", "green tea, hot"]
MODULE = golden_module("qwen3")
LAYERS, HEADS = MODULE.config.num_hidden_layers, MODULE.config.num_attention_heads
SPEC = RankSpec.of(layer=1, query_offset=None, template="query-free")


def model(spec: RankSpec = SPEC, fused: bool = True) -> RankModel:
    weights = LoadedModel(copy.deepcopy(MODULE), byte_tokenizer(), name="/models/golden")
    if fused:
        weights.fuse()
    return RankModel(weights, spec, get_backend("sdpa", CPU, torch.float32))


def heads(*pairs: tuple[int, int], **changes: Any) -> HeadSet:
    return HeadSet(**{"model": "tests/golden", "layers": LAYERS, "heads": HEADS, "pairs": pairs, **changes})


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        SPEC.changed(softmax_over="all", signal_tokens=5),
        SPEC.changed(query_reads="own", length_norm=0.5, signal_tokens="query"),
        SPEC.changed(pattern="causal", cosine="both", logit_scale=9.0),
    ],
)
def test_scores_are_the_weighted_mean_of_each_heads_own(spec: RankSpec, fused: bool) -> None:
    """Of the read-out of each pair alone, by the checkpoint's own rules."""
    pairs, weights = ((0, 1), (2, 3), (2, 0)), (1.0, 0.5, 3.0)
    of = model(spec, fused)
    requests = [RankRequest("oaks", TEXTS), RankRequest("tea", TEXTS[1:])]
    expected: dict[tuple[int, int], float] = {}
    for place, request in enumerate(requests):
        for (layer, head), weight in zip(pairs, weights, strict=True):
            alone = of.with_spec(spec.changed(layer=layer, heads=(head,)))
            layout = pack(Ranker(alone).tokenise(request).parts, alone.spec)
            with alone.inference():
                seen = alone.forward(layout, Wanted((layer,))).only
                scores_C = log_scores(seen.q_GNH, seen.k_PKH, layout, alone.spec, seen.scale).exp()
            for index, score in enumerate(scores_C.tolist()):
                key = (place, index)
                expected[key] = expected.get(key, 0.0) + weight * score / sum(weights)
    ranker = Ranker(of, AttentionScorer(heads=heads(*pairs, weights=weights)))
    found = {
        (place, entry.index): entry.score
        for place, ranking in enumerate(ranker.rank_many(requests))
        for entry in ranking
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert np.ptp(list(found.values())) > 1e-3


def test_all_heads_of_one_layer_are_that_layer() -> None:
    whole = heads(*((1, head) for head in range(HEADS)))
    one, two = (Ranker(model(), AttentionScorer(heads=of)).rank("oaks", TEXTS) for of in (None, whole))
    assert [(entry.index, pytest.approx(entry.score, abs=1e-6)) for entry in one] == [
        (entry.index, entry.score) for entry in two
    ]
    assert two.kind == "share"
    assert sum(entry.score for entry in two) == pytest.approx(1)


def test_without_a_set_nothing_changes() -> None:
    """Name, settings and needs are those of the scorer that reads one layer."""
    plain = AttentionScorer()
    assert plain.identity() == {"name": "attention"}
    assert plain.adapted(SPEC) is SPEC
    assert plain.needs(SPEC).layers == (1,)
    assert plain.reuses_keys


def test_only_what_is_read_is_loaded(tmp_path: Path) -> None:
    MODULE.save_pretrained(tmp_path / "golden")
    byte_tokenizer().save_pretrained(tmp_path / "golden")
    SPEC.save(tmp_path / "golden")
    heads((0, 1), (1, 0)).save(tmp_path / "heads.json")
    of = SPEC.changed(layer=2, heads=(1,))
    ranker = Ranker.from_pretrained(
        tmp_path / "golden", spec=of, scorer=f"attention:heads={tmp_path / 'heads.json'}", device="cpu"
    )
    assert (ranker.model.module.config.num_hidden_layers, ranker.model.weights.layers) == (2, LAYERS)
    assert (ranker.spec.readout.layer, ranker.spec.readout.heads) == (1, None)
    assert not ranker.can_reuse
    json.dumps(ranker.identity())
    moved = tmp_path / "moved.json"
    (tmp_path / "heads.json").rename(moved)
    assert SCORERS.make(f"attention:heads={moved}").identity() == ranker.scorer.identity(), "what it reads, not where"


def test_what_makes_no_sense_with_a_set_is_refused() -> None:
    scorer = AttentionScorer(heads=heads((0, 1), (2, 0)))
    for changes, sentence in [
        ({"layer": 2, "prune": ((1, 0.5),)}, "a head set needs every document at each of its layers"),
        ({"joined_heads": True}, "not with RankSpec.joined_heads"),
        ({"signal_pooling": "geometric"}, "nor with RankSpec.signal_pooling 'geometric'"),
    ]:
        with pytest.raises(InputError, match=sentence):
            Ranker(model(SPEC.changed(**changes)), scorer)
    with pytest.raises(InputError, match="evidence is of the attention at one layer"):
        Ranker(model(), scorer).rank("oaks", TEXTS, evidence=True)


def test_heads_of_another_model_are_refused() -> None:
    for changes, sentence in [
        ({"model": "other/model"}, "the heads are those of other/model, and the model is /models/golden"),
        ({"layers": LAYERS + 1}, f"of a model with {LAYERS + 1} layers of {HEADS} heads, and /models/golden has"),
        ({"heads": HEADS + 1}, f"{LAYERS} layers of {HEADS + 1} heads"),
        ({"prompt": "0" * 16}, "found with another prompt"),
    ]:
        with pytest.raises(ModelError, match=sentence):
            Ranker(model(), AttentionScorer(heads=heads((0, 1), **changes)))
    own = heads((0, 1), prompt=prompt_hash(SPEC.prompt))
    assert len(Ranker(model(), AttentionScorer(heads=own)).rank("oaks", TEXTS)) == len(TEXTS)


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("org/Golden", True),
        ("/data/golden", True),
        ("/cache/models--org--golden/snapshots/0123abc", True),
        ("golden-2", False),
        ("", False),
    ],
)
def test_a_model_is_known_by_the_last_part_of_its_name(name: str, fits: bool) -> None:
    reason = heads((0, 1)).misfit(name, LAYERS, HEADS, Template((), ("{text}",), ("{query}",)))
    assert (reason is None) == fits


@settings(max_examples=25)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, unique=True),
    data=st.data(),
)
def test_a_set_comes_back_from_its_file(
    pairs: list[tuple[int, int]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    count = st.lists(st.floats(0.01, 9), min_size=len(pairs), max_size=len(pairs))
    weights = data.draw(st.none() | count.map(tuple))
    own = HeadSet(model="a/b", layers=3, heads=4, pairs=tuple(pairs), weights=weights, source="here")
    path = tmp_path_factory.mktemp("heads") / "own.json"
    own.save(path)
    assert HeadSet.load(path) == own
    listed = [(layer, head) for layer, of in own.by_layer.items() for head in of]
    assert listed == sorted(pairs)
    assert own.total == pytest.approx(sum(weights or [1] * len(pairs)))


@pytest.mark.parametrize("name", head_set_names())
def test_built_in_sets_are_read(name: str) -> None:
    found = HeadSet.load(name)
    assert "arXiv" in found.source
    assert len(found.pairs) == (32 if "70b" in name else 16)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pairs": []}, "HeadSet.pairs is empty"),
        ({"pairs": [[0, 1], [0, 1]]}, "names a head twice"),
        ({"pairs": [[3, 0]]}, "names layer 3, head 0; the model has 3 layers of 4 heads"),
        ({"weights": [1.0, 2.0]}, "needs one positive number a pair"),
        ({"weights": [0.0]}, "needs one positive number a pair"),
        ({"model": " "}, "HeadSet.model is empty"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"layers": "3"}, "layers must be an integer"),
    ],
)
def test_a_file_that_is_no_set_is_refused_by_its_name(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    values = {"model": "a/b", "layers": 3, "heads": 4, "pairs": [[0, 1]], **changes}
    path = tmp_path / "own.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(InputError, match=sentence) as found:
        HeadSet.load(path)
    assert str(found.value).startswith(str(path))
    with pytest.raises(InputError, match="neither a file nor built in; built in are"):
        HeadSet.load(tmp_path / "none.json")
