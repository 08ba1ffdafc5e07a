"""The small forward at load: what it tells and what it forgives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    CPU,
    random_decoder,
)
from test_engine import decoder_model
from test_model import edit_weights, refusal, saved
from test_pattern import CAUSAL
from torch import Tensor

from blockrank import ModelError
from blockrank.attention import get_backend
from blockrank.model import LoadedModel, RankModel
from blockrank.model.probe import probe_model, rows_apart


def test_the_probe_compares_fused_layers_with_the_librarys() -> None:
    model = decoder_model()
    model.weights.fuse()
    probe_model(model)
    assert model.decoder is not None
    model.decoder.blocks[1].middle = replace(model.decoder.blocks[0].entry, shift=0.5)  # type: ignore[type-var]
    with pytest.raises(
        ModelError, match=r"fused layers of MistralModel .* differ from its own .* pass layers='library'"
    ):
        probe_model(model)


def test_the_probe_forgives_a_row_that_half_precision_throws_off_and_no_more() -> None:
    right = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    one_row, every_row, broken = right.clone(), right * 1.25, right.clone()
    one_row[1] *= 3
    broken[1, 0, 0] = torch.nan
    assert rows_apart(one_row, right) == 0
    assert rows_apart(one_row.float(), right.float()) == pytest.approx(2, rel=1e-2)
    assert rows_apart(every_row, right) == pytest.approx(0.25, abs=0.01)
    assert rows_apart(torch.cat((right[:30], every_row[30:])), right) > 0.24  # a quarter of the rows
    assert rows_apart(broken, right) == float("inf")


def test_the_probe_passes_and_tells_a_leak() -> None:
    model = RankModel(
        LoadedModel(random_decoder("qwen3"), name="tiny"), CAUSAL, get_backend("sdpa", CPU, torch.float32)
    )
    model.weights.fuse()
    probe_model(model)

    class Leaking(type(model.backend)):  # type: ignore[misc]
        def attend(self, q_TNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, plan: Any, scale: float) -> Tensor:
            return super().attend(q_TNH, k_PKH, v_PKH, plan, scale) + v_PKH.mean()

    model.backend = Leaking()
    with pytest.raises(ModelError, match="lets one document influence what stands before it"):
        probe_model(model)


@pytest.mark.parametrize("weight", ["model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.k_proj.weight"])
def test_weights_that_are_not_finite(weight: str, tmp_path: Path) -> None:
    folder = edit_weights(saved(tmp_path), lambda tensors: tensors[weight].fill_(torch.nan))
    assert f"holds values in {weight.removeprefix('model.')} that are not finite as float32" in refusal(folder)
