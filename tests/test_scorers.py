"""Scorers: prompts of their own, what they need of a checkpoint, kinds of scores, and one name for each everywhere."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, exhaust, failed, golden_module
from documented import EXAMPLES, example
from hypothesis import given
from hypothesis import strategies as st
from serving import BODY, running
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from blockrank import (
    AttentionScorer,
    CapacityError,
    DecodeScorer,
    InputError,
    ModelError,
    Ranker,
    Ranking,
    RankRequest,
    RankSpec,
    Template,
)
from blockrank.cli import app
from blockrank.engine import Wanted
from blockrank.keep.identity import ranker_identity
from blockrank.layout import PackedLayout, pack
from blockrank.mine import DropRule, RankerTeacher
from blockrank.model import Needs, RankModel, load_model
from blockrank.registry import Registry
from blockrank.scorers import SCORERS, LayoutScorer, Prompts, PromptWriter, Scored, Scorer
from blockrank.scorers.checking import RequestCheck
from blockrank.types import SCORE_KINDS, RequestRanker, ScoreKind, as_logits, in_unit_range

TEMPLATE = Template(("{query};",), ("D{id}:{text};",), ("Q:{query};A",), answer="[", answer_separator=", ")
TEXTS = ["red 0", "blue 1", "green 2", "ash 3", "oak 4"]
LAYER, LAYERS = 1, 4  # the scoring layer, and how many layers the checkpoint has


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model with its head, whose scoring layer is not its last."""
    path = tmp_path_factory.mktemp("model")
    module = golden_module("qwen3")
    module.lm_head.weight.data *= 4  # so that choices differ
    module.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    RankSpec.of(layer=LAYER, template=TEMPLATE, query_offset=None).save(path)
    return path


@pytest.fixture(scope="module", autouse=True)
def yes_no(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The example of the documentation, registered."""
    return example("yes_no", tmp_path_factory.mktemp("yes_no")).YesNoScorer


@pytest.fixture(scope="module")
def alone(folder: Path) -> Ranker:
    """A ranker with the example: each document has a prompt of its own."""
    return Ranker.from_pretrained(folder, scorer="yes_no:yes=y,no=n", device="cpu")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


@dataclass(frozen=True)
class LengthScorer(LayoutScorer):
    """Scores by the tokens of each document, as whatever kind is asked for."""

    name = "length"
    says: ScoreKind = "logit"

    @property
    def kind(self) -> ScoreKind:
        return self.says

    def read(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
        lengths = (layout.ends_S - layout.starts_S)[layout.document_segment_C]
        return Scored(torch.from_numpy(lengths).float() - 30)


# The example of the documentation


def test_the_example_is_one_file_of_sixty_lines() -> None:
    code = EXAMPLES["yes_no"]
    assert code.count("\n") <= 60
    assert code.count("SCORERS.add") == 1


def test_a_scorer_writes_prompts_of_its_own(folder: Path, alone: Ranker) -> None:
    """Scores equal those of the library's own model on each prompt as text."""
    ranking = alone.rank("red oak", [*TEXTS, ""])
    module = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = alone.model.tokenizer
    assert tokenizer is not None
    for entry in ranking[:-1]:
        prompt = f"Query: red oak\nDocument: {entry.text}\nDoes the document answer the query? Answer:"
        ids = np.concatenate([tokenizer.encode(part) for part in (prompt,)])
        with torch.inference_mode():
            logits = module(torch.from_numpy(ids)[None]).logits[0, -1]
        pair = logits[[int(tokenizer.encode(word)[0]) for word in "yn"]]
        assert entry.score == pytest.approx(float(pair.softmax(0)[0]), abs=1e-5)
        assert entry.tokens == len(entry.text)
    assert ranking.kind == "probability"
    assert (ranking[-1].text, ranking[-1].score, ranking[-1].tokens) == ("", 0.0, 0)
    assert ranking.to_dict()["kind"] == "probability"


def test_a_document_scores_the_same_in_whatever_company(alone: Ranker) -> None:
    whole = {entry.text: entry.score for entry in alone.rank("red oak", TEXTS)}
    for text in TEXTS:
        assert alone.rank("red oak", [text])[0].score == pytest.approx(whole[text], abs=1e-6)


def test_prompts_of_requests_share_forwards_up_to_the_budget(alone: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    forward = RankModel.forward

    def counted(model: RankModel, layout: PackedLayout, *arguments: Any, **named: Any) -> Any:
        counts.append(layout.requests)
        return forward(model, layout, *arguments, **named)

    monkeypatch.setattr(RankModel, "forward", counted)
    requests = [RankRequest("red", TEXTS), RankRequest("oak", TEXTS[:2])]
    together = alone.rank_many(requests)
    assert counts == [7]
    counts.clear()
    longest = max(item.longest for item in map(alone.tokenise, requests))
    apart = Ranker(alone.model, alone.scorer, max_tokens=longest).rank_many(requests)
    assert counts == [1] * 7
    for one, two in zip(together, apart, strict=True):
        assert [entry.score for entry in one] == pytest.approx([entry.score for entry in two], abs=1e-6)


def test_others_have_a_turn_between_the_forwards_of_a_request(alone: Ranker) -> None:
    turns: list[int] = []
    request = RankRequest("red", TEXTS)
    prompts = alone.tokenise(request)
    ranker = Ranker(alone.model, alone.scorer, max_tokens=prompts.longest)
    ranker.score([request], [prompts], between=lambda: turns.append(1))
    assert len(turns) >= len(TEXTS) - 1

    def dropped() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        ranker.score([request], [prompts], between=dropped)


def test_words_that_begin_alike_are_refused_at_once(alone: Ranker) -> None:
    with pytest.raises(InputError, match="' yes' and ' no' begin with the same token"):
        Ranker(alone.model, "yes_no")


# Prompts


def test_a_writer_writes_some_documents_in_the_order_asked_for(alone: Ranker) -> None:
    assert alone.model.tokenizer is not None
    writer = PromptWriter(alone.model.tokenizer, RankSpec.of(layer=LAYER, template=TEMPLATE))
    request = RankRequest("red", [*TEXTS, " ", "last"])
    some = writer.write(request, read=[4, 0])
    assert (some.indices, len(some.documents)) == ((4, 0), 2)
    assert bytes(some.documents[0].ids.astype(np.uint8)) != bytes(some.documents[1].ids.astype(np.uint8))
    each = writer.write_each(request)
    assert [part.indices for part in each] == [(index,) for index in (*range(5), 6)], "what cannot be read is left out"
    whole = Prompts((some, writer.write(request, read=[2, 4])))
    assert (whole.indices, len(whole.documents)) == ((0, 2, 4), 3)
    assert whole.documents[2] is some.documents[0], "where it stands first"
    assert whole.length == sum(part.length for part in whole.parts)


def test_scores_of_overlapping_prompts_are_averaged() -> None:
    scorer = LengthScorer()
    ranker_parts = [Scored(torch.tensor([1.0, 2.0])), Scored(torch.tensor([4.0, 8.0]))]

    class Part:
        def __init__(self, *indices: int) -> None:
            self.indices, self.documents = indices, [SimpleNamespace(cut=0) for _ in indices]

    prompts = Prompts((Part(4, 0), Part(2, 4)))  # type: ignore[arg-type]
    assert scorer.combined(prompts, ranker_parts).scores_C.tolist() == [2.0, 4.0, 4.5]
    with pytest.raises(AssertionError, match="order scores of several prompts have no mean"):
        LengthScorer("order").combined(prompts, ranker_parts)


@dataclass(frozen=True)
class Cramped(LengthScorer):
    """Writes each document alone, and fits so many prompts into memory."""

    name = "cramped"
    room: int = 2
    tried: list[int] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        """Its list is no setting."""

    def prompts(self, request: RankRequest, writer: PromptWriter) -> Prompts:
        return Prompts(writer.write_each(request))

    def read(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
        self.tried.append(layout.requests)
        if layout.requests > self.room:
            exhaust("cuda")
        return super().read(model, layout, evidence=evidence)


def test_prompts_of_one_request_run_apart_where_memory_is_short(alone: Ranker) -> None:
    scorer = Cramped()
    ranking = Ranker(alone.model, scorer).rank("red", TEXTS)
    assert [entry.score for entry in ranking] == [
        entry.score for entry in Ranker(alone.model, Cramped(room=9)).rank("red", TEXTS)
    ]
    assert scorer.tried[0] == 5
    assert max(scorer.tried[-3:]) <= 2
    with pytest.raises(CapacityError, match=r"query_id '0': its .* tokens do not fit into the memory of cpu"):
        Ranker(alone.model, Cramped(room=0)).rank("red", TEXTS)


@dataclass(frozen=True)
class Packed(LayoutScorer):
    """Each document behind the query, in one prompt without a tail: what would come next at its last token."""

    name = "packed"
    kind = "probability"
    apart: bool = False

    def adapted(self, spec: RankSpec) -> RankSpec:
        return spec.changed(template=Template(("{query};",), ("D:{text}.",), ()), query_offset=None)

    def needs(self, spec: RankSpec) -> Needs:
        return Needs(logits=True)

    def prompts(self, request: RankRequest, writer: PromptWriter) -> Prompts:
        return Prompts(writer.write_each(request)) if self.apart else super().prompts(request, writer)

    def read(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
        ends_C = layout.ends_S[layout.document_segment_C] - 1
        logits_CV = model.forward(layout, Wanted(logits_R=ends_C)).logits_RV
        assert logits_CV is not None
        return Scored(logits_CV.float().softmax(1)[:, 65])


def test_documents_packed_behind_one_query_score_as_each_in_a_prompt_of_its_own(folder: Path) -> None:
    ranker = Ranker.from_pretrained(folder, scorer=Packed(), device="cpu")
    requests = [RankRequest("red oak", TEXTS), RankRequest("ash", ["longer than the others", "b", " "])]
    assert [len(ranker.tokenise(request).parts) for request in requests] == [1, 1]
    apart = Ranker(ranker.model, Packed(apart=True))
    for one, two in zip(ranker.rank_many(requests), apart.rank_many(requests), strict=True):
        assert one.doc_ids == two.doc_ids
        assert [entry.score for entry in one] == pytest.approx([entry.score for entry in two], abs=1e-6)
        assert len({entry.score for entry in one}) == len(one)


def test_attention_needs_a_query_behind_the_documents(folder: Path) -> None:
    model = Ranker.from_pretrained(folder, scorer=Packed(), device="cpu").model
    with pytest.raises(InputError, match="the template's query is empty: there are no signal tokens"):
        Ranker(model).rank("red", TEXTS)
    request = Ranker(model, Packed()).tokenise(RankRequest("red", TEXTS))
    with pytest.raises(InputError, match="the prompt ends in a document: there are no tokens of a query segment"):
        AttentionScorer().read(model, pack([request.only], model.spec))


# What is loaded


class Reading(LayoutScorer):
    """Needs whatever it is told to."""

    name, kind = "reading", "logit"

    def __init__(self, needs: Needs) -> None:
        self._needs = needs

    def needs(self, spec: RankSpec) -> Needs:
        return self._needs

    def read(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
        return Scored(torch.zeros(len(layout.document_segment_C)))


@pytest.mark.parametrize(
    ("needs", "layers", "head"),
    [
        (Needs(), LAYER + 1, False),
        (Needs(layers=(0,)), LAYER + 1, False),
        (Needs(layers=(0, 2)), 3, False),
        (Needs(hidden=True), LAYERS, False),
        (Needs(logits=True), LAYERS, True),
        (Needs(generation=True), LAYERS, True),
    ],
)
def test_needs_decide_where_a_model_is_cut(folder: Path, needs: Needs, layers: int, head: bool) -> None:
    model = load_model(folder, device="cpu", needs=needs, probe=False)
    assert (model.weights.module.config.num_hidden_layers, model.weights.has_head) == (layers, head)
    assert Ranker(model, Reading(needs)).rank("red", TEXTS).kind == "logit"


@pytest.mark.parametrize(
    ("needs", "sentence"),
    [
        (Needs(logits=True), "no language-model head, or was loaded without it: the scorer 'reading' needs it"),
        (Needs(layers=(3,)), "has 2 layers, and the scorer 'reading' reads layer 3"),
        (Needs(generation=True), "no language-model head"),
    ],
)
def test_a_model_that_lacks_what_is_needed_is_refused(folder: Path, needs: Needs, sentence: str) -> None:
    model = load_model(folder, device="cpu", probe=False)
    with pytest.raises(ModelError, match=sentence):
        Ranker(model, Reading(needs))


def test_a_model_without_such_a_layer_is_refused_when_it_is_loaded(folder: Path) -> None:
    with pytest.raises(ModelError, match=f"reads layer 9, but the model has {LAYERS} layers"):
        Ranker.from_pretrained(folder, scorer=Reading(Needs(layers=(9,))), device="cpu")


def test_a_scorers_own_template_is_that_of_its_ranker_alone(alone: Ranker, mini: Ranker) -> None:
    assert alone.spec.prompt.instruction == ("Query: {query}\n",)
    assert alone.with_spec(max_segment_tokens=40).spec.prompt == alone.spec.prompt
    store = mini.reuse(1 << 20)
    try:
        assert Ranker(mini.model, "attention").model is mini.model, "what adapts nothing keeps the model, and its store"
        assert store is mini.model.store
    finally:
        mini.forget()


def test_documents_are_kept_only_for_scorers_that_read_them_there(mini: Ranker) -> None:
    assert mini.can_reuse
    other = Ranker(mini.model, LengthScorer())
    assert not other.can_reuse
    assert not other.remember([], 1 << 20)
    assert other.reuse(1 << 20) is None


# Kinds of scores


@given(
    scores=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8),
    kind=st.sampled_from(SCORE_KINDS),
)
def test_every_kind_keeps_its_order(scores: list[float], kind: ScoreKind) -> None:
    logits, units = as_logits(scores, kind), in_unit_range(scores, kind)
    assert all(0 <= unit <= 1 for unit in units)
    assert all(math.isfinite(logit) for logit in logits)
    for numbers in (logits, units):
        for i, one in enumerate(scores):
            for j, two in enumerate(scores):
                assert one <= two or numbers[i] >= numbers[j]


def test_what_a_student_learns_of_each_kind() -> None:
    assert as_logits([0.5, 0.25, 0.0], "share") == pytest.approx([math.log(0.5), math.log(0.25), -149 * math.log(2)])
    assert as_logits([0.9, 0.1], "probability") == pytest.approx([math.log(0.9), math.log(0.1)])
    assert as_logits([3.0, -4.0], "logit") == [3.0, -4.0]
    shares = np.exp(as_logits([-2.0, -1.0, -3.0], "order"))
    assert shares == pytest.approx([1 / 2, 1, 1 / 3])
    assert in_unit_range([-1.0, -2.0, -4.0], "order") == pytest.approx([1, 1 / 2, 1 / 3]), "the rank, not the score"
    assert in_unit_range([0.0, 1000.0, -1000.0], "logit") == [0.5, 1.0, 0.0]


def test_relative_scores_are_seen_from_the_mean_of_their_request() -> None:
    assert as_logits([3.0, -4.0], "relative") == [3.0, -4.0]
    expected = [1 / (1 + math.exp(-(score - 6.0) / np.std([4.0, 5.0, 9.0]))) for score in (4.0, 5.0, 9.0)]
    assert in_unit_range([4.0, 5.0, 9.0], "relative") == pytest.approx(expected)
    assert in_unit_range([7.0, 7.0], "relative") == [0.5, 0.5]
    assert in_unit_range([], "relative") == []


def test_the_best_of_relative_scores_are_seen_as_among_all(alone: Ranker) -> None:
    ranker = Ranker(alone.model, LengthScorer("relative"))
    texts = ["a", "bb", "cccccccc", " "]
    whole, best = (ranker.rank("red", texts, top_k=k).in_unit_range() for k in (None, 1))
    assert best[0].score == whole[0].score > 0.5
    assert whole.top(1)[0].score == best[0].score


@pytest.mark.parametrize(
    ("scores", "kind", "sentence"),
    [
        ([-1.0, -2.0], "share", "a share lies between 0 and 1, and a score is -2"),
        ([0.5, 3.0], "probability", "a probability lies between 0 and 1, and a score is 3"),
        ([7.0], "share", "a score is 7: it is of another kind"),
    ],
)
def test_scores_of_another_kind_than_they_say_are_refused(scores: list[float], kind: ScoreKind, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        as_logits(scores, kind)


@pytest.mark.parametrize("scorer", ["decode:beams=2", "decode:beams=1,form=list"])
def test_a_teacher_of_an_order_tells_documents_apart(folder: Path, scorer: str) -> None:
    ranker = Ranker.from_pretrained(folder, scorer=scorer, device="cpu")
    teacher = RankerTeacher(ranker, "decoded")
    request = RankRequest("red oak", [*TEXTS, " "], top_k=1)
    [scores] = teacher.scores([request])
    ranks = {entry.index: entry.rank for entry in ranker.rank("red oak", [*TEXTS, " "])}
    assert scores == pytest.approx([-math.log(ranks[index]) for index in range(6)])
    assert teacher.are_logs
    assert DropRule(above=0.95).too_good(scores, [scores.index(-math.log(2))], are_logs=True) == [scores.index(0.0)]


def test_a_teacher_takes_logits_and_probabilities_as_they_are_meant(alone: Ranker) -> None:
    [scores] = RankerTeacher(alone, "alone").scores([RankRequest("red", TEXTS)])
    expected = {entry.index: math.log(entry.score) for entry in alone.rank("red", TEXTS)}
    assert scores == pytest.approx([expected[index] for index in range(5)])
    teacher = RankerTeacher(Ranker(alone.model, LengthScorer()), "length")
    [scores] = teacher.scores([RankRequest("red", ["a", "bbbb"])])
    assert scores[1] - scores[0] == 3
    assert not teacher.are_logs


def test_a_ranker_of_ones_own_that_says_no_kind_cannot_teach_wrong_values() -> None:
    class Ranks(RequestRanker):
        def rank_iter(self, requests: Any) -> Iterator[Ranking]:
            for request in requests:
                yield Ranking.from_scores(request, [-1.0 - index for index in request.readable])

        def identity(self) -> dict[str, Any]:
            return {"ranker": "ranks"}

    with pytest.raises(InputError, match="query_id '3': a share lies between 0 and 1, and a score is -2"):
        RankerTeacher(Ranks(), "ranks").scores([RankRequest("red", ["a", "b"], "3")])


def test_the_command_line_teaches_by_any_scorer(folder: Path, tmp_path: Path) -> None:
    line = {"query": "red oak", "query_id": "1", "documents": TEXTS, "positives": [0]}
    (tmp_path / "requests.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    source, output = str(tmp_path / "requests.jsonl"), tmp_path / "taught.jsonl"
    done = run("data", "teach", source, "--teacher", str(folder), "--scorer", "decode:beams=2", "--output", str(output))
    assert done.exit_code == 0, done.output
    found = json.loads(output.read_text(encoding="utf-8"))["teacher"]
    assert sorted(found, reverse=True) == pytest.approx([-math.log(rank) for rank in range(1, 6)], abs=1e-6)
    wrong = run("data", "teach", source, "--encoder", "x", "--scorer", "decode", "--output", str(output))
    assert (wrong.exit_code, "--scorer is for --teacher" in wrong.stderr) == (2, True)


@pytest.mark.parametrize("says", SCORE_KINDS)
def test_rankings_carry_their_kind(alone: Ranker, says: ScoreKind) -> None:
    ranking = Ranker(alone.model, LengthScorer(says)).rank("red", ["a", "bb", " "])
    assert ranking.kind == says
    assert ranking.to_dict().get("kind", "share") == says
    assert [entry.index for entry in ranking] == [1, 0, 2]
    assert ranking.top(2).kind == says


def test_a_server_gives_scores_between_0_and_1(mini: Ranker) -> None:
    """Logits through the logistic function; shares as they are."""
    ranker = Ranker(mini.model, LengthScorer())
    with running(mini, load=lambda: [ranker]) as server:
        for path in ("/v1/rerank", "/v2/rerank"):
            results = server.post(path).json()["results"]
            scores = [item["relevance_score"] for item in results]
            expected = [1 / (1 + math.exp(-entry.score)) for entry in ranker.rank(BODY["query"], BODY["documents"])]
            assert scores == pytest.approx(expected)
        refused = server.post("/v1/rerank", {**BODY, "evidence": True})
        assert refused.status_code in (400, 422)
        assert "the scorer 'length' gives no evidence" in refused.text


def test_a_tool_gives_scores_between_0_and_1(mini: Ranker) -> None:
    from blockrank.integrations.mcp import _answer
    from blockrank.serve.settings import ServeSettings

    found = _answer(Ranker(mini.model, LengthScorer("order")), ServeSettings(), dict(BODY))
    assert [item["score"] for item in found["results"]] == pytest.approx([1, 1 / 2, 1 / 3])


# Evidence


def test_evidence_is_refused_before_anything_is_run(alone: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a forward")

    monkeypatch.setattr(RankModel, "forward", never)
    with pytest.raises(InputError, match=r"the scorer 'yes_no' gives no evidence\. \(query_id '0'\)"):
        alone.rank("red", TEXTS, evidence=True)


def test_explain_is_refused_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockrank.ranker.load_model", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "lines").write_text("\n".join(TEXTS), encoding="utf-8")
    arguments = ("rank", "red", "--lines", str(tmp_path / "lines"), "--model", str(folder), "--explain", "--scorer")
    assert "a decoded ranking has no evidence" in failed(run(*arguments, "decode"))
    assert "the scorer 'yes_no' gives no evidence" in failed(run(*arguments, "yes_no"))


# Names


def test_a_text_makes_a_scorer_with_its_settings() -> None:
    assert SCORERS.make("decode") == DecodeScorer()
    assert SCORERS.make("decode:beams=3, form=list") == DecodeScorer(3, "list")
    assert SCORERS.make("attention") == AttentionScorer()
    made = DecodeScorer(2)
    assert SCORERS.make(made) is made
    assert {"attention", "decode", "yes_no"} <= set(SCORERS.names)
    assert SCORERS.make("yes_no:yes= relevant").identity() == {"name": "yes_no", "yes": " relevant", "no": " no"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("decoding", r"scorer 'decoding' is unknown; there are \['attention', 'decode'"),
        ("", "scorer '' is unknown"),
        ("decode:beam=2", r"scorer 'decode': unknown key 'beam'; there are \['beams', 'form', 'top'\]"),
        ("decode:beams=two", "scorer 'decode': beams must be an integer, not 'two'"),
        ("decode:beams=1.5", "scorer 'decode': beams must be an integer, not '1.5'"),
        ("decode:beams=true", "scorer 'decode': beams must be an integer"),
        ("decode:beams=0", "beams must be positive, not 0"),
        ("decode:form=last", r"scorer 'decode': form must be one of \('first', 'list', 'full'\), not 'last'"),
        ("decode:beams=1,beams=2", "scorer 'decode': the key 'beams' is there twice"),
        ("decode:list", r"scorer 'decode': settings are key=value, not 'list'; there are"),
        ("decode:", "scorer 'decode': settings are key=value, not ''"),
        ("attention:layers=3", r"scorer 'attention': unknown key 'layers'; there are \['heads'\]"),
    ],
)
def test_what_there_is_not_is_told_with_what_there_is(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Ranker.from_pretrained("nowhere", scorer=text)  # before the model is looked for
    for command in ("rank", "eval", "search", "serve", "mcp", "doctor"):
        arguments = {"rank": ["q"], "eval": ["x"], "search": ["x", "q"]}.get(command, [])
        wrong = run(command, *arguments, "--scorer", text)
        assert wrong.exit_code == 2, command
        assert "--scorer" in wrong.stderr


@pytest.mark.parametrize("given", [3, DecodeScorer, {"name": "decode"}])
def test_what_is_no_scorer_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match=r"a scorer is one of .*, or made already, not"):
        Ranker.from_pretrained(scorer=given)


def test_settings_of_an_object_are_checked_too() -> None:
    for wrong in ({"beams": "2"}, {"beams": 0}, {"form": "last"}, {"beams": 2.5}):
        with pytest.raises(InputError, match=r"beams|form"):
            DecodeScorer(**wrong)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Thing:
    name = "thing"
    sizes: tuple[int, ...] = ()
    label: str | None = "x"
    rate: float = 0.5
    on: bool = False


def test_values_are_of_the_annotated_types() -> None:
    registry = Registry("thing", Thing, group="blockrank.things")
    registry.add(Thing)
    assert registry.make("thing:sizes=[3,4],label=null,rate=2,on=true") == Thing((3, 4), None, 2, True)
    assert registry.make("thing:sizes=3,4,label=8") == Thing((3, 4), "8")
    assert registry.make("thing:label=a=b, c,rate=1e-3") == Thing((), "a=b, c", 0.001)
    for text in ("sizes=[1", "sizes=x", "rate=nan", "rate=1e999", "on=1", "on=yes", "rate="):
        with pytest.raises(InputError, match=f"thing 'thing': {text.split('=')[0]} must be"):
            registry.make(f"thing:{text}")


def test_what_cannot_be_registered() -> None:
    registry = Registry("scorer", Scorer, group="blockrank.nothing")  # type: ignore[type-abstract]

    class Unnamed(LengthScorer):
        name = "two words"

    class Other(LengthScorer):
        pass

    registry.add(LengthScorer)
    registry.add(LengthScorer)
    with pytest.raises(InputError, match=r"the name 'length' is that of the scorer test_scorers\.LengthScorer already"):
        registry.add(Other)
    with pytest.raises(InputError, match=r"needs a name of letters, digits and -_\., not 'two words'"):
        registry.add(Unnamed)
    for wrong in (LayoutScorer, int, LengthScorer()):
        with pytest.raises(InputError, match="a scorer is a class under Scorer with all it asks for"):
            registry.add(wrong)  # type: ignore[arg-type]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a scorer that works and one that cannot be imported."""
    code = EXAMPLES["yes_no"].replace('"yes_no"', '"installed"').replace("@SCORERS.add\n", "")
    (tmp_path / "an_installed_scorer.py").write_text(code, encoding="utf-8")
    info = tmp_path / "an_installed_scorer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: an-installed-scorer\nVersion: 1.0\n", encoding="utf-8")
    names = "installed = an_installed_scorer:YesNoScorer\nbroken = an_installed_scorer:Nothing\n"
    (info / "entry_points.txt").write_text(f"[blockrank.scorers]\n{names}", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_scorers_of_installed_packages_are_found(package: Path, folder: Path, tmp_path: Path) -> None:
    assert {"installed", "broken"} <= set(SCORERS.names)
    assert "an_installed_scorer" not in sys.modules, "a listing imports none"
    (tmp_path / "lines").write_text("\n".join(TEXTS), encoding="utf-8")
    arguments = ("rank", "red", "--lines", str(tmp_path / "lines"), "--model", str(folder), "--json", "--scorer")
    found = json.loads(run(*arguments, "installed:yes=y,no=n").stdout)
    assert found["kind"] == "probability"
    expected = Ranker.from_pretrained(folder, scorer="yes_no:yes=y,no=n", device="cpu").rank("red", TEXTS)
    assert [item["index"] for item in found["results"]] == [entry.index for entry in expected]
    wrong = run(*arguments, "broken")
    assert wrong.exit_code == 2
    assert "cannot be loaded" in wrong.stderr


@pytest.mark.parametrize("old", ["--decode", "--beams", "--beams=3"])
def test_options_that_are_gone_say_what_takes_their_place(old: str) -> None:
    for command in ("rank", "eval"):
        wrong = run(command, "red", "a", old)
        assert wrong.exit_code == 2
        assert "--scorer decode" in wrong.stderr
    assert "--scorer" not in run("inspect", "red", "a", old).stderr, "of commands that never had it"


def test_a_request_is_checked_as_its_scorer_writes_it(folder: Path) -> None:
    """The example's template has no numbers, and a document's frame that is longer than the limit."""
    check = RequestCheck.load(folder, {"max_segment_tokens": 8}, "yes_no")
    with pytest.raises(InputError, match=r"documents\[0\] does not fit: its frame alone takes"):
        check(RankRequest("red", TEXTS))
    RequestCheck.load(folder, {"max_segment_tokens": 9}, "decode")(RankRequest("red", TEXTS))
    with pytest.raises(InputError, match=r"decoding needs RankSpec\.query_reads 'all'; it is 'own'"):
        RequestCheck.load(folder, {"query_reads": "own"}, "decode")(RankRequest("red", TEXTS))


def test_decoding_tells_what_the_spec_does_not_allow_before_a_forward(folder: Path) -> None:
    ranker = Ranker.from_pretrained(folder, scorer="decode", device="cpu")
    for changes, sentence in (
        ({"query_reads": "own"}, "query_reads 'all'"),
        ({"prune": ((0, 0.5),)}, "not with RankSpec.prune"),
    ):
        with pytest.raises(InputError, match=sentence):
            ranker.with_spec(**changes).tokenise(RankRequest("red", TEXTS))


def test_identities_hold_the_settings(alone: Ranker, folder: Path) -> None:
    assert ranker_identity(alone)["scorer"] == {"name": "yes_no", "yes": "y", "no": "n"}
    assert AttentionScorer().identity() == {"name": "attention"}
    one, two = (Ranker.from_pretrained(folder, scorer=f"decode:beams={n}", device="cpu") for n in (1, 2))
    assert ranker_identity(one) != ranker_identity(two)
    json.dumps(ranker_identity(one))


def test_sequences_of_names_of_every_command_that_ranks() -> None:
    for command in (("rank",), ("eval",), ("search",), ("serve",), ("mcp",), ("doctor",), ("data", "teach")):
        assert "--scorer" in run(*command, "--help").stdout, command


def test_bars_are_of_what_can_be_compared(alone: Ranker) -> None:
    """A logit below zero has a bar too; an order has none."""
    from blockrank.cli.drawing import drawing

    drawn = {
        kind: drawing(Ranker(alone.model, LengthScorer(kind)).rank("red", TEXTS[:2]), 80).plain for kind in SCORE_KINDS
    }
    assert "█" in drawn["logit"]
    assert "█" not in drawn["order"]


@dataclass(frozen=True)
class BareScorer(LengthScorer):
    """Reads any checkpoint, by a prompt of its own."""

    zero_shot = True

    def adapted(self, spec: RankSpec) -> RankSpec:
        return spec.changed(template=TEMPLATE)


def test_a_checkpoint_that_says_nothing_is_read_by_scorers_that_know(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "blockrank.json").unlink()
    ranker = Ranker.from_pretrained(bare, scorer=BareScorer())
    assert ranker.spec == RankSpec.of(layer=0, pattern="causal", query_offset=None, template=TEMPLATE)
    assert [entry.text for entry in ranker.rank("q", ["a", "ccc", "bb"])] == ["ccc", "bb", "a"]
    RequestCheck.load(bare, scorer=BareScorer())(RankRequest("q", ["a"]))
    with pytest.raises(ModelError, match=r"has no blockrank\.json"):
        Ranker.from_pretrained(bare)
    with pytest.raises(ModelError, match="does not exist"):
        Ranker.from_pretrained(tmp_path / "nowhere" / "at" / "all", scorer=BareScorer())


def test_a_checkpoint_names_its_scorer(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    RankSpec.load(folder).changed(scorer="decode:beams=3").save(own)
    ranker = Ranker.from_pretrained(own)
    assert ranker.scorer == DecodeScorer(beams=3)
    assert Ranker.from_pretrained(own, scorer="attention").scorer == AttentionScorer()
    assert RequestCheck.load(own).scorer == DecodeScorer(beams=3)
    assert ranker.with_spec(scorer="attention").scorer == AttentionScorer()
    assert ranker.with_spec(max_query_tokens=9).scorer == DecodeScorer(beams=3)
    RankSpec.load(folder).changed(scorer="decoed").save(own)
    with pytest.raises(InputError, match="scorer 'decoed' is unknown"):
        Ranker.from_pretrained(own)
