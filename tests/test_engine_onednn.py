"""8-bit and float products through oneDNN."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from blockrank.engine import onednn
from blockrank.engine.linear import Linear


@pytest.mark.skipif(not onednn.takes(torch.empty(0)), reason="this processor gains nothing by it")
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_through_onednn_is_the_product(dtype: torch.dtype, biased: bool) -> None:
    if not onednn.takes(torch.empty(0, dtype=dtype)):
        pytest.skip(f"this processor does not compute in {dtype}")
    linear = Linear(torch.randn(48, 64).to(dtype), torch.randn(48).to(dtype) if biased else None)
    bias = 0 if linear.bias_N is None else linear.bias_N.double()
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    whole = torch.randn(70, 64).to(dtype)
    whole[40:] = torch.nan  # rows behind those that are asked for do not count
    for x in (whole[:1], whole[:16], whole[:37], whole[3:40], whole[:37].clone(), whole[:0], whole.t()[:, :37].t()):
        expected = x.double() @ linear.weight_ND.double().t() + bias
        torch.testing.assert_close(linear(x).double(), expected, **tolerance)
        out = torch.full((len(x), 48), torch.nan, dtype=dtype)
        assert linear(x, out=out) is out
        torch.testing.assert_close(out.double(), expected, **tolerance)
        for kind, approximate in (("gelu", "none"), ("gelu_tanh", "tanh")):
            assert linear.activates(kind)
            found = linear.activated(x, kind).double()
            torch.testing.assert_close(found, F.gelu(expected, approximate=approximate), **tolerance)
        if linear.accumulates:
            total = torch.ones(len(x), 48, dtype=dtype)
            linear.add_to(total, x)
            torch.testing.assert_close(total.double(), expected + 1, **tolerance)
    assert not linear.activates("silu")


def test_what_onednn_is_not_asked_for() -> None:
    for weight in (torch.empty(0, dtype=torch.float64), torch.empty(0, device="meta")):
        assert not onednn.takes(weight)
    assert not Linear(torch.randn(48, 64), None).quantise(torch.int8).activates("gelu")


def test_integer_products_are_exact_without_instructions_for_them() -> None:
    """On AVX2 alone sums of pairs overflow in silence where a weight uses all 8 bits."""
    code = """
import torch
from blockrank.engine.kernels import quantise_rows
from blockrank.engine.linear import Linear
weight, x = torch.ones(48, 64), torch.ones(20, 64)
weight[::2] = -1
product = Linear(weight, None).quantise(torch.int8)(quantise_rows(x, torch.int8))
torch.testing.assert_close(product, x @ weight.t())
"""
    exec(code, {})  # with what this processor has
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"})
