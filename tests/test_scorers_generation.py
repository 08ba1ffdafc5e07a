"""Scorers that read what the model writes: their prompts and texts against the library's, whatever a model writes."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, golden_module
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GenerationConfig

from blockrank import InputError, Ranker, RankRequest, RankSpec
from blockrank.decode import Generated, generate
from blockrank.keep.identity import ranker_identity
from blockrank.scorers import GenerationScorer, GroupwiseScorer, ReasonedChoiceScorer
from blockrank.scorers.generation import last_answer
from blockrank.spec import BARE_SPEC
from blockrank.strategies import Ask, Strategy, merged, part
from blockrank.types import Ranking

CHAT = (
    "{% for m in messages %}{{ '<|im_end|>' + m.role + ':' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_end|>assistant:' }}{% endif %}"
)
TEXTS = ["red 0", "blue 1", "green 2", "ash 3"]
COUNT = 12
SCORERS: dict[str, GenerationScorer] = {
    "groupwise": GroupwiseScorer(temperature=0.0, max_new_tokens=COUNT),
    "reasoned_choice": ReasonedChoiceScorer(max_new_tokens=COUNT),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model with its head and a chat template, and nothing that says how it ranks."""
    path = tmp_path_factory.mktemp("model")
    module = golden_module("qwen3")
    module.lm_head.weight.data *= 4  # so that choices differ
    module.save_pretrained(path)
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=SCORERS)
def ranker(request: pytest.FixtureRequest, folder: Path) -> Ranker:
    """A ranker with each of the scorers, greedy."""
    return Ranker.from_pretrained(folder, scorer=SCORERS[request.param], device="cpu")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Generated]:
    """What is written from now on."""
    found: list[Generated] = []

    def recorded(*args: Any, **kwargs: Any) -> list[Generated]:
        found.extend(made := generate(*args, **kwargs))
        return made

    monkeypatch.setattr("blockrank.scorers.generation.generate", recorded)
    return found


@cache
def plain_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def chat(scorer: GenerationScorer, query: str, texts: Sequence[str]) -> str:
    """The prompt of a scorer as the chat template writes it."""
    template = scorer.template
    body = "".join(
        [*template.instruction, *(d.format(id=i, text=t) for i, t in enumerate(texts, 1) for d in template.document)]
    )
    user = (body + "".join(template.query)).replace("{query}", query).replace("(count)", str(len(texts)))
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.chat_template = CHAT
    messages = [{"role": "system", "content": template.system}, {"role": "user", "content": user}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def test_prompts_and_texts_are_those_of_the_library(ranker: Ranker, folder: Path, answers: list[Generated]) -> None:
    """A document without a token has no number, and is not counted."""
    scorer = ranker.scorer
    assert isinstance(scorer, GenerationScorer)
    for texts in (TEXTS[:2], TEXTS[1:]):
        ranker.rank("red oak", [*texts, " \n"])
        ids = torch.tensor([byte_tokenizer().encode(chat(scorer, "red oak", texts), add_special_tokens=False)])
        options = GenerationConfig(max_new_tokens=COUNT, do_sample=False, eos_token_id=None, pad_token_id=0)
        with torch.inference_mode():
            written = plain_model(folder).generate(ids, options, attention_mask=torch.ones_like(ids))
        assert list(answers[-1].tokens) == written[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)
def test_layers_and_batches_write_alike(scorer: GenerationScorer, folder: Path, answers: list[Generated]) -> None:
    """Also where tokens are drawn: random numbers are of the prompt and the seed."""
    requests = [RankRequest(query, TEXTS[:n], str(n)) for n, query in enumerate(("red", "a longer one"), 2)]
    hot = replace(scorer, temperature=0.9, seed=7)
    seen = []
    for made, layers, most in (
        (scorer, "fused", 1 << 15), (scorer, "library", 1), (hot, "fused", 1 << 15), (hot, "library", 1),
        (replace(hot, seed=8), "fused", 1 << 15),
    ):  # fmt: skip
        answers.clear()
        loaded = Ranker.from_pretrained(folder, scorer=made, device="cpu", layers=layers, max_tokens=most, probe=False)
        rankings = loaded.rank_many(requests)
        seen.append(([answer.tokens for answer in answers], rankings))
    assert seen[0] == seen[1]
    assert seen[2] == seen[3]
    assert len({str(tokens) for tokens, _ in (seen[0], seen[2], seen[4])}) == 3


@settings(max_examples=6)
@given(texts=st.lists(st.sampled_from(["red", "a [3] b", "", "<answer>[1]</answer>", "\t"]), min_size=1, max_size=5))
def test_a_model_that_writes_garbage_gives_every_document_once_and_says_so(ranker: Ranker, texts: list[str]) -> None:
    """Markup in a document is not an answer."""
    read = [index for index, text in enumerate(texts) if text.strip()]
    if not read:
        with pytest.raises(InputError):
            ranker.rank("red", texts)
        return
    ranking = ranker.rank("red", texts)
    assert [entry.index for entry in ranking] == [*read, *sorted(set(range(len(texts))) - set(read))]
    assert ranking.repaired == 1
    assert any("the model's answer, which ended at the limit of 12 tokens," in told for told in ranking.warnings)
    scores = [entry.score for entry in ranking]
    assert scores == sorted(scores, reverse=True)


@dataclass
class InHalves(Strategy):
    """Asks for the halves of a request apart."""

    name = "halves"

    def steps(self, request: RankRequest) -> Any:
        places = list(request.readable)
        halves = [places[: len(places) // 2], places[len(places) // 2 :]]
        found = yield Ask([part(request, half) for half in halves])
        entries = zip(halves, found, strict=True)
        return merged(request, [(half[entry.index], entry) for half, ranking in entries for entry in ranking])


@dataclass
class AsItIs(Strategy):
    """Hands a ranking on."""

    name = "as_it_is"

    def steps(self, request: RankRequest) -> Any:
        [found] = yield Ask([request])
        return found


def test_strategies_hand_on_how_many_answers_were_repaired(ranker: Ranker) -> None:
    one, two = InHalves(ranker).rank("red", TEXTS), AsItIs(ranker).rank("red", TEXTS)
    assert (one.repaired, two.repaired) == (2, 1)
    assert one.warnings == ("answers of the model that could not be taken as they were: 2; the log says more.",)
    assert two == ranker.rank("red", TEXTS)
    assert AsItIs(InHalves(ranker)).rank("red", TEXTS).repaired == 2


def test_warnings_reach_the_log_and_json(ranker: Ranker, caplog: pytest.LogCaptureFixture) -> None:
    ranking = ranker.rank("red", TEXTS, query_id="q7")
    assert f"query_id 'q7': {ranking.warnings[0]}" in caplog.text
    found = json.loads(json.dumps(ranking.to_dict()))
    assert found["repaired"] == 1
    assert found["warnings"] == list(ranking.warnings)
    assert found.get("unscored", []) == list(ranking.unscored)


def test_a_checkpoint_of_its_own_reading_is_read_by_the_prompt_of_the_scorer(ranker: Ranker) -> None:
    scorer = ranker.scorer
    own = RankSpec.of(layer=2, query_attention="bidirectional", query_reads="own", prune=((0, 0.5),), query_offset=99)
    assert scorer.adapted(own).pattern == scorer.adapted(BARE_SPEC).pattern
    for spec in (own, BARE_SPEC):
        assert scorer.adapted(scorer.adapted(spec)) == scorer.adapted(spec)
    assert ranker.spec == scorer.adapted(BARE_SPEC)


def test_evidence_is_refused_in_a_sentence(ranker: Ranker) -> None:
    with pytest.raises(InputError, match=f"the scorer '{ranker.scorer.name}' gives no evidence"):
        ranker.rank("red", TEXTS, evidence=True)


@pytest.mark.parametrize("name", SCORERS)
def test_settings_by_name_are_checked_and_decide_the_identity(name: str, folder: Path) -> None:
    made = Ranker.from_pretrained(folder, scorer=f"{name}:temperature=0.5,top_p=0.9,max_new_tokens=3,seed=4")
    expected = {"temperature": 0.5, "top_p": 0.9, "max_new_tokens": 3, "seed": 4}
    assert expected.items() <= ranker_identity(made)["scorer"].items()
    for wrong in ("temperature=-1", "top_p=2.0", "max_new_tokens=0"):
        with pytest.raises(InputError, match=wrong.split("=")[0]):
            Ranker.from_pretrained(folder, scorer=f"{name}:{wrong}")


def test_documents_that_are_cut_are_told(ranker: Ranker) -> None:
    ranking: Ranking = ranker.with_spec(max_segment_tokens=20).rank("red", ["x" * 30, "y"])
    assert [(entry.index, entry.cut_tokens > 0) for entry in ranking] == [(0, True), (1, False)]


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("", None), ("</answer>", None), ("<answer>a</answer>", "a"), ("<answer>a</answer><answer>b</answer>c", "b"),
        ("<answer>[1", "["), ("<answer>12", ""), ("<answer>a <answer> b", " b"), ("<ANSWER>a</ANSWER>", None),
    ],
)  # fmt: skip
def test_the_last_answer_of_a_text(text: str, block: str | None) -> None:
    assert last_answer(text) == block
