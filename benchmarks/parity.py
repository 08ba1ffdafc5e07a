"""How close every backend and the fused layers come to the dense reference, on random models of several families.

    python benchmarks/parity.py [--device cuda] [--out FILE]

Scores of ragged requests, alone and three packed, whose highest is several times their lowest. In float32 the largest
difference, in bfloat16 the largest and the median difference relative to the score, and Kendall's tau. The reference is
the same model in the library's layers with the `reference` backend in the same type; in bfloat16 another order of the
same roundings differs from it by the noise of the type, which the row `reference, fused` shows.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import environment, write_record
from scipy.stats import kendalltau
from transformers import AutoConfig, AutoModel

from blockrank import RankSpec
from blockrank.attention import available_backends, get_backend
from blockrank.layout import PackedLayout, Segment, TokenisedRequest, pack
from blockrank.model import SEAM, LoadedModel, RankModel
from blockrank.scorers import AttentionScorer

VOCABULARY, LAYERS, DOCUMENTS = 512, 6, 60
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 2, "head_dim": 64, "sliding_window": None},
    "llama": {"num_key_value_heads": 8, "head_dim": 64},  # no grouped heads
    "qwen3": {"num_key_value_heads": 2, "head_dim": 128},
    "gemma": {"num_key_value_heads": 1, "head_dim": 64, "hidden_activation": "gelu_pytorch_tanh"},
    "gemma3_text": {"num_key_value_heads": 4, "head_dim": 64, "layer_types": ["full_attention"] * LAYERS},
}


def module(family: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A small random model behind the seam, its keys stretched so that scores spread."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1024, num_hidden_layers=LAYERS,
        num_attention_heads=8, max_position_embeddings=1 << 15, bos_token_id=None, eos_token_id=1, pad_token_id=0,
        **FAMILIES[family],
    )  # fmt: skip
    found = AutoModel.from_config(config, attn_implementation=SEAM, dtype=torch.float32)
    found.layers[-1].self_attn.k_proj.weight.data *= 2.0 if family not in ("qwen3", "gemma3_text") else 1.0
    return found.to(device, dtype).eval()


def layout(requests: int, spec: RankSpec) -> PackedLayout:
    """Requests of documents of 1 to 200 tokens."""
    generator = np.random.default_rng(requests)

    def segment(kind: Any, size: int) -> Segment:
        return Segment(kind, generator.integers(3, VOCABULARY, size), size, signal_end=size)

    return pack(
        [
            TokenisedRequest(
                (segment("instruction", 40), *(segment("document", int(n)) for n in lengths), segment("query", 30))
            )
            for lengths in generator.integers(1, 200, (requests, DOCUMENTS))
        ],
        spec,
    )


@torch.inference_mode()
def scores(model: RankModel, packed: PackedLayout) -> np.ndarray[Any, Any]:
    """Scores of all documents, on the host."""
    return AttentionScorer().read(model, packed).scores_C.float().cpu().numpy()


def rows(family: str, device: torch.device, dtype: torch.dtype, requests: int) -> list[dict[str, Any]]:
    """Every backend that can run, in the library's layers and fused."""
    spec = RankSpec.of(layer=LAYERS - 1)
    packed = layout(requests, spec)
    model = RankModel(
        LoadedModel(module(family, device, dtype), name=family), spec, get_backend("reference", device, dtype)
    )
    expected = scores(model, packed)
    names = [item.name for item in available_backends(device, dtype) if item.reason is None]
    found = []
    for layers in ("library", "fused"):
        if layers == "fused":
            model.weights.fuse()
        for name in names:
            model.backend = get_backend(name, device, dtype)
            got = scores(model, packed)
            relative = np.abs(got - expected) / expected
            found.append({
                "family": family, "dtype": str(dtype).removeprefix("torch."), "requests": requests, "layers": layers,
                "backend": name, "spread": round(float(expected.max() / expected.min()), 1),
                "largest_difference": float(np.abs(got - expected).max()), "largest_relative": float(relative.max()),
                "median_relative": float(np.median(relative)), "tau": float(kendalltau(got, expected).statistic),
            })  # fmt: skip
    return found


def main() -> None:
    """Measure and write a dated record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    table = []
    for dtype, family, requests in itertools.product((torch.float32, torch.bfloat16), FAMILIES, (1, 3)):
        for row in rows(family, torch.device(options.device), dtype, requests):
            table.append(row)
            sys.stdout.write(
                f"{row['dtype']:<9} {family:<12} {requests} {row['layers']:<8}{row['backend']:<10} "
                f"spread {row['spread']:>6} largest {row['largest_difference']:.1e} "
                f"relative {row['largest_relative']:.1e} median {row['median_relative']:.1e} tau {row['tau']:.4f}\n"
            )
    if options.out:
        write_record(options.out, {**environment(), "rows": table})


if __name__ == "__main__":
    main()
