"""Losses against values worked out by hand and against the released code."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import CASES, FAMILIES, golden_case
from torch import Tensor

from blockrank.train import losses

ABSENT = -math.inf


def table(*rows: list[float]) -> Tensor:
    """Log scores from scores, absent where negative."""
    return torch.tensor([[math.log(value) if value > 0 else ABSENT for value in row] for row in rows])


def mask(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def test_info_nce_by_hand() -> None:
    exps = [math.exp(value / 0.05) for value in (0.5, 0.3, 0.2)]
    one = losses.info_nce(table([0.5, 0.3, 0.2]), mask([0, 1, 0]))
    assert float(one) == pytest.approx(-math.log(exps[1] / sum(exps)), abs=1e-5)
    several = losses.info_nce(table([0.5, 0.3, 0.2]), mask([1, 0, 1]))
    assert float(several) == pytest.approx(-math.log((exps[0] + exps[2]) / sum(exps)), abs=1e-6)
    warm = losses.info_nce(table([0.5, 0.3, 0.2]), mask([1, 0, 0]), temperature=1.0)
    assert float(warm) == pytest.approx(-math.log(math.exp(0.5) / sum(map(math.exp, (0.5, 0.3, 0.2)))), abs=1e-6)


def test_cross_entropy_by_hand() -> None:
    scores = table([0.5, 0.3, 0.2])
    assert float(losses.attention_cross_entropy(scores, mask([1, 0, 1]))) == pytest.approx(-math.log(0.7), abs=1e-6)
    squared = losses.attention_cross_entropy(scores, mask([1, 0, 0]), temperature=0.5)
    assert float(squared) == pytest.approx(-math.log(0.25 / (0.25 + 0.09 + 0.04)), abs=1e-6)


@pytest.mark.parametrize("form", [losses.info_nce, losses.attention_cross_entropy])
def test_requests_are_averaged_and_absent_candidates_ignored(form: Any) -> None:
    rows = [([0.5, 0.3, 0.2], [0, 1, 0]), ([0.6, 0.4, -1], [0, 1, 0]), ([0.6, 0.4, -1], [0, 0, 0])]
    alone = [float(form(table(scores), mask(marks))) for scores, marks in rows[:2]]
    batch = form(table(*(scores for scores, _ in rows)), mask(*(marks for _, marks in rows)))
    assert float(batch) == pytest.approx(sum(alone) / 2, abs=1e-6)
    assert alone[1] == pytest.approx(float(form(table([0.6, 0.4]), mask([0, 1]))), abs=1e-6)
    leaf = table([0.6, 0.4]).requires_grad_()
    nothing = form(leaf, mask([0, 0]))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert leaf.grad is not None
    assert bool((leaf.grad == 0).all())


def test_list_kl_by_hand() -> None:
    student, teacher = [0.5, 0.3, 0.2], [0.2, 0.7, 0.1]
    expected = sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))
    logits = torch.tensor([[math.log(value) + 3 for value in teacher]])
    assert float(losses.list_kl(table(student), logits, teacher_temperature=1)) == pytest.approx(expected, abs=1e-6)
    assert float(losses.list_kl(table(student), table(student), teacher_temperature=1)) == pytest.approx(0, abs=1e-6)
    padded = losses.list_kl(table([*student, -1.0]), torch.tensor([[*logits[0].tolist(), 99.0]]), teacher_temperature=1)
    assert float(padded) == pytest.approx(expected, abs=1e-6)


def test_margin_mse_by_hand() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.5], [1.0, 3.0, ABSENT]])
    teacher = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 5.0]])
    found = losses.margin_mse(scores, teacher, mask([1, 0, 0], [0, 1, 0]), scale=2.0)
    assert float(found) == pytest.approx(((1 - 2) ** 2 + (1.5 - 2) ** 2 + (2 - 2) ** 2) / 3)
    assert float(losses.margin_mse(scores, teacher, mask([0, 0, 0], [0, 0, 0]))) == 0


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_info_nce_equals_the_released_code(family: str, name: str) -> None:
    case = golden_case(family, name)
    positives = torch.zeros(1, len(case.expected["scores"]), dtype=torch.bool)
    positives[0, list(case.positives)] = True
    found = losses.info_nce(case.expected["scores"].log()[None], positives)
    torch.testing.assert_close(found, case.expected["aux_loss"].squeeze(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "loss",
    [
        lambda scores, teacher, positives: losses.info_nce(scores, positives),
        lambda scores, teacher, positives: losses.attention_cross_entropy(scores, positives, 0.5),
        lambda scores, teacher, positives: losses.list_kl(scores, teacher, 0.5),
        lambda scores, teacher, positives: losses.margin_mse(scores, teacher, positives),
    ],
)
def test_gradients_are_finite_beside_absent_candidates(loss: Any) -> None:
    logits = torch.randn(2, 4, requires_grad=True)
    absent = mask([0, 0, 0, 0], [0, 0, 1, 1])
    scores = logits.masked_fill(absent, ABSENT).log_softmax(1)
    loss(scores, torch.randn(2, 4), mask([1, 0, 0, 1], [0, 1, 0, 0])).backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert bool((logits.grad[1, 2:] == 0).all())
