"""Known shapes of models, to be measured with random weights: speed does not depend on what the weights are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blockrank.spec import BUILT_IN_SPECS, RankSpec

# The rotary positions of a random model mean nothing: a wide range lets every grid run.
_POSITIONS = 1 << 20


@dataclass(frozen=True, slots=True)
class KnownShape:
    """A model without its weights. family: its `model_type` in transformers; values: of that family's config class,
    every layer counted; spec: how it is read."""

    family: str
    values: Mapping[str, int | None]
    spec: RankSpec


def _qwen3(width: int, inner: int, layers: int, heads: int) -> dict[str, int | None]:
    return {
        "vocab_size": 151936, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": _POSITIONS,
    }  # fmt: skip


KNOWN_SHAPES: dict[str, KnownShape] = {
    "mistral-7b": KnownShape(
        "mistral",
        {
            "vocab_size": 32768, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "max_position_embeddings": _POSITIONS, "sliding_window": None,
        },
        BUILT_IN_SPECS["quicktensor/blockrank-msmarco-mistral-7b"],
    ),
    "qwen3-4b": KnownShape(
        "qwen3", _qwen3(2560, 9728, 36, 32), BUILT_IN_SPECS["blockrank-qwen3-reranker-4b"]
    ),
    "qwen3-0.6b": KnownShape("qwen3", _qwen3(1024, 3072, 28, 16), RankSpec.of(layer=17)),
    "tiny": KnownShape(
        "qwen3",
        {
            "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": _POSITIONS,
        },
        RankSpec.of(layer=1),
    ),
}  # fmt: skip
