"""The seam: what a model may do in attention, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_model import DOCUMENTS, SPEC, refusal, saved, stored
from transformers import AutoConfig, AutoModelForCausalLM

from blockrank import ModelError, Ranker
from blockrank.model import load_model


def test_a_window_wider_than_the_prompt_passes(tmp_path: Path) -> None:
    model = load_model(saved(tmp_path, sliding_window=512), device="cpu")
    assert model.name == str(tmp_path)


def test_a_model_that_bypasses_the_seam(tmp_path: Path) -> None:
    config = AutoConfig.for_model("bloom", vocab_size=258, hidden_size=32, n_layer=3, n_head=4)
    stored(tmp_path, AutoModelForCausalLM.from_config(config), SPEC)
    assert "Bloom" in refusal(tmp_path)


def test_a_soft_cap(tmp_path: Path) -> None:
    sentence = refusal(saved(tmp_path, "gemma2", sliding_window=4096))
    assert "softcap" in sentence
    assert "cannot honour" in sentence


def test_attention_sinks(tmp_path: Path) -> None:
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    assert "s_aux" in refusal(saved(tmp_path, "gpt_oss", layer_types=["full_attention"] * 3, **experts))


def test_a_window_that_binds(tmp_path: Path) -> None:
    sentence = refusal(saved(tmp_path, sliding_window=8))
    assert "sliding_window=8" in sentence


def test_a_window_that_binds_on_long_prompts_alone(tmp_path: Path) -> None:
    ranker = Ranker.from_pretrained(saved(tmp_path, sliding_window=256), device="cpu")
    assert len(ranker.rank("q", DOCUMENTS)) == 3
    with pytest.raises(ModelError, match="sliding_window=256"):
        ranker.rank("q", ["x" * 300])


def test_dropout_in_attention(tmp_path: Path) -> None:
    model = load_model(saved(tmp_path, attention_dropout=0.5), device="cpu")
    model.module.train()
    with pytest.raises(ModelError, match="attention dropout"):
        Ranker(model).rank("q", DOCUMENTS)
    assert load_model(tmp_path, device="cpu", omit_dropout=True).module.config.attention_dropout == 0
