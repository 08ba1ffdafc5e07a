"""The choice of a model that reasons: read from its answer, and told where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import tokenised
from hypothesis import given
from hypothesis import strategies as st

from blockrank.decode import Generated
from blockrank.scorers import ReasonedChoiceScorer
from blockrank.scorers.reasoned import read_choice


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("<think> [1]? </think>\n<answer>[3]</answer>", 2),
        ("<answer> 3 </answer>", 2),
        ("<answer>It is [2], yes, [2].</answer>", 1),
        ("<answer>[ 1 ]", 0),
        ("<answer>[1]</answer> no: <answer>[2]</answer>", 1),
        ("", None),
        ("[2]", None),
        ("<answer>1", None),  # it may have been 12
        ("<answer>[1] or [2]</answer>", None),
        ("<answer>[4]</answer>", None),
        ("<answer>[0]</answer>", None),
        ("<answer>[²]</answer>", None),
        ("<answer>[" + "1" * 5000 + "]</answer>", None),
        ("<ANSWER>[1]</ANSWER>", None),
        ("<answer>the third</answer>", None),
    ],
)
def test_the_choice_of_an_answer(text: str, choice: int | None) -> None:
    assert read_choice(text, 3) == choice


NEAR = st.lists(st.sampled_from(["<answer>", "</answer>", "[", "]", "1", "2", "30", " ", "a"])).map("".join)


@given(text=st.text() | NEAR, count=st.integers(1, 5), reached_limit=st.booleans())
def test_any_text_gives_every_document_a_place(text: str, count: int, reached_limit: bool) -> None:
    """One is first, the others stay in order; where nobody was named that is told, and all stay."""
    prompt = tokenised([np.arange(3)] * (count + 2))
    found = ReasonedChoiceScorer().read(Generated(text, (1, 2), reached_limit), prompt)
    order = sorted(range(count), key=lambda place: -found.scores_C[place].item())
    assert sorted(found.scores_C.tolist(), reverse=True) == [-float(rank) for rank in range(1, count + 1)]
    assert order[1:] == sorted(order[1:])
    choice = read_choice(text, count)
    if choice is None:
        assert order[0] == 0
        ended = ", which ended at the limit of 2 tokens," if reached_limit else ""
        assert found.warnings == (
            f"the model's answer{ended} names none of the {count} documents; they stay in the given order.",
        )
        assert found.repaired == 1
    else:
        assert order[0] == choice
        assert (found.repaired, found.warnings) == (0, ())
