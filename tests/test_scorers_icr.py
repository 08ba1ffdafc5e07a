"""In-Context Re-ranking equals its definition, written out from the attention of the library's eager layers."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU, byte_tokenizer, random_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from blockrank import InputError, ModelError, Ranker, RankSpec
from blockrank.attention import get_backend
from blockrank.engine.capture import Wanted
from blockrank.layout import pack
from blockrank.model import LoadedModel, RankModel
from blockrank.readout import context
from blockrank.scorers import IcrScorer
from blockrank.spec import BARE_SPEC, HeadSet
from blockrank.types import RankRequest

LAYERS, HEADS = 4, 4
LATE = {
    "qa": "Answer the following question with the help of the paragraphs above.",
    "ie": "Find what in the paragraphs above is relevant to the following query.",
}
TEXTS = ["red oak", "a blue whale swims far away from here", "x", "green tea, hot", "oak oak oak"]
SET = HeadSet(model="tiny/decoder", layers=LAYERS, heads=HEADS, pairs=((2, 3), (0, 1), (2, 0)), weights=(0.5, 2.0, 1.0))


@cache
def decoder(kind: str = "llama") -> Any:
    """Weights large enough that attention is far from even."""
    module = random_decoder(kind, LAYERS, head=True)
    for name, parameter in module.named_parameters():
        if "proj" in name:
            parameter.data *= 6
    return module


@cache
def model(kind: str = "llama", fused: bool = True) -> RankModel:
    weights = LoadedModel(copy.deepcopy(decoder(kind)), byte_tokenizer(), name="/models/decoder")
    if fused:
        weights.fuse()
    return RankModel(weights, BARE_SPEC, get_backend("sdpa", CPU, torch.float32))


@cache
def eager(kind: str) -> Any:
    config = copy.deepcopy(decoder(kind).config)
    module = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    module.load_state_dict(decoder(kind).state_dict())
    return module.eval()


def received(kind: str, query: str, texts: list[str], task: str) -> tuple[np.ndarray[Any, Any], list[tuple[int, int]]]:
    """(L, N, rows) attention that each row receives, mean over the query's tokens; and the documents' rows."""
    text, spans = "Here are some paragraphs:", []
    for number, document in enumerate(texts, start=1):
        text += "\n\n"
        start = len(text.encode())
        text += f"[{number}] {document}"
        spans.append((start, len(text.encode())))
    text += "\n\n"
    first = len(text.encode())
    text += f"{LATE[task]}\n\nQuery: {query}"
    ids = byte_tokenizer()(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        found = eager(kind)(ids, output_attentions=True).attentions
    return np.stack([item[0].double().numpy()[:, first:].mean(1) for item in found]), spans


def by_definition(
    query: str,
    texts: list[str],
    *,
    kind: str = "llama",
    weights_LN: np.ndarray[Any, Any] | None = None,
    calibrate: bool = True,
    token_filter: bool = True,
    task: str = "qa",
) -> list[float]:
    """The scores of texts, best first, which stand in the prompt from the last to the first."""
    texts = texts[::-1]
    weights_LN = np.ones((LAYERS, HEADS)) if weights_LN is None else weights_LN
    received_LNR, spans = received(kind, query, texts, task)
    end = spans[-1][1]
    values_R = np.einsum("ln,lnr->r", weights_LN, received_LNR[..., :end])
    if calibrate:
        values_R -= np.einsum("ln,lnr->r", weights_LN, received(kind, "N/A", texts, task)[0][..., :end])
    scores = []
    for start, stop in spans:
        values = values_R[start:stop]
        if token_filter and len(values) > 1:
            values = values[values > values.mean() - 2 * values.std(ddof=1)]
        scores.append(float(values.sum()))
    return scores[::-1]


def scored(scorer: IcrScorer, query: str, texts: list[str], **how: Any) -> list[float]:
    """Scores in the order of the texts."""
    found = {entry.index: entry.score for entry in Ranker(model(**how), scorer).rank(query, texts)}
    return [found[index] for index in range(len(texts))]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"calibrate": False},
        {"token_filter": False},
        {"calibrate": False, "token_filter": False},
        {"task": "ie"},
    ],
)
def test_scores_are_those_of_the_definition(kind: str, fused: bool, changes: dict[str, Any]) -> None:
    expected = by_definition("who plants oaks", TEXTS, kind=kind, **changes)
    found = scored(IcrScorer(**changes), "who plants oaks", TEXTS, kind=kind, fused=fused)
    assert found == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 1e-3, "documents differ"


def test_the_filter_leaves_something_out() -> None:
    """Else it would not be tested above."""
    assert by_definition("oaks", TEXTS) != pytest.approx(by_definition("oaks", TEXTS, token_filter=False), abs=1e-4)


def test_layers_and_heads_are_chosen() -> None:
    weights_LN = np.zeros((LAYERS, HEADS))
    weights_LN[1:3] = 1
    expected = by_definition("oaks", TEXTS, weights_LN=weights_LN)
    for layers in ((1, 2), "1..2", (2, 1)):
        assert scored(IcrScorer(layers=layers), "oaks", TEXTS) == pytest.approx(expected, abs=1e-5)
    weights_LN[:] = 0
    weights_LN[2, 3], weights_LN[0, 1], weights_LN[2, 0] = 0.5, 2, 1
    expected = by_definition("oaks", TEXTS, weights_LN=weights_LN)
    assert scored(IcrScorer(heads=SET), "oaks", TEXTS) == pytest.approx(expected, abs=1e-5)


def test_the_forward_ends_after_the_highest_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Wanted] = []
    ranker = Ranker(model(), "icr:layers=0..1")
    forward = RankModel.forward
    monkeypatch.setattr(
        RankModel, "forward", lambda self, at, wanted: asked.append(wanted) or forward(self, at, wanted)
    )
    ranker.rank("oaks", TEXTS)
    assert [(wanted.layers, wanted.whole) for wanted in asked] == [((0, 1), False)], "one forward, calibrated"
    assert IcrScorer(layers="0..1").needs(BARE_SPEC).depth(0) == 2
    assert not IcrScorer(layers="0..1").needs(BARE_SPEC).every_layer
    assert IcrScorer().needs(BARE_SPEC).every_layer


def test_work_in_pieces_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads a few at a time, then tokens too."""
    whole = scored(IcrScorer(), "oaks", TEXTS)
    for most in (50_000, 2_000, 1):
        monkeypatch.setattr(context, "_NEAR_WEIGHTS", most)
        assert scored(IcrScorer(), "oaks", TEXTS) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("pattern", ["causal", "block"])
def test_requests_that_share_a_forward_are_as_alone(pattern: Any) -> None:
    ranker = Ranker(model(), IcrScorer(pattern=pattern))
    requests = [RankRequest(query, texts) for query, texts in [("oaks", TEXTS), ("a", ["b"]), ("tea pots", TEXTS[2:])]]
    for request, ranking in zip(requests, ranker.rank_many(requests), strict=True):
        alone = ranker.rank(request.query, request.candidates)
        assert ranking.kind == "relative"
        assert sorted((entry.index, entry.score) for entry in ranking) == [
            (index, pytest.approx(score, abs=1e-5)) for index, score in sorted((e.index, e.score) for e in alone)
        ]


def test_the_block_pattern_is_another_method_and_says_so() -> None:
    """Its documents do not read each other, so that their order does not matter but for their numbers."""
    dense, block = (scored(IcrScorer(pattern=pattern), "oaks", TEXTS) for pattern in ("causal", "block"))
    assert max(abs(one - two) for one, two in zip(dense, block, strict=True)) > 1e-3
    assert "approximation" in str(IcrScorer.__doc__)
    for fused in (True, False):
        assert scored(IcrScorer(pattern="block"), "oaks", TEXTS, fused=fused) == pytest.approx(block, abs=1e-5)
    spec = IcrScorer(pattern="block").adapted(BARE_SPEC)
    layout = pack(Ranker(model(), IcrScorer(pattern="block")).tokenise(RankRequest("oaks", TEXTS)).parts, spec)
    rows_T = np.repeat(np.arange(len(layout.starts_S)), layout.ends_S - layout.starts_S)
    queries = layout.positions_T[layout.is_query_S[rows_T]]
    assert queries.min() > layout.positions_T[layout.is_document_S[rows_T]].max(), "the query stands behind them"


@pytest.mark.parametrize("calibrate", [True, False])
def test_a_document_of_one_token_keeps_it(calibrate: bool) -> None:
    """Its deviation has no meaning."""
    layout = pack([Ranker(model(), "icr").tokenise(RankRequest("q", ["bc", "a"])).only], BARE_SPEC)
    values_T = torch.linspace(-1, 1, layout.tokens).square()
    lengths = (layout.ends_S - layout.starts_S)[layout.document_segment_C]
    skipped = int(lengths.min()) - 1
    sums_C = context.document_sums(values_T, layout, skipped, without_outliers=True)
    last = layout.ends_S[layout.document_segment_C[0]] - 1
    assert sums_C[0] == values_T[last]
    assert scored(IcrScorer(calibrate=calibrate), "q", ["a"]) == pytest.approx(
        by_definition("q", ["a"], calibrate=calibrate), abs=1e-5
    )


def test_tokens_that_are_all_alike_stay() -> None:
    layout = pack([Ranker(model(), "icr").tokenise(RankRequest("q", ["a", "bc"])).only], BARE_SPEC)
    lengths = torch.from_numpy((layout.ends_S - layout.starts_S)[layout.document_segment_C])
    sums_C = context.document_sums(torch.ones(layout.tokens), layout, without_outliers=True)
    assert sums_C.tolist() == lengths.tolist()


def test_documents_can_stand_as_they_were_given() -> None:
    found = scored(IcrScorer(order="best_first"), "oaks", TEXTS)
    assert found == pytest.approx(by_definition("oaks", TEXTS[::-1])[::-1], abs=1e-5)


@settings(max_examples=15)
@given(
    texts=st.lists(st.text("ab é\n[]12", max_size=12), min_size=1, max_size=6).filter(
        lambda texts: any(text.strip() for text in texts)
    ),
    order=st.sampled_from(["best_first", "best_last"]),
    pattern=st.sampled_from(["causal", "block"]),
)
def test_every_document_is_ranked_once(texts: list[str], order: Any, pattern: Any) -> None:
    ranking = Ranker(model(), IcrScorer(order=order, pattern=pattern)).rank("a?", texts)
    assert sorted(entry.index for entry in ranking) == list(range(len(texts)))
    units = [entry.score for entry in ranking.in_unit_range()]
    assert all(0 <= unit <= 1 for unit in units)
    assert units == sorted(units, reverse=True)


def test_documents_are_cut_to_the_limit_and_say_so() -> None:
    ranker = Ranker(model().with_spec(IcrScorer().adapted(BARE_SPEC).changed(max_segment_tokens=20)), "icr")
    ranking = ranker.rank("oaks", ["short", "y" * 40])
    assert {entry.index: entry.cut_tokens for entry in ranking} == {0: 0, 1: 40 - (20 - len("\n\n[2] "))}
    kept = "y" * (40 - 26)
    assert {entry.index: entry.score for entry in ranking}[1] == pytest.approx(
        by_definition("oaks", ["short", kept])[1], abs=1e-5
    )


def test_any_checkpoint_is_read_and_its_limits_stay() -> None:
    trained = RankSpec.of(
        layer=3, signal_tokens=1, query_reads="own", heads=(1,), query_offset=99, prune=((1, 0.5),),
        max_segment_tokens=64, query_attention="bidirectional",
    )  # fmt: skip
    for scorer in (IcrScorer(), IcrScorer(layers="1..2"), IcrScorer(pattern="block"), IcrScorer(heads=SET)):
        adapted = scorer.adapted(trained)
        assert adapted == scorer.adapted(adapted)
        assert adapted.limits == trained.limits
        assert adapted == scorer.adapted(BARE_SPEC).changed(
            max_segment_tokens=64, query_offset=adapted.pattern.query_offset
        )


def test_what_it_cannot_read_is_said_in_a_sentence() -> None:
    for settings_, sentence in [
        ("layers=8-11", "layers must be a list or a window such as '8..11', not '8-11'"),
        ("layers=3..2", "layers must be distinct, at least one"),
        ("layers=1,1", "layers must be distinct"),
        ("layers=1,heads=qrhead-llama-3.1-8b-nq", "icr takes layers or heads, not both"),
        ("heads=nothing", "head set 'nothing' is neither a file nor built in"),
    ]:
        with pytest.raises(InputError, match=sentence):
            Ranker(model(), f"icr:{settings_}")
    with pytest.raises(ModelError, match="the spec reads layer 7, but /models/decoder has 4 layers"):
        Ranker(model(), "icr:layers=6..7")
    with pytest.raises(InputError, match="the scorer 'icr' gives no evidence"):
        Ranker(model(), "icr").rank("a", TEXTS, evidence=True)
    weights = LoadedModel(decoder(), byte_tokenizer(), name="cut", layers=9)
    with pytest.raises(ModelError, match="was loaded with 4 of its 9 layers, and the scorer 'icr' reads all"):
        Ranker(RankModel(weights, BARE_SPEC, get_backend("sdpa", CPU, torch.float32)), "icr")


def test_identities_hold_what_is_read() -> None:
    found = IcrScorer(layers="1..2").identity()
    assert (found["layers"], found["heads"], found["calibrate"]) == ((1, 2), None, True)
    assert IcrScorer(heads=SET).identity()["heads"]["pairs"] == SET.pairs
