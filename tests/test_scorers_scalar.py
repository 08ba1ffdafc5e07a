"""Checkpoints for sequence classification with one output: scores are the library's own logits, packed or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CPU, TOLERANCE, byte_tokenizer, random_decoder
from safetensors.torch import load_file, save_file
from test_scorers_pointwise import QUERY, TEXTS, by_text, chat_tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification

from blockrank import InputError, ModelError, Ranker, RankSpec, Template
from blockrank.attention import get_backend
from blockrank.model import LoadedModel, Needs, RankModel, load_model
from blockrank.spec import BARE_SPEC

SCALAR = "scalar:start=</think>,end=<|im_end|>"
OWN = Template(("Query: {query}\n",), ("Text: {text}\n",), (), chat=True)


def save(folder: Path, kind: str = "qwen3", labels: int = 1, tokenizer: str = "bytes") -> Path:
    """A tiny checkpoint for sequence classification."""
    config = random_decoder(kind).config
    config.num_labels, config.pad_token_id = labels, None
    module = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    for weight in module.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    module.save_pretrained(folder)
    chat_tokenizer(tokenizer).save_pretrained(folder)
    return folder


def plain(folder: Path, prompt: str) -> float:
    """The library's own logit of a prompt that it tokenises itself."""
    module = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    ids = byte_tokenizer()(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return float(module(ids).logits[0, 0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("scalar"))


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("packed", ["", ",packed=false"])
def test_scores_are_the_librarys_own_logits(tmp_path: Path, kind: str, packed: str) -> None:
    folder = save(tmp_path, kind)
    ranker = Ranker.from_pretrained(folder, scorer=SCALAR + packed, device="cpu")
    expected = {
        text: plain(folder, f"</think>query: {QUERY}</think>document: {text.strip()}<|im_end|>") for text in TEXTS
    }
    assert max(expected.values()) - min(expected.values()) > 1e-3
    assert by_text(ranker, TEXTS) == pytest.approx(expected, abs=TOLERANCE["float32"])
    assert (ranker.model.decoder is None) == (kind == "gpt2")
    if ranker.model.decoder is not None:
        library = Ranker.from_pretrained(folder, scorer=SCALAR + packed, device="cpu", layers="library")
        assert by_text(library, TEXTS) == pytest.approx(expected, abs=TOLERANCE["float32"])
    assert ranker.rank(QUERY, TEXTS).kind == "logit"


def test_a_checkpoint_that_names_the_scorer_is_asked_in_its_own_words(tmp_path: Path) -> None:
    folder = save(tmp_path)
    RankSpec.of(layer=0, template=OWN, scorer="scalar:packed=true").save(folder)
    ranker = Ranker.from_pretrained(folder, device="cpu")
    expected = {}
    for text in TEXTS:
        turn = [{"role": "user", "content": f"Query: {QUERY}\nText: {text.strip()}\n"}]
        chat = chat_tokenizer("bytes").apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        expected[text] = plain(folder, chat)
    assert by_text(ranker, TEXTS) == pytest.approx(expected, abs=TOLERANCE["float32"])


def test_a_head_with_a_bias_adds_it(folder: Path) -> None:
    model = load_model(folder, spec=BARE_SPEC, device="cpu", needs=Needs(score=True))
    before = by_text(Ranker(model, SCALAR), TEXTS)
    head = torch.nn.Linear(32, 1)
    head.weight.data, head.bias.data = model.module.score.weight.data, torch.tensor([2.0])
    model.module.score = head
    assert by_text(Ranker(model, SCALAR), TEXTS) == pytest.approx({text: 2 + score for text, score in before.items()})


def edited(folder: Path, change: Any) -> Path:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.pop("score.weight"), "has no head that gives one score"),
        (lambda state: state.pop("model.norm.weight"), "lacks 1 of its model's weights, such as model.norm.weight"),
        (lambda state: state.update({"score.weight": torch.zeros(2, 32)}), "score.weight in another shape"),
        (lambda state: state.update({"model.layers.0.self_attn.x": torch.zeros(2)}), "its config leaves no place"),
        (lambda state: state.update({"score.bias": torch.zeros(1)}), "score.bias, for which its config leaves no"),
    ],
)
def test_weights_that_are_missing_or_left_over_are_one_sentence(tmp_path: Path, change: Any, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        Ranker.from_pretrained(edited(save(tmp_path), change), scorer=SCALAR, device="cpu")


def test_checkpoints_of_another_kind_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match="has 2 labels by its config"):
        Ranker.from_pretrained(save(tmp_path / "two", labels=2), scorer=SCALAR, device="cpu")
    causal = random_decoder("qwen3", head=True)
    causal.config.num_labels = 1
    causal.save_pretrained(tmp_path / "causal")
    byte_tokenizer().save_pretrained(tmp_path / "causal")
    with pytest.raises(ModelError, match="has no head that gives one score"):
        Ranker.from_pretrained(tmp_path / "causal", scorer=SCALAR, device="cpu")
    config = AutoConfig.for_model("bert", vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                                  num_attention_heads=2, num_labels=1)  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "bert")
    byte_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="BertForSequenceClassification, whose head is not one product named 'score'"):
        Ranker.from_pretrained(tmp_path / "bert", scorer=SCALAR, device="cpu")
    with pytest.raises(ModelError, match="no language-model head"):
        Ranker.from_pretrained(folder, scorer="pointwise:yes=y,no=n", device="cpu")
    plain_model = RankModel(
        LoadedModel(random_decoder("qwen3"), byte_tokenizer()), BARE_SPEC, get_backend("sdpa", CPU, torch.float32)
    )
    with pytest.raises(ModelError, match=r"has no head that gives one score.*the scorer 'scalar' needs it"):
        Ranker(plain_model, SCALAR)


def test_evidence_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="the scorer 'scalar' gives no evidence"):
        Ranker.from_pretrained(folder, scorer=SCALAR, device="cpu").rank(QUERY, TEXTS, evidence=True)


def test_the_prompt_is_that_of_rankllama(folder: Path) -> None:
    """The first token stands before the query and before the document; nothing ends the text."""
    template = Ranker.from_pretrained(folder, scorer="scalar:start=</think>", device="cpu").spec.prompt
    assert template == Template(("</think>", "query: {query}"), ("</think>", "document: {text}", ""), ())
