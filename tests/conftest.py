"""Shared parts: the golden models, and a tiny causal model for everything that needs one.

Tests of `blockrank/ROOM/module.py` are in `test_ROOM_module.py`, or in `test_ROOM.py` for the room as a whole; files of
other names test what goes through several rooms.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from blockrank.attention import get_backend
from blockrank.bench import timing
from blockrank.layout import PackedLayout, Segment, TokenisedRequest, pack
from blockrank.model import SEAM, LoadedModel, RankModel
from blockrank.ranker import Ranker
from blockrank.spec import RankSpec

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_INFO = json.loads((GOLDEN / "golden.json").read_text())
FAMILIES = tuple(GOLDEN_INFO["families"])
CASES = tuple(case["name"] for case in GOLDEN_INFO["families"]["mistral"]["cases"])
CPU = torch.device("cpu")
# How far apart two scores of one request may be, by the type of the weights, where they come of different forwards:
# alone or with others, encoded or remembered, with more threads. The same forward gives the same bits.
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-3, "int8": 5e-3}
# The longest wait for what an event ends: no test says how quick the machine is.
PATIENCE_S = 120.0
settings.register_profile("blockrank", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("blockrank")
# One thread, here and in child processes: models are tiny, and tests share the machine.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The tests of whole folders go to two processes, where pytest-xdist is and the command line says nothing else
    (`-n 0`); a chosen few do not, for another process takes longer to start, nor do those of a device."""
    if not config.pluginmanager.has_plugin("xdist") or hasattr(config, "workerinput"):
        return
    asked = config.option
    chosen = asked.keyword or getattr(asked, "lf", False) or asked.markexpr not in config.getini("addopts")
    alone = chosen or asked.usepdb or asked.collectonly or (os.cpu_count() or 1) == 1
    if asked.numprocesses is None and not asked.tx and not alone and all(Path(name).is_dir() for name in config.args):
        asked.numprocesses = 2
        if asked.dist == "no":  # neighbours stay together, so that what a module's tests share is rarely made twice
            asked.dist = "worksteal"


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Indices that tests and their child processes make are not kept among the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLOCKRANK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclass(frozen=True)
class GoldenCase:
    """One prompt of one golden model: token ids by segment, and what the released code gave for it."""

    segments: tuple[np.ndarray[Any, np.dtype[np.int64]], ...]
    positives: tuple[int, ...]
    expected: dict[str, torch.Tensor]


def golden_module(family: str, layers: int | None = None) -> PreTrainedModel:
    """A golden causal LM behind the seam, all layers unless told otherwise."""
    values = dict(GOLDEN_INFO["families"][family]["config"])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    config.num_hidden_layers = layers or config.num_hidden_layers
    state = {
        k: v for k, v in load_file(GOLDEN / f"{family}.safetensors").items() if k.startswith(("model.", "lm_head."))
    }
    module = AutoModelForCausalLM.from_config(config, attn_implementation=SEAM, dtype=torch.float32)
    module.load_state_dict(state, strict=layers is None)
    return module.eval()


def random_decoder(kind: str, layers: int = 3, *, head: bool = False, **changes: Any) -> PreTrainedModel:
    """A decoder of any family behind the seam, small, with random weights; `head`: with its language-model head."""
    values: dict[str, Any] = {
        "vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1 << 15,
        "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**values, **changes})
    kind_of_model = AutoModelForCausalLM if head else AutoModel
    module: PreTrainedModel = kind_of_model.from_config(config, attn_implementation=SEAM, dtype=torch.float32)
    for parameter in module.parameters():  # norms and biases too: those of a fresh model are all ones and zeros
        parameter.data += 0.05 * torch.randn_like(parameter)
    return module.eval()


def golden_case(family: str, name: str) -> GoldenCase:
    case = next(item for item in GOLDEN_INFO["families"][family]["cases"] if item["name"] == name)
    tensors = load_file(GOLDEN / f"{family}.safetensors")
    expected = {key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(f"{name}.")}
    bounds = np.cumsum([0, *case["segment_lengths"]])
    ids = expected["token_ids"].numpy().astype(np.int64)
    return GoldenCase(tuple(ids[a:b] for a, b in itertools.pairwise(bounds)), tuple(case["positives"]), expected)


def tokenised(segments: Sequence[np.ndarray[Any, np.dtype[np.int64]]]) -> TokenisedRequest:
    """Ids by segment (instruction, documents, query) as a tokenised request."""
    kinds = ["instruction", *["document"] * (len(segments) - 2), "query"]
    return TokenisedRequest(
        tuple(Segment(kind, ids, len(ids), signal_end=len(ids)) for kind, ids in zip(kinds, segments, strict=True))
    )


def golden_spec(**changes: Any) -> RankSpec:
    return RankSpec.of(**{"layer": 2, "template": "blockrank", "signal_tokens": 2, "query_offset": 16384, **changes})


def rank_model(family: str, backend: str = "sdpa", spec: RankSpec | None = None) -> RankModel:
    return RankModel(
        LoadedModel(golden_module(family), name=family), spec or golden_spec(), get_backend(backend, CPU, torch.float32)
    )


def random_layout(lengths: Sequence[int], spec: RankSpec, seed: int = 0, vocabulary: int = 512) -> PackedLayout:
    generator = np.random.default_rng(seed)
    return pack([tokenised([generator.integers(3, vocabulary, n) for n in lengths])], spec)


def dense_pairs(
    q_GNH: torch.Tensor, k_PKH: torch.Tensor, layout: PackedLayout, spec: RankSpec, scale: float
) -> Iterator[tuple[list[np.ndarray[Any, np.dtype[np.float64]]], float]]:
    """The attention of every pair of signal token and head over one request, as `RankSpec` words it, in float64: each
    document's rows (length norm applied), and the denominator."""
    q, k = q_GNH.double().numpy(), k_PKH.double().numpy()
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    heads = list(spec.readout.heads) if spec.readout.heads is not None else list(range(q.shape[1]))
    q, k = q[:, heads], k[:, heads]
    if spec.readout.joined_heads:
        q, k = q.reshape(len(q), 1, -1), k.reshape(len(k), 1, -1)
    factor = scale * spec.readout.logit_scale
    if spec.readout.cosine != "none":
        k = k / np.linalg.norm(k, axis=-1, keepdims=True)
        q = q / (np.linalg.norm(q, axis=-1, keepdims=True) if spec.readout.cosine == "both" else math.sqrt(q.shape[-1]))
        factor = spec.readout.logit_scale
    spans = list(zip(layout.starts_S.tolist(), layout.ends_S.tolist(), strict=True))
    for g, at in enumerate(layout.signal_G):
        for n in range(q.shape[1]):
            weights = np.exp(factor * (k[:, n] @ q[g, n]))
            documents = [weights[a:b] / (b - a) ** spec.readout.length_norm for a, b in spans[1:-1]]
            total = float(sum(document.sum() for document in documents))
            if spec.readout.softmax_over == "all":
                own_end = int(at) + 1 if spec.pattern.query_attention == "causal" else spans[-1][1]
                total += float(weights[slice(*spans[0])].sum() + weights[spans[-1][0] : own_end].sum())
            yield documents, total


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, `<|im_end|>` as a special token and `</think>` as an added one that is not special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken("</think>", special=False)])
    backend.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|im_end|>", eos_token="<|im_end|>")


def exhaust(kind: str) -> None:
    """Ask for more memory than any machine has, or say of a device what its library says; raises accordingly."""
    if kind == "torch on a processor":
        torch.empty(1 << 50)
    elif kind == "numpy":
        np.empty(1 << 50)
    elif kind == "python":
        bytearray(1 << 60)
    raise torch.OutOfMemoryError("CUDA out of memory.")


EXHAUSTED = ("torch on a processor", "numpy", "python", "cuda")


def same_order(one: Sequence[float], two: Sequence[float], tolerance: float) -> bool:
    """Whether two lists of scores order alike what lies further apart than the tolerance."""
    first, second = np.subtract.outer(one, one), np.subtract.outer(two, two)
    far = (np.abs(first) > tolerance) & (np.abs(second) > tolerance)
    return bool((np.sign(first) == np.sign(second))[far].all())


def failed(result: Any) -> str:
    """The sentence of a command's failure; holds that it is all there is."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("blockrank: error: ")
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


@pytest.fixture(scope="session")
def mini() -> Ranker:
    """A ranker with the embedded model."""
    return Ranker.from_pretrained(device="cpu")


@pytest.fixture
def small_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """`blockrank bench` measures the ceiling with a product that costs nothing."""
    monkeypatch.setattr(timing, "_SMALL_CEILING", (64, 2))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
