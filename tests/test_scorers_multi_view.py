"""A T5 whose encoder reads each document alone and whose decoder looks at all of them: as the library computes it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CPU, TOLERANCE, exhaust, failed, random_decoder
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from serving import BODY, running
from test_scorers_pointwise import QUERY, TEXTS, by_text
from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer
from typer.testing import CliRunner
from vocabularies import tokenizer as vocabulary

from blockrank import InputError, ModelError, Ranker, RankRequest, RankSpec
from blockrank.attention import get_backend
from blockrank.cli import app
from blockrank.model import LoadedModel, RankModel, load_model
from blockrank.scorers import SCORERS, MultiViewScorer, resolve_scorer
from blockrank.spec import BARE_SPEC
from blockrank.strategies import STRATEGIES

VIEWS = 3
SCORER = f"multi_view:views={VIEWS}"
WEIGHTS = "model.safetensors"
CONTROLS = ["a tree </s> of gold", "<extra_id_1> and <pad>"]


def t5_tokenizer() -> T5Tokenizer:
    """The library's class with a vocabulary of its own."""
    state = json.loads(vocabulary("unigram").backend_tokenizer.to_str())
    pieces = [(piece, score) for piece, score in state["model"]["vocab"] if piece != "<unk>"]
    extra = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(5))]
    return T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), *pieces, *extra], extra_ids=5)


def t5(**changes: Any) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    rows = len(t5_tokenizer())
    values = {"vocab_size": rows, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2}
    config = T5Config(**{**values, "num_decoder_layers": 3, "decoder_start_token_id": 0, **changes})
    module = T5ForConditionalGeneration(config)
    for name, weight in module.named_parameters():
        weight.data *= 3 if "Attention" in name and "bias" not in name else 1
    return module.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the library saves it, without a `blockrank.json`."""
    path = tmp_path_factory.mktemp("t5")
    t5().save_pretrained(path)
    t5_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ranker(folder: Path) -> Ranker:
    return Ranker.from_pretrained(folder, scorer=SCORER, device="cpu")


def plain(texts: list[str], query: str = QUERY) -> dict[str, float]:
    """Scores by the library alone: its tokenizer, eager attention, one passage at a time, one view at a time."""
    library, module = t5_tokenizer(), t5()
    module.set_attn_implementation("eager")
    tokens = "".join(f"<extra_id_{view}>" for view in range(VIEWS))
    scores = torch.zeros(len(texts), dtype=torch.float64)
    with torch.inference_mode():
        states = []
        for text in texts:
            ids = library(f"{tokens} | Query: {query} | Context: {text.strip()}", return_tensors="pt")["input_ids"]
            assert ids[0, -1] == library.eos_token_id
            states.append(module.encoder(input_ids=ids).last_hidden_state[0])
        for view in range(VIEWS):
            vectors_ND = torch.stack([state_LD[view] for state_LD in states])
            start = torch.tensor([[library.pad_token_id]])
            anchor_D = module.decoder(input_ids=start, encoder_hidden_states=vectors_ND[None]).last_hidden_state[0, 0]
            scores += (vectors_ND @ anchor_D).double()
    return dict(zip(texts, (scores / VIEWS).tolist(), strict=True))


def edited(folder: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """A copy of a checkpoint with other weights in it."""
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    save_file(change(load_file(folder / WEIGHTS)), to / WEIGHTS, metadata={"format": "pt"})
    return to


def wrapped(name: str) -> str:
    """What the encoder's weights are called inside the modules of fusion in the decoder."""
    name = re.sub(r"^encoder\.block\.(\d+)\.", r"encoder.block.\1.module.", name)
    return re.sub(r"^encoder\.", "encoder.encoder.", name)


# Scores


def test_scores_are_those_of_a_plain_model(ranker: Ranker) -> None:
    expected = plain(TEXTS)
    assert max(expected.values()) - min(expected.values()) > 0.1
    assert by_text(ranker, TEXTS) == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert ranker.rank(QUERY, TEXTS).kind == "relative"


def test_the_other_candidates_have_a_part_in_a_score(ranker: Ranker) -> None:
    assert by_text(ranker, TEXTS[:2])[TEXTS[0]] != pytest.approx(by_text(ranker, TEXTS)[TEXTS[0]], abs=1e-3)
    assert by_text(ranker, TEXTS[:1]) == pytest.approx(plain(TEXTS[:1]), abs=1e-5, rel=1e-5)


@given(order=st.permutations(range(len(TEXTS))))
@example_settings(max_examples=5)
def test_the_order_of_the_candidates_does_not(ranker: Ranker, order: list[int]) -> None:
    expected = by_text(ranker, TEXTS)
    ranking = ranker.rank(QUERY, [*(TEXTS[index] for index in order), " "])
    assert {entry.text: entry.score for entry in ranking[:-1]} == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert sorted(entry.index for entry in ranking) == list(range(len(TEXTS) + 1))
    assert all(0 <= entry.score <= 1 for entry in ranking.in_unit_range())


@pytest.mark.parametrize("max_tokens", [1, 60, 100_000])
def test_requests_together_are_as_alone(folder: Path, ranker: Ranker, max_tokens: int) -> None:
    requests = [RankRequest(QUERY, TEXTS), RankRequest("oak", TEXTS[:2]), RankRequest(QUERY, [TEXTS[3] * 5, "x"])]
    together = Ranker(ranker.model, ranker.scorer, max_tokens).rank_many(requests)
    for request, ranking in zip(requests, together, strict=True):
        expected = plain([document.text for document in request.candidates], request.query)
        found = {entry.text: entry.score for entry in ranking}
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)


def test_prompts_share_a_forward_up_to_the_budget(ranker: Ranker) -> None:
    shapes: list[tuple[int, int]] = []
    encoder = ranker.model.module.encoder
    hook = encoder.register_forward_pre_hook(
        lambda _, __, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    prompts = ranker.tokenise(RankRequest(QUERY, TEXTS))
    lengths = sorted(part.length for part in prompts.parts)
    Ranker(ranker.model, ranker.scorer, sum(lengths[:2])).rank(QUERY, TEXTS)
    hook.remove()
    assert shapes[0] == (2, lengths[1])
    assert sum(count for count, _ in shapes) == len(TEXTS)
    assert len(shapes) < len(TEXTS)


def test_halves_where_memory_does_not_suffice(ranker: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, encoder, shapes = by_text(ranker, TEXTS), ranker.model.module.encoder, []
    forward = encoder.forward

    def small(**named: Any) -> Any:
        if len(named["input_ids"]) > 2:
            exhaust("cpu")
        shapes.append(named["input_ids"].shape)
        return forward(**named)

    monkeypatch.setattr(encoder, "forward", small)
    assert by_text(ranker, TEXTS) == pytest.approx(expected, abs=TOLERANCE["float32"], rel=1e-5)
    assert sum(count for count, _ in shapes) == len(TEXTS)


def test_several_devices_rank_a_stream(folder: Path, ranker: Ranker) -> None:
    both = load_model(folder, spec=ranker.spec, needs=ranker.scorer.needs(ranker.spec), device="cpu")
    both.replicas = (ranker.model,)
    requests = [RankRequest(QUERY, TEXTS[: 2 + i % 3]) for i in range(6)]
    for one, two in zip(Ranker(both, ranker.scorer, 40).rank_many(requests), ranker.rank_many(requests), strict=True):
        assert {entry.index: entry.score for entry in one} == pytest.approx(
            {entry.index: entry.score for entry in two}, abs=1e-5, rel=1e-5
        )


# Texts


@given(
    query=st.text("wor d:|1<>\n.é", min_size=1).filter(str.strip),
    text=st.text("the fox:|,\t\n12é ", min_size=1).filter(str.strip),
)
@example_settings(max_examples=50)
def test_tokens_are_those_of_the_prompt_as_one_text(ranker: Ranker, query: str, text: str) -> None:
    tokens = "".join(f"<extra_id_{view}>" for view in range(VIEWS))
    whole = f"{tokens} | Query: {query.strip()} | Context: {text.strip()}"
    [part] = ranker.tokenise(RankRequest(query, [text])).parts
    assert [int(i) for segment in part.segments for i in segment.ids] == t5_tokenizer()(whole)["input_ids"]


def test_control_tokens_in_a_text_are_text(ranker: Ranker) -> None:
    found = ranker.tokenise(RankRequest(QUERY, CONTROLS))
    names = {i: name for name, i in t5_tokenizer().get_vocab().items()}
    controls = {"</s>", "<pad>", *(f"<extra_id_{i}>" for i in range(5))}
    for part in found.parts:
        ids = [int(i) for segment in part.segments for i in segment.ids]
        seen = [names[i] for i in ids if names[i] in controls]
        assert seen == [*(f"<extra_id_{view}>" for view in range(VIEWS)), "</s>"]
        assert [names[i] for i in ids[:VIEWS]] == seen[:VIEWS]


def test_what_a_document_loses_is_told(ranker: Ranker) -> None:
    short = ranker.with_spec(max_segment_tokens=4)
    text = TEXTS[0] + " and so on" * 20
    ranking = short.rank(QUERY, [text, *TEXTS[1:]])
    entry = next(item for item in ranking if item.index == 0)
    assert (entry.tokens, entry.cut_tokens > 0) == (3, True)
    part = short.tokenise(RankRequest(QUERY, [text])).parts[0]
    assert part.documents[0].ids[-1] == t5_tokenizer().eos_token_id


# Checkpoints


def test_wrapped_names_of_the_released_code_are_read(folder: Path, ranker: Ranker, tmp_path: Path) -> None:
    edited(folder, tmp_path, lambda state: {wrapped(name): weight for name, weight in state.items()})
    assert any(name.startswith("encoder.encoder.block.0.module.") for name in load_file(tmp_path / WEIGHTS))
    again = Ranker.from_pretrained(tmp_path, scorer=SCORER, device="cpu")
    assert by_text(again, TEXTS) == by_text(ranker, TEXTS)


Q = "encoder.block.0.layer.0.SelfAttention.q.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {n: w for n, w in state.items() if n != Q}, f"lacks 1 of its model's weights, such as {Q}"),
        (lambda state: {n: w for n, w in state.items() if "decoder" not in n}, r"lacks \d+ of its model's weights"),
        (lambda state: {**state, "decoder.block.1.layer.2.odd": torch.ones(2)}, "holds decoder.block.1.layer.2.odd"),
        (lambda state: {**state, Q: torch.ones(3, 3)}, f"holds {Q} in another shape"),
        (lambda state: {**state, Q: state[Q] * float("inf")}, f"holds values in {Q} that are not finite"),
        (lambda state: {wrapped(n): w.to(torch.int8) if n == Q else w for n, w in state.items()}, "as I8"),
    ],
)
def test_weights_that_are_not_the_models_are_refused(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], words: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=words):
        Ranker.from_pretrained(edited(folder, tmp_path, change), scorer=SCORER, device="cpu")


def test_what_does_not_go_together_is_one_sentence(folder: Path, ranker: Ranker, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is an encoder-decoder \('t5'\), which only scorers made for one can read"):
        Ranker.from_pretrained(folder, scorer="pointwise", device="cpu")
    with pytest.raises(ModelError, match="the scorer 'attention' reads a model that is no encoder-decoder"):
        Ranker(ranker.model, "attention")
    module = random_decoder("llama")
    decoder = RankModel(LoadedModel(module, t5_tokenizer()), BARE_SPEC, get_backend("sdpa", CPU, torch.float32))
    with pytest.raises(ModelError, match="the scorer 'multi_view' reads an encoder-decoder, and the model is none"):
        Ranker(decoder, SCORER)
    module.save_pretrained(tmp_path)
    t5_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is of the type 'llama'; of encoder-decoders, 't5' alone can be read"):
        Ranker.from_pretrained(tmp_path, scorer=SCORER, device="cpu")
    with pytest.raises(ModelError, match="has no token <extra_id_5>, which is a view"):
        Ranker(ranker.model, "multi_view:views=6")
    with pytest.raises(InputError, match="views must be positive, not 0"):
        SCORERS.make("multi_view:views=0")
    with pytest.raises(InputError, match="backend 'sdpa' is for packed prompts"):
        Ranker.from_pretrained(folder, scorer=SCORER, device="cpu", backend="sdpa")
    with pytest.raises(ModelError, match="cannot be fused: T5Model is not among"):
        Ranker.from_pretrained(folder, scorer=SCORER, device="cpu", dtype="int8")
    with pytest.raises(InputError, match="the scorer 'multi_view' gives no evidence"):
        ranker.rank(QUERY, TEXTS, evidence=True)
    assert not ranker.remember([], 1 << 20)


def test_a_published_checkpoint_names_its_scorer() -> None:
    for name in ("Jun421/MVP-base", "Jun421/MVP-3b"):
        scorer, spec = resolve_scorer(name)
        assert scorer == MultiViewScorer()
        assert (spec.limits.max_segment_tokens, spec.scorer) == (256, "multi_view")
        assert spec.prompt.instruction == (
            "<extra_id_0><extra_id_1><extra_id_2><extra_id_3> | Query: {query} | Context:",
        )


def test_an_adapted_spec_stays_as_it_is() -> None:
    scorer = MultiViewScorer(2)
    odd = RankSpec.of(layer=2, template="query-free", query_reads="own", document_attention="bidirectional")
    for spec in (odd.changed(prune=((0, 0.5),)), BARE_SPEC):
        assert scorer.adapted(scorer.adapted(spec)) == scorer.adapted(spec)


# Everywhere


def test_a_checkpoint_is_ranked_and_served_by_its_own_scorer(folder: Path, ranker: Ranker, tmp_path: Path) -> None:
    edited(folder, tmp_path, dict)
    BARE_SPEC.changed(scorer=SCORER).save(tmp_path)
    named = Ranker.from_pretrained(tmp_path, device="cpu")
    assert by_text(named, TEXTS) == by_text(ranker, TEXTS)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "documents.jsonl").write_text(lines, encoding="utf-8")
    for options in (["--model", str(tmp_path)], ["--model", str(folder), "--scorer", SCORER]):
        found = CliRunner().invoke(app, ["rank", QUERY, str(tmp_path / "documents.jsonl"), *options])
        assert found.exit_code == 0, failed(found)
    with running(None, load=lambda: [named]) as server:
        scores = [item["relevance_score"] for item in server.post("/v1/rerank").json()["results"]]
    expected = named.rank(BODY["query"], BODY["documents"]).in_unit_range()
    assert scores == pytest.approx([entry.score for entry in expected], abs=1e-5)


def test_strategies_rank_with_it(ranker: Ranker) -> None:
    ranking = STRATEGIES.make("sliding:size=3,step=1", ranker).rank(QUERY, TEXTS)
    assert sorted(entry.index for entry in ranking) == list(range(len(TEXTS)))
