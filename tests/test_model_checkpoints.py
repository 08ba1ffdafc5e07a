"""Checkpoints whose parts do not belong together: refused at load in one sentence, where they would rank noise."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, failed
from safetensors import safe_open
from safetensors.torch import save_file
from test_model import BASE, DOCUMENTS, SPEC, edit_weights, refusal, saved, stored
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from blockrank import InputError, ModelError, Ranker, RankSpec, Template
from blockrank.cli import app
from blockrank.model import ADAPTER_CONFIG, EMBEDDED_MODEL, load_config, load_model, resolve_device, resolve_dtype
from blockrank.model.int8_file import WEIGHTS_FILE
from blockrank.reuse.memory import MemoryStore
from blockrank.spec import SPEC_FILE

DEEP = "[" * 100_000


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A copy of the embedded model that a test may spoil."""
    folder = tmp_path / "mini"
    folder.mkdir()
    for path in EMBEDDED_MODEL.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file; a link becomes a file of its own."""
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.unlink()
    path.write_text(json.dumps(value), encoding="utf-8")


def replace_file(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


# The tokenizer


@pytest.mark.parametrize("left", [("tokenizer_config.json",), (), ("special_tokens_map.json",)])
def test_a_folder_without_a_vocabulary(left: tuple[str, ...], small: Path) -> None:
    for path in small.glob("tokenizer*"):
        if path.name not in left:
            path.unlink()
    if "special_tokens_map.json" in left:
        (small / "special_tokens_map.json").write_text('{"unk_token": "[UNK]"}', encoding="utf-8")
    assert "has no tokenizer.json, nor vocab.txt: there is no tokenizer to read text with." in refusal(small)


def test_half_of_a_vocabulary_is_none(tmp_path: Path) -> None:
    """`vocab.json` without `merges.txt`: a tokenizer of single bytes."""
    saved(tmp_path, "qwen2")
    (tmp_path / "tokenizer.json").unlink()
    rewrite(tmp_path / "tokenizer_config.json", lambda values: values.update(tokenizer_class="GPT2Tokenizer"))
    (tmp_path / "vocab.json").write_text(json.dumps(byte_tokenizer().get_vocab()), encoding="utf-8")
    assert "merges" in refusal(tmp_path)


def test_a_vocabulary_in_another_file_is_one(small: Path) -> None:
    words = json.loads((small / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    expected = Ranker.from_pretrained(device="cpu").rank("who", DOCUMENTS)
    (small / "tokenizer.json").unlink()
    (small / "vocab.txt").write_text("\n".join(sorted(words, key=words.__getitem__)) + "\n", encoding="utf-8")
    found = Ranker.from_pretrained(small, device="cpu").rank("who", DOCUMENTS)
    assert [entry.score for entry in found] == [entry.score for entry in expected]


def test_a_tiny_vocabulary(small: Path) -> None:
    (small / "tokenizer.json").unlink()
    (small / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n", encoding="utf-8")
    assert "tokens, but the model has 30522 embeddings: it is broken, or that of another model." in refusal(small)


def test_the_tokenizer_of_another_model(small: Path) -> None:
    byte_tokenizer().save_pretrained(small.parent / "bytes")
    replace_file(small / "tokenizer.json", (small.parent / "bytes" / "tokenizer.json").read_bytes())
    assert re.search(r"has 26\d tokens, but the model has 30522 embeddings: it is broken, or", refusal(small))


def test_a_token_without_an_embedding(tmp_path: Path) -> None:
    saved(tmp_path, vocab_size=250, eos_token_id=None, pad_token_id=None)
    assert re.search(r"has the token '.+' with id 255, but the model has 250 embeddings", refusal(tmp_path))


def test_control_tokens_beyond_the_embeddings_do_no_harm_unless_a_template_names_them(tmp_path: Path) -> None:
    """Checkpoints were published with a token for padding that has no embedding."""
    folder = saved(tmp_path, vocab_size=257, eos_token_id=None, pad_token_id=None)  # <|im_end|> is 257
    ranker = Ranker.from_pretrained(folder, device="cpu")
    assert len(ranker.rank("<|im_end|>", ["<|im_end|>", "a"])) == 2
    named = SPEC.changed(template=Template((), ("{text}<|im_end|>",), ("{query}",)))
    assert "document holds a token with id 257; the model has 257 embeddings" in refusal(folder, spec=named)


@pytest.mark.parametrize("rows", [258, 1000, 4000])
def test_rows_to_spare(rows: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Tables may be padded; with too many spare rows they belong to another model."""
    words = {f"w{i}": i for i in range(258, 258 if rows < 2000 else 2500)}
    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model("mistral", **{**BASE, "hidden_size": 16, "head_dim": 4, "vocab_size": rows})
    if words:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state["model"]["vocab"].update(words)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    stored(tmp_path, AutoModelForCausalLM.from_config(config), SPEC)
    tokenizer.save_pretrained(tmp_path)
    assert load_model(tmp_path, device="cpu").tokenizer is not None
    assert ("it may be that of another model" in caplog.text) is bool(words)


def test_a_vocabulary_that_can_read_nothing(tmp_path: Path) -> None:
    """Right in size, and every text is unknown to it."""
    saved(tmp_path)
    backend = Tokenizer(models.WordLevel({f"\ue000{i}": i for i in range(257)} | {"<unk>": 257}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(tmp_path)
    assert "knows too few characters to read a text in any script" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["вода река", "河里的水", "the water of river"])
def test_one_script_is_enough(text: str, tmp_path: Path) -> None:
    saved(tmp_path)
    characters = sorted(set(text) - {" "})
    backend = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate([*characters, "<unk>"])}, merges=[], unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(tmp_path)
    bare = SPEC.changed(template=Template((), ("{text}",), ("{query}",)))
    assert len(Ranker.from_pretrained(tmp_path, spec=bare, device="cpu").rank(text, [text, text[:4]])) == 2


@pytest.mark.parametrize(
    ("document", "name"),
    [("<s>{text}", "<s>"), ("{text}<|end|>", "<|end|>"), ("[CLS]{text}[SEP]", "[CLS]")],
)
def test_control_tokens_of_a_template(document: str, name: str, tmp_path: Path) -> None:
    spec = SPEC.changed(template=Template((), (document,), ("{query}",)))
    expected = f"the spec's template names {name}, which this tokenizer has not as a control token."
    assert refusal(saved(tmp_path), spec=spec) == expected


def test_angle_brackets_of_a_template_may_be_plain_text(tmp_path: Path) -> None:
    spec = SPEC.changed(template=Template((), ("<Document>: {text} [INST]",), ("<think>{query}",)))
    assert load_model(saved(tmp_path), spec=spec, device="cpu").spec == spec


# Templates and positions


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"document": ["a document"]}, "Template.document does not hold {text}"),
        ({"document": ["{title}"]}, "Template.document names {title}; what it can hold is"),
        ({"document": ["{text} {doc}"]}, "Template.document names {doc}"),
        ({"query": ["a query"]}, "Template.query does not hold {query}, nor does any other part."),
        ({"query": ["{query} {text}"]}, "Template.query names {text}; what it can hold is {count} and {query}."),
        ({"instruction": ["{text}"]}, "Template.instruction names {text}"),
        ({"document": "{text}"}, "document must be a list of which each is a string, not '{text}'."),
        ({"document": [3]}, "document must be a list of which each is a string, not [3]."),
        ({"id_base": True}, "id_base must be an integer, not True."),
        ({"colour": 1}, "unknown key 'colour'"),
    ],
)
def test_templates_that_cannot_rank(parts: dict[str, Any], words: str, tmp_path: Path) -> None:
    template = {"instruction": [], "document": ["{text}"], "query": ["{query}"], **parts}
    (saved(tmp_path) / SPEC_FILE).write_text(json.dumps({"layer": 1, "template": template}), encoding="utf-8")
    sentence = refusal(tmp_path)
    assert sentence.startswith(f"{tmp_path / SPEC_FILE} is not a valid RankSpec: ")
    assert words in sentence


def test_a_query_may_stand_in_the_instruction_alone() -> None:
    assert Template(("{query}",), ("{text}",), ("Best:",)).reads_query_first


def test_documents_over_the_positions(small: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\ntwo\n", encoding="utf-8")
    arguments = ["rank", "q", str(lines), "--model", str(small), "--max-segment-tokens"]
    sentence = failed(CliRunner().invoke(app, [*arguments, "100000"]))
    assert "max_segment_tokens is 100000, but the model has 512 positions, of which the instruction takes 0" in sentence
    assert str(small) not in sentence
    ranker = Ranker.from_pretrained(small, device="cpu")
    assert len(ranker.with_spec(max_segment_tokens=512).rank("q", ["word " * 600, "b"])) == 2
    with pytest.raises(ModelError, match=r"max_segment_tokens is 2, but 2 of a document's are the template's own"):
        ranker.with_spec(max_segment_tokens=2)
    with pytest.raises(ModelError, match=r"the query begins at position 600 and the model has 512: lower query_offset"):
        ranker.with_spec(query_offset=600)


def test_an_instruction_takes_of_the_positions(tmp_path: Path) -> None:
    folder = saved(tmp_path, max_position_embeddings=256)  # the instruction of the template takes 77
    assert "of which the instruction takes 77: 179 are left" in refusal(
        folder, spec=SPEC.changed(max_segment_tokens=180)
    )
    assert (
        load_model(folder, spec=SPEC.changed(max_segment_tokens=179), device="cpu").spec.limits.max_segment_tokens
        == 179
    )


# Weights


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.word_embeddings.weight",
        "encoder.layer.0.attention.self.query.weight",
        "encoder.layer.6.attention.self.key.weight",
    ],
)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors, name: tensors.pop(f"{name}.row_scale"), "in int8 without its row_scale"),
        (lambda tensors, name: tensors.pop(name), "row_scale, but not what it scales"),
        (lambda tensors, name: cut(tensors, f"{name}.row_scale"), "which row_scale does not fit"),
        (lambda tensors, name: tensors[f"{name}.row_scale"][1:2].fill_(torch.nan), "not above zero and finite"),
        (lambda tensors, name: tensors[f"{name}.row_scale"][1:2].fill_(0), "not above zero and finite"),
    ],
)
def test_scales_of_int8_rows(change: Any, words: str, name: str, small: Path) -> None:
    tensors, told = opened(small)
    change(tensors, name)
    write(small, tensors, told)
    sentence = refusal(small)
    assert name in sentence
    assert words in sentence


def cut(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name][:1].clone()  # would be broadcast over all rows


def opened(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def write(folder: Path, tensors: dict[str, torch.Tensor], told: dict[str, str]) -> None:
    (folder / WEIGHTS_FILE).unlink()
    save_file(tensors, folder / WEIGHTS_FILE, metadata=told)


@pytest.mark.parametrize("omitted", [None, "{", '"all"', "[1]"])
def test_a_file_that_does_not_say_what_it_omits(omitted: str | None, small: Path) -> None:
    tensors, told = opened(small)
    told.pop("omitted")
    write(small, tensors, told if omitted is None else {**told, "omitted": omitted})
    assert "does not say which weights it omits" in refusal(small)


def test_what_is_said_to_be_omitted_must_not_be_read(small: Path) -> None:
    """Zeros where a ranking looks would rank noise: the probe puts NaN there."""
    tensors, told = opened(small)
    name = "encoder.layer.0.attention.self.value.weight"
    del tensors[name], tensors[f"{name}.row_scale"]
    write(small, tensors, {**told, "omitted": json.dumps([*json.loads(told["omitted"]), name])})
    assert "yields values that are not finite" in refusal(small)
    kept = dict(load_model(EMBEDDED_MODEL, device="cpu").module.named_parameters())
    assert bool((kept["encoder.layer.6.output.dense.weight"] == 0).all()), "the probe leaves zeros"


def test_rows_in_int8_that_lost_their_mark(small: Path) -> None:
    tensors, told = opened(small)
    for name in json.loads(told["omitted"]):  # complete, so that nothing is missing
        shape = (
            tensors[name.replace("layer.6", "layer.5")].shape if "layer" in name else (384, 384)[: 1 + ("w" in name)]
        )
        tensors[name] = torch.zeros(shape)
    write(small, tensors, {"format": "pt"})
    assert "row_scale, for which its config leaves no place" in refusal(small)
    write(small, {name: tensor for name, tensor in tensors.items() if "row_scale" not in name}, {"format": "pt"})
    assert re.search(r"holds .*weight as I8, and nothing says how to scale it", refusal(small))


def test_a_weight_of_a_layer_in_use_that_has_no_place(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"  # the config says that there are none
    folder = edit_weights(saved(tmp_path), lambda tensors: tensors.update({name: torch.ones(32)}))
    assert f"holds {name}, for which its config leaves no place" in refusal(folder)


@pytest.mark.parametrize("name", ["model.layers.2.self_attn.q_proj.bias", "vision.layers.0.weight", "score.weight"])
def test_weights_beside_those_in_use_are_no_matter(name: str, tmp_path: Path) -> None:
    folder = edit_weights(saved(tmp_path), lambda tensors: tensors.update({name: torch.ones(32)}))
    assert load_model(folder, device="cpu").spec == SPEC


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_only_some_token_comes_by(value: float, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"][250, 3] = value

    folder = edit_weights(saved(tmp_path), spoil)
    assert "holds values in embed_tokens.weight that are not finite as float32: it cannot rank." in refusal(folder)
    assert "not finite" in refusal(folder, probe=False)


def test_what_an_encoder_leaves_out_is_zeros(tmp_path: Path) -> None:
    """The library would put random numbers there, and a run that starts from this model would save them."""
    values = {key: BASE[key] for key in list(BASE)[:5]}
    stored(tmp_path, BertModel(BertConfig(**values, is_decoder=True), add_pooling_layer=False), SPEC)
    model = load_model(tmp_path, device="cpu")
    assert model.weights.omitted == {"pooler.dense.weight", "pooler.dense.bias"}
    assert all(bool((dict(model.module.named_parameters())[name] == 0).all()) for name in model.weights.omitted)


# Files of settings


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"layer": 1,\n"notes": "\xff"}', ":2: not valid UTF-8."),
        ('{"layer": 1}'.encode("utf-16"), ":1: not valid UTF-8."),
        (f'{{"layer": {DEEP}'.encode(), ": not valid JSON: nested too deeply."),
        (b'{"layer": 1,\n}', ":2: not valid JSON: "),
        (b'{"layer": ' + b"9" * 5000 + b"}", ": not valid JSON: a number has too many digits."),
        (b"", ":1: not valid JSON: Expecting value at column 1."),
        (b"[]", ": a JSON object is needed, not an array."),
        (b'"spec"', ": a JSON object is needed, not a string."),
        (b'{"layer": 1, "layer": 0}', ": the key 'layer' is there twice."),
    ],
)
def test_a_spec_file_that_is_none(data: bytes, words: str, tmp_path: Path) -> None:
    (saved(tmp_path) / SPEC_FILE).write_bytes(data)
    assert refusal(tmp_path).startswith(f"{tmp_path / SPEC_FILE}{words}")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = saved(tmp_path) / SPEC_FILE
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert RankSpec.load(tmp_path) == SPEC


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{\n"a": "\xff"}', ":2: not valid UTF-8."),
        (DEEP.encode(), ": not valid JSON: nested too deeply."),
        (b"{", ":1: "),
    ],
)
def test_files_of_a_checkpoint_that_are_none(name: str, data: bytes, words: str, small: Path) -> None:
    replace_file(small / name, data)
    assert f"{small / name}{words}" in refusal(small)


INTEGER, NUMBER, FLAG = "an integer", "a finite number", "true or false"
WRONG: dict[str, tuple[str, list[Any]]] = {
    "layer": (INTEGER, ["1", True, 1.0, None, [1]]),
    "signal_tokens": ("an integer or 'query'", [True, "all", 1.0, None]),
    "heads": ("a list of which each is an integer", ["1", [True], ["a"], [1.5], 1, {}]),
    "joined_heads": (FLAG, [1, "true", None]),
    "logit_scale": (NUMBER, ["45", None, True, float("nan"), float("inf"), [1]]),
    "length_norm": (NUMBER, ["0.5", None, True, float("nan")]),
    "query_offset": (INTEGER, ["5", True, 3.5]),
    "max_segment_tokens": (INTEGER, ["256", True, 256.0, None, float("inf")]),
    "max_query_tokens": (INTEGER, ["x", True, 1e3]),
    "cosine": ("one of ('none', 'keys', 'both')", [None, True, []]),
    "prune": ("a list of which each is a list of an integer and a finite number", [3, [3], [[3]], [[1, "x"]]]),
    "template": ("a string or a table", [3, None, ["a"]]),
    "notes": ("a string", [3, None]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (_, values) in WRONG.items() for value in values])
def test_values_of_another_type(name: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        RankSpec.from_dict({"layer": 2, name: value})
    assert str(caught.value) == f"RankSpec.{name} must be {WRONG[name][0]}, not {value!r}."


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"heads": [1, 1]}, "names a head twice"),
        ({"query_offset": -3}, "counts from 0; -3 is negative"),
        ({"logit_scale": 0}, "every document would get the same score"),
        ({"version": True}, "version must be an integer, not True"),
        ({"version": 1.0}, "version must be an integer, not 1.0"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        RankSpec.from_dict({"layer": 2, **values})


def test_numbers_of_other_libraries_are_numbers() -> None:
    spec = RankSpec.of(layer=np.int64(3), heads=[np.int32(1), 2], logit_scale=np.float32(2))  # type: ignore[arg-type]
    assert spec == RankSpec.of(layer=3, heads=(1, 2), logit_scale=2.0)
    assert json.loads(json.dumps(spec.to_dict()))["readout"]["heads"] == [1, 2]


# What is asked for


@pytest.mark.parametrize(
    "dtype", ["float8_e5m2", "float8_e4m3fn", "float4_e2m1fn_x2", "complex64", "int32", "load", "", 3]
)
def test_types_that_no_model_computes_in(dtype: Any) -> None:
    with pytest.raises(InputError, match="dtype must be one of float32, bfloat16, float16, float64, fp8, int8, not "):
        resolve_dtype(dtype, torch.device("cpu"))


def test_a_device_that_keeps_no_values() -> None:
    with pytest.raises(InputError, match="device 'meta' cannot be used: "):
        resolve_device("meta")


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "--cache-mib", "inf"),
        ("serve", "--max-body-mib", "inf"),
        ("serve", "--drain", "inf"),
        ("eval", "somewhere", "--reuse-memory", "inf"),
        ("bench", "--ragged", "nan"),
        ("distil", "in.jsonl", "--encoder", "e", "-o", "out", "--epochs", "inf"),
    ],
)
def test_numbers_of_the_command_line_are_finite(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{arguments[-1]} is not a finite number" in result.stderr


@pytest.mark.parametrize("size", [float("inf"), float("nan"), "1", True, 1.5])
def test_sizes_are_integers(size: Any, mini: Ranker) -> None:
    with pytest.raises(InputError, match="max_bytes must be an integer, not"):
        MemoryStore(size)
    with pytest.raises(InputError, match="max_bytes must be an integer, not"):
        mini.with_spec().reuse(size)
    with pytest.raises(InputError, match="max_tokens must be an integer, not"):
        Ranker(mini.model, max_tokens=size)


# Adapters


def adapters(folder: Path, base: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / ADAPTER_CONFIG).write_text(json.dumps({"base_model_name_or_path": base}), encoding="utf-8")
    SPEC.save(folder)
    return folder


def test_adapters_that_are_their_own_base(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    adapters(one, str(one))
    assert refusal(one) == f"adapters are their own base, so there is no model that they belong to: {one} -> {one}."
    adapters(two, "../three")
    adapters(three, str(one / ".." / "two"))
    assert f"no model that they belong to: {two} -> " in refusal(two)
    with pytest.raises(ModelError, match="adapters are their own base"):
        load_config(three)


@pytest.mark.parametrize("base", [3, ["x"], "", None])
def test_adapters_without_a_base(base: object, tmp_path: Path) -> None:
    assert refusal(adapters(tmp_path, base)) == f"{tmp_path / ADAPTER_CONFIG} names no base model."


@pytest.mark.parametrize("base", ["../gone", "./gone"])
def test_a_base_that_is_not_there(base: str, tmp_path: Path) -> None:
    folder = adapters(tmp_path / "in", base)
    assert refusal(folder) == f"the base model of the adapters in {str(folder)!r} is not there any more: {base}."
    (folder / ADAPTER_CONFIG).write_text(DEEP, encoding="utf-8")
    assert refusal(folder) == f"{folder / ADAPTER_CONFIG}: not valid JSON: nested too deeply."


def test_a_base_beside_its_adapters(tmp_path: Path) -> None:
    saved(tmp_path / "base")
    folder = adapters(tmp_path / "in", "../base")
    assert load_config(folder).model_type == "mistral"
    shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-moved")
    assert load_config(tmp_path.parent / f"{tmp_path.name}-moved" / "in").num_hidden_layers == 3
