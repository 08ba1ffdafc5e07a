"""Scores and hidden states of the released code, reproduced by every backend that runs on a CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CASES, FAMILIES, golden_case, rank_model, tokenised

from blockrank.engine.capture import Wanted
from blockrank.layout import pack
from blockrank.readout.signals import log_scores


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("case_name", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_states_equal_the_released_code(family: str, case_name: str, backend: str) -> None:
    case, model = golden_case(family, case_name), rank_model(family, backend)
    layout = pack([tokenised(case.segments)], model.spec)
    assert layout.positions_T.tolist() == case.expected["position_ids"].tolist()
    with torch.inference_mode():
        capture = model.forward(layout, replace(Wanted.read_out(model.spec), hidden_R=np.arange(layout.tokens)))
        scores = log_scores(capture.only.q_GNH, capture.only.k_PKH, layout, model.spec, capture.only.scale).exp()
    assert capture.hidden_RD is not None
    torch.testing.assert_close(scores, case.expected["scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(capture.hidden_RD, case.expected["hidden_last"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_last_token_logits_equal_the_released_code(family: str) -> None:
    case, model = golden_case(family, "ragged12"), rank_model(family)
    layout = pack([tokenised(case.segments)], model.spec)
    with torch.inference_mode():
        capture = model.forward(layout, Wanted(logits_R=np.array([layout.tokens - 1])))
    assert capture.logits_RV is not None
    torch.testing.assert_close(capture.logits_RV[0], case.expected["last_token_logits"], atol=1e-4, rtol=0)
