"""Losses against values worked out by hand and against the released code, and what holds for all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import pytest
import torch
from conftest import CASES, FAMILIES, golden_case
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from blockrank.train import losses
from blockrank.train.config import LossConfig

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


# Lists


def test_list_kl_and_listnet_by_hand() -> None:
    student, teacher = [0.5, 0.3, 0.2], [0.2, 0.7, 0.1]
    logits = torch.tensor([[math.log(value) + 3 for value in teacher]])
    expected = 0.2 * math.log(0.2 / 0.5) + 0.7 * math.log(0.7 / 0.3) + 0.1 * math.log(0.1 / 0.2)
    assert float(losses.list_kl(table(student), logits)) == pytest.approx(expected, abs=1e-6)
    assert float(losses.list_kl(table(student), table(student))) == pytest.approx(0, abs=1e-6)
    expected = -0.2 * math.log(0.5) - 0.7 * math.log(0.3) - 0.1 * math.log(0.2)
    assert float(losses.listnet(table(student), logits)) == pytest.approx(expected, abs=1e-6)


def test_ranks_share_places_among_equals() -> None:
    scores = torch.tensor([[3.0, 1.0, 3.0, 5.0, 1.0, 1.0], [7.0, 9.0, 7.0, 99.0, 99.0, -1.0]])
    present = mask([1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0])
    found = losses.ranks(scores, present)
    assert found[0].tolist() == [2.5, 5, 2.5, 1, 5, 5]
    assert found[1, :3].tolist() == [2.5, 1, 2.5]


def test_adr_mse_by_hand() -> None:
    # sigmoid(ln 2) is 2/3: soft ranks of shares 2:1 are 4/3 and 5/3.
    scores = table([2 / 3, 1 / 3])
    best_last = ((2 - 4 / 3) ** 2 / math.log2(3) + (1 - 5 / 3) ** 2 / math.log2(2)) / 2
    assert float(losses.adr_mse(scores, torch.tensor([[0.1, 0.4]]))) == pytest.approx(best_last, abs=1e-6)
    best_first = ((1 - 4 / 3) ** 2 / math.log2(2) + (2 - 5 / 3) ** 2 / math.log2(3)) / 2
    assert float(losses.adr_mse(scores, torch.tensor([[4.0, 1.0]]))) == pytest.approx(best_first, abs=1e-6)
    equals = ((1.5 - 4 / 3) ** 2 + (1.5 - 5 / 3) ** 2) / math.log2(2.5) / 2
    assert float(losses.adr_mse(scores, torch.tensor([[1.0, 1.0]]))) == pytest.approx(equals, abs=1e-6)


# Pairs


def test_margin_mse_by_hand() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.5], [1.0, 3.0, ABSENT]])
    teacher = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.5, 5.0]])
    found = losses.margin_mse(scores, teacher, mask([1, 0, 0], [0, 1, 0]))
    # Margins 1 and 1.5 where the teacher has 2 and 2; margin 2 where it has 2.5.
    assert float(found) == pytest.approx(((1 + 0.25) / 2 + 0.25) / 2)
    assert float(losses.margin_mse(scores, teacher, mask([1, 0, 0], [0, 0, 0]))) == pytest.approx((1 + 0.25) / 2)
    assert float(losses.margin_mse(scores, teacher, mask([0, 0, 0], [0, 0, 0]))) == 0


# Shares 4:2:1 and a teacher who puts the second first and the first last. The second should beat the third, and does by
# two to one (log(1 + 1/2)); it should beat the first, which beats it by two (log 3); so should the third, by 4 (log 5).
SHARES = [4 / 7, 2 / 7, 1 / 7]
GRADES = [0.0, 2.0, 1.0]


def test_ranknet_by_hand() -> None:
    plain = losses.ranknet(table(SHARES), torch.tensor([GRADES]))
    assert float(plain) == pytest.approx((math.log(1.5) + math.log(3) + math.log(5)) / 3, abs=1e-6)
    weighted = losses.weighted_ranknet(table(SHARES), torch.tensor([GRADES]))
    expected = (math.log(1.5) / (1 + 2) + math.log(3) / (1 + 3) + math.log(5) / (2 + 3)) / 3
    assert float(weighted) == pytest.approx(expected, abs=1e-6)


def test_equals_of_the_teacher_ask_for_nothing() -> None:
    teacher = torch.tensor([[1.0, 3.0, 1.0]])
    plain = losses.ranknet(table(SHARES), teacher)
    assert float(plain) == pytest.approx((math.log(1.5) + math.log(3)) / 2, abs=1e-6)
    weighted = losses.weighted_ranknet(table(SHARES), teacher)
    assert float(weighted) == pytest.approx((math.log(1.5) + math.log(3)) / 2 / (1 + 2.5), abs=1e-6)


def test_lambda_losses_by_hand() -> None:
    # Gains 2^y - 1 are 0, 3, 1; the best DCG is 3 + 1/log2(3). The model's places are 1, 2, 3.
    best = 3 + 1 / math.log2(3)
    logs = {"second, third": math.log2(1.5), "second, first": math.log2(3), "third, first": math.log2(5)}
    near, far = 1 / math.log2(2) - 1 / math.log2(3), 1 / math.log2(3) - 1 / math.log2(4)  # gaps of 1 and of 2
    expected = near * 2 * logs["second, third"] + near * 3 * logs["second, first"] + far * 1 * logs["third, first"]
    found = losses.ndcg_loss2(table(SHARES), torch.tensor([GRADES]))
    assert float(found) == pytest.approx(expected / best / 3, abs=1e-6)
    swaps = (
        (1 / math.log2(3) - 1 / 2) * 2 * logs["second, third"]
        + (1 - 1 / math.log2(3)) * 3 * logs["second, first"]
        + (1 - 1 / 2) * 1 * logs["third, first"]
    )
    found = losses.lambda_rank(table(SHARES), torch.tensor([GRADES]))
    assert float(found) == pytest.approx(swaps / best / 3, abs=1e-6)


@pytest.mark.parametrize("loss", [losses.ndcg_loss2, losses.lambda_rank])
def test_gains_are_the_teachers_and_count_from_its_least(loss: Any) -> None:
    scores = table(SHARES)
    found = loss(scores, torch.tensor([GRADES]))
    torch.testing.assert_close(loss(scores, torch.tensor([GRADES]) - 40), found)
    # Were the gains the model's own, doubled margins would change more than the logarithms.
    one_pair = torch.tensor([[0.0, 5.0]])
    assert float(loss(table([0.8, 0.2]), one_pair)) == pytest.approx(
        (1 - 1 / math.log2(3)) * math.log2(1 + 4), abs=1e-6
    )
    # A gain of 2^1000 is no number; as a share of the best it is one.
    assert float(loss(table([0.8, 0.2]), one_pair * 200)) == pytest.approx(
        (1 - 1 / math.log2(3)) * math.log2(1 + 4), abs=1e-6
    )


# Answers


def test_lm_losses_by_hand() -> None:
    # An opening, an id of two tokens, a separator, the second id, the end; the model gives each 1/2, 1/4 or 1/8.
    chances = [1 / 2, 1 / 4, 1 / 8, 1 / 2, 1 / 4, 1 / 2]
    logits = torch.tensor([[math.log(p), math.log(1 - p)] for p in chances]) + 3
    labels, rank = torch.zeros(6, dtype=torch.int64), torch.tensor([0, 1, 1, 0, 2, 0])
    assert float(losses.lm_loss(logits, labels)) == pytest.approx((1 + 2 + 3 + 1 + 2 + 1) * math.log(2) / 6)
    second = 1 + 1 / math.log2(3)
    found = losses.importance_lm_loss(logits, labels, rank)
    assert float(found) == pytest.approx((1 + 2 * 2 + 3 * 2 + 1 + 2 * second + 1) * math.log(2) / 6)
    found = losses.importance_lm_loss(logits, labels, rank, separator_weight=0.25)
    assert float(found) == pytest.approx((0.25 + 2 * 2 + 3 * 2 + 0.25 + 2 * second + 0.25) * math.log(2) / 6)


def test_the_tables_are_what_a_configuration_may_name() -> None:
    hints = get_type_hints(LossConfig)
    tables = {
        "contrastive": losses.CONTRASTIVE_LOSSES, "distil_loss": losses.DISTIL_LOSSES, "lm_loss": losses.LM_LOSSES,
    }  # fmt: skip
    for key, found in tables.items():
        assert set(get_args(hints[key])) == set(found), key


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_info_nce_equals_the_released_code(family: str, name: str) -> None:
    case = golden_case(family, name)
    positives = torch.zeros(1, len(case.expected["scores"]), dtype=torch.bool)
    positives[0, list(case.positives)] = True
    found = losses.info_nce(case.expected["scores"].log()[None], positives)
    torch.testing.assert_close(found, case.expected["aux_loss"].squeeze(), atol=1e-5, rtol=0)


# What holds for all

OF_TEACHERS = sorted(set(losses.DISTIL_LOSSES) - losses.POINTWISE_LOSSES)
BY_THEMSELVES = {"labels", "bce_logits"}  # losses of each document; "bce" is "bce_logits" of a teacher's probabilities
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
ALL: dict[str, Loss] = {
    "info_nce": lambda scores, teacher, positives: losses.info_nce(scores, positives),
    "cross_entropy": lambda scores, teacher, positives: losses.attention_cross_entropy(scores, positives, 0.5),
    "labels": lambda scores, teacher, positives: losses.binary_cross_entropy(scores, positives, 0.5),
    **{name: form for name, form in losses.DISTIL_LOSSES.items() if name != "bce"},
}
TENTHS = st.integers(-30, 30).map(lambda value: value / 10)


@st.composite
def requests(draw: st.DrawFn, distinct: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Log scores, teacher's scores and positives of one request of two to six candidates, (1, M) each."""
    count = draw(st.integers(2, 6))
    # Equal log scores stand as in the request, so that they have no place in a test of permutations.
    scores = draw(st.lists(TENTHS, min_size=count, max_size=count, unique=True))
    teacher = draw(st.lists(TENTHS, min_size=count, max_size=count, unique=distinct))
    positives = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return torch.tensor([scores]), torch.tensor([teacher]), torch.tensor([positives])


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(ALL))
@settings(deadline=None, max_examples=20)
@given(request=requests(), data=st.data())
def test_the_order_of_candidates_does_not_matter(
    name: str, request: tuple[Tensor, Tensor, Tensor], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(request[0].shape[1])))
    close(ALL[name](*(part[:, order] for part in request)), ALL[name](*request))


@pytest.mark.parametrize("name", sorted(ALL))
@settings(deadline=None, max_examples=20)
@given(request=requests(), absent=st.sampled_from([0.0, 99.0, -99.0, math.inf, math.nan]), at=st.integers(0, 2))
def test_absent_candidates_do_not_matter(
    name: str, request: tuple[Tensor, Tensor, Tensor], absent: float, at: int
) -> None:
    scores, teacher, positives = request
    wider = (
        torch.cat([part[:, :at], torch.full((1, 1), fill), part[:, at:]], 1)
        for part, fill in ((scores, ABSENT), (teacher, absent), (positives, False))
    )
    close(ALL[name](*wider), ALL[name](*request))


@pytest.mark.parametrize("name", sorted(set(ALL) - BY_THEMSELVES - {"info_nce"}))  # which is of the shares themselves
@settings(deadline=None, max_examples=20)
@given(request=requests(), shift=TENTHS)
def test_a_constant_on_all_log_scores_does_not_matter(
    name: str, request: tuple[Tensor, Tensor, Tensor], shift: float
) -> None:
    scores, teacher, positives = request
    # Sums of tenths round: two scores that are one to the last bit would trade places.
    assume(len(set((scores + shift)[0].tolist())) == scores.shape[1])
    close(ALL[name](scores + shift, teacher, positives), ALL[name](*request))


@pytest.mark.parametrize("name", OF_TEACHERS)
@settings(deadline=None, max_examples=20)
@given(request=requests(), shift=TENTHS)
def test_a_constant_on_all_teacher_scores_does_not_matter(
    name: str, request: tuple[Tensor, Tensor, Tensor], shift: float
) -> None:
    scores, teacher, positives = request
    shifted = (10 * teacher).round() / 8 + round(10 * shift) / 8  # eighths: equals stay equal
    expected = ALL[name](scores, (10 * teacher).round() / 8, positives)
    close(ALL[name](scores, shifted, positives), expected)


@pytest.mark.parametrize("name", sorted(ALL))
@settings(deadline=None, max_examples=10)
@given(first=requests(), second=requests())
def test_requests_are_averaged(
    name: str, first: tuple[Tensor, Tensor, Tensor], second: tuple[Tensor, Tensor, Tensor]
) -> None:
    # One teacher score above the others and one positive: every loss applies to both.
    for _, teacher, positives in (first, second):
        teacher[0, 0] = 9.0
        positives[0] = torch.arange(positives.shape[1]) == 0
    width = max(first[0].shape[1], second[0].shape[1])
    padded = [
        torch.cat([F.pad(part, (0, width - part.shape[1]), value=fill) for part in parts])
        for parts, fill in zip(zip(first, second, strict=True), (ABSENT, 0.0, False), strict=True)
    ]
    close(ALL[name](*padded), (ALL[name](*first) + ALL[name](*second)) / 2)


@pytest.mark.parametrize("name", ["list_kl", "listnet", "margin_mse"])
@settings(deadline=None, max_examples=20)
@given(request=requests())
def test_the_teachers_own_scores_are_the_best(name: str, request: tuple[Tensor, Tensor, Tensor]) -> None:
    scores, teacher, positives = request
    least = ALL[name](teacher + 1, teacher, positives)
    assert float(least) <= float(ALL[name](scores, teacher, positives)) + 1e-5
    if name != "listnet":
        assert float(least) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["ranknet", "weighted_ranknet", "lambda", "lambda_rank", "adr_mse"])
@settings(deadline=None, max_examples=20)
@given(request=requests(distinct=True))
def test_the_teachers_order_is_the_best(name: str, request: tuple[Tensor, Tensor, Tensor]) -> None:
    _, teacher, positives = request
    place = teacher.argsort(dim=1, descending=True).argsort(dim=1).float()
    least = float(ALL[name](-40 * place, teacher, positives))
    assert least == pytest.approx(0, abs=1e-6)
    for other in itertools.islice(itertools.permutations(range(place.shape[1])), 1, 24):
        assert float(ALL[name](-40 * place[:, list(other)], teacher, positives)) > least + 1e-4


@pytest.mark.parametrize("name", ["ranknet", "weighted_ranknet"])
@settings(deadline=None, max_examples=20)
@given(request=requests(distinct=True))
def test_of_given_scores_the_teachers_order_is_the_best(name: str, request: tuple[Tensor, Tensor, Tensor]) -> None:
    scores, teacher, positives = request
    ordered = scores.sort(dim=1, descending=True)[0].gather(1, teacher.argsort(dim=1, descending=True).argsort(dim=1))
    assert float(ALL[name](ordered, teacher, positives)) <= float(ALL[name](scores, teacher, positives)) + 1e-6


@pytest.mark.parametrize("name", sorted(ALL))
def test_gradients_are_finite_beside_absent_candidates(name: str) -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    absent = mask([0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1])
    scores = logits.masked_fill(absent, ABSENT).log_softmax(1)
    teacher = torch.tensor([[3.0, 1.0, 1.0, -2.0], [0.0, 1.0, math.inf, math.nan], [1.0, 0.0, 0.0, 0.0]])
    ALL[name](scores, teacher, mask([1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0])).backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert bool((logits.grad[absent] == 0).all())
    assert bool((logits.grad[0] != 0).any())


@pytest.mark.parametrize("name", sorted(set(ALL) - BY_THEMSELVES - {"list_kl", "listnet", "adr_mse"}))
def test_requests_that_do_not_apply_contribute_nothing(name: str) -> None:
    """Nothing positive, or nothing that the teacher tells apart; lists of equals ask for equal scores, and apply, as
    losses of each document by itself do."""
    of_pairs = (table([0.5, 0.3, 0.2], [0.6, 0.4, -1]), torch.tensor([[2.0, 3.0, 1.0], [1.0, 1.0, 9.0]]))
    positives = mask([0, 1, 0], [0, 0, 0])
    close(ALL[name](*of_pairs, positives), ALL[name](of_pairs[0][:1], of_pairs[1][:1], positives[:1]))
    leaf = table([0.6, 0.4]).requires_grad_()
    nothing = ALL[name](leaf, torch.tensor([[1.0, 1.0]]), mask([0, 0]))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert leaf.grad is not None
    assert bool((leaf.grad == 0).all())
