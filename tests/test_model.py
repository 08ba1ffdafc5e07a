"""Loading: what passes the probe, what it refuses and in which words, and that nothing above the layer is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertModel, PreTrainedModel

from blockrank import BUILT_IN_SPECS, InputError, ModelError, Ranker, RankSpec
from blockrank.layout import PromptTokenizer
from blockrank.model import Needs, load_model, load_tokenizer, resolve_device, resolve_spec
from blockrank.model.int8_file import WEIGHTS_FILE, is_int8, read_int8, write_int8
from blockrank.spec import SPEC_FILE

SPEC = RankSpec.of(layer=1, template="query-free", signal_tokens=2, query_offset=None)
BASE: dict[str, Any] = {
    "vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024, "bos_token_id": None,
    "eos_token_id": 257, "pad_token_id": 257,
}  # fmt: skip
DOCUMENTS = ["one text", "another text", "the third"]


def saved(folder: Path, kind: str = "mistral", spec: RankSpec | None = SPEC, **changes: Any) -> Path:
    """A tiny random model in the hub's format, with a spec unless told otherwise."""
    config = AutoConfig.for_model(kind, **{**BASE, **changes})
    return stored(folder, AutoModelForCausalLM.from_config(config), spec)


def stored(folder: Path, module: PreTrainedModel, spec: RankSpec | None) -> Path:
    module.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    if spec is not None:
        spec.save(folder)
    return folder


def edit_weights(folder: Path, change: Any) -> Path:
    """Apply `change` to the saved tensors, in place."""
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return folder


def refusal(folder: Path | str, **options: Any) -> str:
    """The sentence of the refusal: one line, closed by a full stop."""
    with pytest.raises(ModelError) as caught:
        load_model(folder, device="cpu", **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


# What passes

FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma3_text": {"layer_types": ["full_attention"] * 3},
    "olmo2": {},
    "phi3": {},
    "gpt_neox": {},
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_families_that_rank(kind: str, tmp_path: Path) -> None:
    ranker = Ranker.from_pretrained(saved(tmp_path, kind, **FAMILIES[kind]), device="cpu")
    ranking = ranker.rank("which text", DOCUMENTS)
    assert sum(entry.score for entry in ranking) == pytest.approx(1, abs=1e-5)
    assert len({round(entry.score, 9) for entry in ranking}) == 3


@pytest.mark.parametrize("attend", ["causal", "bidirectional"])
def test_a_bert_ranks(attend: Any, tmp_path: Path) -> None:
    values = {key: BASE[key] for key in list(BASE)[:5]}
    module = BertModel(BertConfig(**values, is_decoder=True), add_pooling_layer=False)
    stored(tmp_path, module, SPEC.changed(document_attention=attend, query_attention=attend))
    assert len(Ranker.from_pretrained(tmp_path, device="cpu").rank("q", DOCUMENTS)) == 3


def test_a_spec_by_object_or_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, spec=None)
    assert load_model(tmp_path, spec=SPEC, device="cpu").spec is SPEC
    monkeypatch.setitem(BUILT_IN_SPECS, "tiny", SPEC)
    assert load_model(tmp_path, spec="tiny", device="cpu").spec is SPEC
    assert resolve_spec("tiny", None) is SPEC
    with pytest.raises(InputError, match="spec 'other' is unknown; built in are"):
        load_model(tmp_path, spec="other")


def test_a_tokenizer_comes_without_weights(tmp_path: Path) -> None:
    (saved(tmp_path) / WEIGHTS_FILE).unlink()
    tokenizer, library = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, PromptTokenizer)
    assert library.convert_ids_to_tokens(tokenizer.encode("ab").tolist()) == ["a", "b"]


# Layers above


def test_upper_layers_are_never_built_nor_read(tmp_path: Path) -> None:
    saved(tmp_path)
    whole = load_model(tmp_path, device="cpu", needs=Needs(logits=True))
    assert whole.module.config.num_hidden_layers == 3
    expected = [entry.score for entry in Ranker(whole).rank("which text", DOCUMENTS)]

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if "layers.2." in name or name.startswith("lm_head"):
                tensors[name] = torch.full((1,), torch.nan)

    cut = load_model(edit_weights(tmp_path, spoil), device="cpu")
    assert len(cut.module.layers) == 2
    assert not any("layers.2." in name or "lm_head" in name for name, _ in cut.module.named_parameters())
    found = [entry.score for entry in Ranker(cut).rank("which text", DOCUMENTS)]
    assert found == pytest.approx(expected, abs=1e-6)
    assert "in another shape than its config says" in refusal(tmp_path, needs=Needs(logits=True))


def test_upper_layers_may_be_missing(tmp_path: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "layers.2." in name]:
            del tensors[name]

    edit_weights(saved(tmp_path), drop)
    assert len(load_model(tmp_path, device="cpu").module.layers) == 2


# What cannot be loaded


def test_a_weight_is_missing(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    folder = edit_weights(saved(tmp_path), lambda tensors: tensors.pop(name))
    sentence = refusal(folder)
    assert "lacks 1 of its model's weights" in sentence
    assert "layers.1.self_attn.k_proj.weight" in sentence


def test_a_weight_of_another_shape(tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 3)

    assert "holds layers.0.mlp.up_proj.weight in another shape" in refusal(edit_weights(saved(tmp_path), change))


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    state = load_file(saved(tmp_path) / WEIGHTS_FILE)
    (tmp_path / WEIGHTS_FILE).unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert "cannot be loaded" in refusal(tmp_path)


def test_a_file_that_is_no_safetensors(tmp_path: Path) -> None:
    (saved(tmp_path) / WEIGHTS_FILE).write_bytes(b"nothing of the kind")
    assert "cannot be loaded: " in refusal(tmp_path)


def test_an_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refusal("no/such-model").startswith("model 'no/such-model' is neither a folder nor a reachable hub")
    assert (
        refusal("no/such-model", spec=SPEC)
        == "model 'no/such-model' is neither a folder nor a reachable hub repository."
    )


def test_folders_that_are_none_or_not_complete(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none", spec=SPEC)
    assert f"has no {SPEC_FILE}" in refusal(saved(tmp_path, spec=None))
    (tmp_path / SPEC_FILE).write_text('{"layer": 1, "colour": 2}', encoding="utf-8")
    assert "is not a valid RankSpec" in refusal(tmp_path)
    SPEC.save(tmp_path)
    for values in ({"model_type": "unheard-of"}, {"model_type": "mistral", "hidden_size": "wide"}):
        (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
        assert "cannot be read: " in refusal(tmp_path)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    for path in saved(tmp_path).glob("tokenizer*"):
        path.unlink()
    assert "cannot be read: " in refusal(tmp_path)


def test_a_spec_beyond_the_model(tmp_path: Path) -> None:
    saved(tmp_path)
    assert refusal(tmp_path, spec=SPEC.changed(layer=3)) == "the spec reads layer 3, but the model has 3 layers."
    assert "reads heads [4]" in refusal(tmp_path, spec=SPEC.changed(heads=(0, 4)))


def test_a_prompt_beyond_the_position_table(tmp_path: Path) -> None:
    folder = saved(tmp_path, max_position_embeddings=160)
    spec = SPEC.changed(query_offset=110, max_segment_tokens=64)
    ranker = Ranker.from_pretrained(folder, spec=spec, device="cpu")
    assert len(ranker.rank("why", DOCUMENTS)) == 3
    with pytest.raises(InputError, match=r"reaches position \d+ and the model has 160") as caught:
        ranker.rank("a question that is too long", DOCUMENTS)
    assert str(tmp_path) not in str(caught.value), "callers of a server would read where the model is"


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    for name in ("tpu", "cpu0", "cuda:99"):
        with pytest.raises(InputError, match=f"device '{name}' cannot be used: "):
            Ranker.from_pretrained(device=name)


# int8 weights


def test_int8_rows_are_close_and_omissions_are_told(tmp_path: Path) -> None:
    state = {"w": torch.randn(7, 33), "zero": torch.zeros(2, 3), "bias": torch.randn(5), "gone": torch.ones(2, 2)}
    state["w"][0] *= 100
    write_int8(state, tmp_path, omit=["gone"])
    found, omitted = read_int8(tmp_path)
    assert is_int8(tmp_path)
    assert omitted == {"gone"}
    assert set(found) == {"w", "zero", "bias"}
    step = state["w"].abs().amax(1, keepdim=True) / 127
    assert bool(((found["w"] - state["w"]).abs() <= step * 0.57).all())
    assert bool((found["zero"] == 0).all())
    torch.testing.assert_close(found["bias"], state["bias"], atol=0, rtol=1e-3)


def test_an_int8_checkpoint_ranks(tmp_path: Path) -> None:
    whole = Ranker.from_pretrained(saved(tmp_path / "whole"), device="cpu")
    folder = tmp_path / "small"
    shutil.copytree(tmp_path / "whole", folder)
    state = whole.model.module.state_dict()
    never_read = [name for name in state if name.startswith(("layers.1.mlp.", "norm."))]
    write_int8(state, folder, omit=never_read)
    assert not is_int8(tmp_path / "whole")
    small = Ranker.from_pretrained(folder, device="cpu")
    scores = [{entry.index: entry.score for entry in ranker.rank("which", DOCUMENTS)} for ranker in (whole, small)]
    np.testing.assert_allclose([scores[1][i] for i in range(3)], [scores[0][i] for i in range(3)], atol=0.02)
    write_int8({name: state[name] for name in state if "layers.0.self_attn.q_proj" not in name}, folder)
    assert "layers.0.self_attn.q_proj.weight" in refusal(folder)
