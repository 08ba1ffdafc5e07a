"""How the next token of a text is chosen, and when a text ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from blockrank.errors import InputError

_COLDEST, _HOTTEST = 0.01, 100.0  # beyond, float32 cannot tell the probabilities apart


@dataclass(frozen=True, slots=True)
class Sampling:
    """How texts are written.

    max_new_tokens: the most tokens of one text. temperature: 0 takes the most probable token each time; else logits are
    divided by it and a token is drawn. top_p: drawn from the fewest tokens, the most probable first, whose
    probabilities reach this sum. stop: strings behind which a text ends. Nothing else acts on probabilities: settings
    of a checkpoint's `generation_config.json`, such as a repetition penalty, are not read.

    Raises `InputError` where a value is out of range.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be positive, not {self.max_new_tokens}.")
        if self.temperature and not _COLDEST <= self.temperature <= _HOTTEST:
            raise InputError(
                f"temperature must be 0, or lie between {_COLDEST} and {_HOTTEST:g}; it is {self.temperature}."
            )
        if math.isnan(self.top_p) or not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if not all(self.stop):
            raise InputError("stop holds an empty string: every text would end at once.")


def choose(logits_AV: Tensor, sampling: Sampling, draws_A: Tensor) -> Tensor:
    """(A,) a next token for each row of logits, -1 where they are not finite, on their device.

    draws_A: a number in [0, 1] for each row, on the same device: where in its distribution its token is taken. So a
    row's token depends on its own logits and number alone. At a temperature of 0 they are not read.
    """
    z_AV = logits_AV.float()
    most_A = z_AV.amax(1)
    chosen_A = z_AV.argmax(1) if not sampling.temperature else _drawn((z_AV - most_A[:, None]), sampling, draws_A)
    return torch.where(most_A.isfinite(), chosen_A, -1)


def _drawn(z_AV: Tensor, sampling: Sampling, draws_A: Tensor) -> Tensor:
    """A token of each row: the inverse of the distribution function, the most probable token first."""
    p_AV, order_AV = (z_AV / sampling.temperature).softmax(1).sort(stable=True, dim=1, descending=True)
    sums_AV = p_AV.cumsum(1)
    kept_AV = sums_AV - p_AV < sampling.top_p
    kept_AV[:, 0] = True
    mass_A = torch.where(kept_AV, sums_AV, 0).amax(1)
    below_A = (sums_AV <= (draws_A * mass_A)[:, None]).sum(1)
    place_A = torch.minimum(below_A, kept_AV.sum(1) - 1)
    return order_AV.gather(1, place_A[:, None])[:, 0]
