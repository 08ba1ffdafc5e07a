"""Matrix products with fused weights, in the model's own type, in int8 or in fp8."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blockrank.engine import onednn
from blockrank.engine.kernels import Quantised, quantise_rows


class Linear:
    """`x @ weight.T + bias` for a weight (outputs, inputs).

    In int8 and fp8 a weight has one scale per output and the input one per row (`Quantised`), so that the product is
    exact up to the rounding of its factors.
    """

    def __init__(self, weight_ND: Tensor, bias_N: Tensor | None, scale_N: Tensor | None = None) -> None:
        self.weight_ND, self.bias_N, self.scale_N = weight_ND, bias_N, scale_N

    @classmethod
    def fused(cls, parts: Sequence[nn.Linear]) -> Linear:
        """Several products of the same input as one; the modules keep working, as views of the fused weight."""
        weight = parts[0].weight.detach() if len(parts) == 1 else torch.cat([part.weight.detach() for part in parts])
        biases = [part.bias for part in parts]
        bias = torch.cat([item.detach() for item in biases if item is not None]) if biases[0] is not None else None
        start = 0
        for part in parts if len(parts) > 1 else ():
            part.weight.data = weight[start : start + part.out_features]
            start += part.out_features
        return cls(weight, bias)

    @property
    def takes(self) -> torch.dtype | None:
        """Its 8-bit type, None where it takes the model's own."""
        return self.weight_ND.dtype if self.scale_N is not None else None

    def quantise(self, dtype: torch.dtype) -> Linear:
        """The same product in an 8-bit type."""
        rows = quantise_rows(self.weight_ND, dtype, onednn.largest_integer() if dtype == torch.int8 else None)
        return Linear(rows.values, self.bias_N, rows.scale.flatten())

    def outputs(self, start: int, end: int) -> Linear:
        """The product for some of the outputs alone; nothing is copied."""
        bias = None if self.bias_N is None else self.bias_N[start:end]
        scale = None if self.scale_N is None else self.scale_N[start:end]
        return Linear(self.weight_ND[start:end], bias, scale)

    @property
    def accumulates(self) -> bool:
        """Whether it can add its product to a tensor on its way."""
        return self.scale_N is None and self.bias_N is None

    def activates(self, kind: str) -> bool:
        """Whether it can apply an activation on its way."""
        return self.scale_N is None and onednn.takes(self.weight_ND, kind)

    def activated(self, x: Tensor, kind: str) -> Tensor:
        """(T, outputs) the activation of the product; for one that `activates`."""
        return onednn.product(x, self.weight_ND, self.bias_N, kind)

    def __call__(self, x: Tensor | Quantised, out: Tensor | None = None) -> Tensor:
        """(T, outputs) in the model's type, into `out` where it is given."""
        if isinstance(x, Quantised):
            return self._floats(x, out) if x.values.is_floating_point() else self._integers(x, out)
        if onednn.takes(self.weight_ND):
            product = onednn.product(x, self.weight_ND, self.bias_N)
            return product if out is None else out.copy_(product)
        if self.bias_N is None:
            return torch.mm(x, self.weight_ND.t(), out=out)
        return torch.addmm(self.bias_N, x, self.weight_ND.t(), out=out)

    def add_to(self, total_TN: Tensor, x: Tensor) -> None:
        """Add the product to `total`, in place; for one that `accumulates`."""
        if onednn.takes(self.weight_ND):
            total_TN.add_(onednn.product(x, self.weight_ND, None))
            return
        total_TN.addmm_(x, self.weight_ND.t())

    def _floats(self, x: Quantised, out: Tensor | None) -> Tensor:
        assert self.scale_N is not None, "a quantised input needs a quantised weight"
        # Products are rounded to bfloat16 and the bias is added there, whatever the model's own type.
        return torch._scaled_mm(
            x.values, self.weight_ND.t(), x.scale, self.scale_N[None, :], bias=self.bias_N, out_dtype=torch.bfloat16,
            use_fast_accum=True, out=out,
        )  # fmt: skip

    def _integers(self, x: Quantised, out: Tensor | None) -> Tensor:
        assert self.scale_N is not None, "a quantised input needs a quantised weight"
        product = torch.mul(torch._int_mm(x.values, self.weight_ND.t()), x.scale, out=out)
        return product.mul_(self.scale_N) if self.bias_N is None else torch.addcmul(
            self.bias_N, product, self.scale_N, out=product
        )  # fmt: skip
