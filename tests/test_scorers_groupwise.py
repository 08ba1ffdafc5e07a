"""Grades from what a model writes: nothing is made up, and what is missing is told."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import tokenised
from hypothesis import given
from hypothesis import strategies as st

from blockrank import InputError, ModelError, Ranking, RankRequest
from blockrank.decode import Generated
from blockrank.scorers import GroupwiseScorer
from blockrank.scorers.groupwise import BEST, Grades, read_grades

FENCED = '<reason> both [1] and {2} </reason>\n<answer>\n```json\n{"[1]": 5, "[2]": 10}\n```\n</answer>'


def read(text: str, count: int = 2) -> Grades:
    return read_grades(text, count)


@pytest.mark.parametrize(
    "text", [FENCED, '<answer>{"[2]":10,"[1]":5.0}</answer>', '<answer>{"1": 5, "2": "10"}</answer>']
)
def test_answers_as_they_were_asked_for(text: str) -> None:
    assert read(text) == Grades({0: 5.0, 1: 10.0}, 0, repaired=False)


@pytest.mark.parametrize(
    ("text", "grades", "ignored"),
    [
        ("", {}, 0),
        ("no answer at all", {}, 0),
        ("<answer>[1] is good</answer>", {}, 0),
        ('{"[1]": 5, "[2]": 4}', {0: 5, 1: 4}, 0),  # no tags
        ('<answer>{"[1]": 5, "[2]": 4', {0: 5}, 0),  # the end is missing: it may have been 40
        ('<answer>{"[1]": 5, "[2]": 4,', {0: 5, 1: 4}, 0),
        ('<answer>{"[1]]": 5, "[2]: 4}</answer>', {0: 5, 1: 4}, 0),
        ("<answer>[1]: 5\n[2]: 4.</answer>", {0: 5}, 1),
        ("<answer>[1]: 5\n[2]: 4</answer>", {0: 5, 1: 4}, 0),
        ('<answer>{"[1]": 5, "[3]": 4, "[0]": 1, "x": 2}</answer>', {0: 5}, 3),
        ('<answer>{"[1]": 11, "[2]": -1}</answer>', {}, 2),
        ('<answer>{"[1]": NaN, "[2]": true}</answer>', {}, 2),
        ('<answer>{"[1]": null, "[2]": [3]}</answer>', {}, 2),
        ('<answer>{"[1]": "5/10", "[2]": {"grade": 3}}</answer>', {}, 0),
        ('<answer>{"[1]": 1, "[1]": 7, "[2]": 2}</answer>', {0: 7, 1: 2}, 0),
        ('<answer>{"[1]": 1}</answer> or <answer>{"[2]": 2}</answer>', {1: 2}, 0),
        ('<answer>{"[1]": ' + "9" * 5000 + ', "[2]": 3}</answer>', {1: 3}, 0),
        ("<answer>" + '{"a":' * 99999 + "}</answer>", {}, 0),
        ("<answer>at 10:30</answer>", {}, 0),
    ],
)
def test_answers_that_are_repaired(text: str, grades: dict[int, float], ignored: int) -> None:
    assert read(text) == Grades({place: float(grade) for place, grade in grades.items()}, ignored, repaired=True)


NEAR = st.lists(
    st.sampled_from(
        ["<answer>", "</answer>", "{", "}", '"[1]"', "[2]", '"3"', ":", ",", " ", "7", "-", ".5", "\n", "]"]
    )
).map("".join)


@given(text=st.text() | NEAR, count=st.integers(1, 4))
def test_any_text_gives_valid_grades_of_some_documents(text: str, count: int) -> None:
    found = read(text, count)
    assert set(found.by_place) <= set(range(count))
    assert all(0 <= grade <= BEST for grade in found.by_place.values())
    for place, grade in found.by_place.items():
        assert str(place + 1) in text
        assert any(form in text for form in (str(grade), f"{grade:g}", f"{grade:g}".lstrip("0")))
    assert found.repaired or (len(found.by_place) == count and not found.ignored)


@given(grades=st.dictionaries(st.integers(0, 19), st.integers(0, BEST)))
def test_what_was_written_is_what_is_read(grades: dict[int, int]) -> None:
    text = json.dumps({f"[{place + 1}]": grade for place, grade in grades.items()})
    assert read(f"<reason></reason><answer>{text}</answer>", 20).by_place == grades


def scored(text: str, count: int, *, reached_limit: bool = False, scorer: GroupwiseScorer | None = None) -> Ranking:
    """The ranking of documents after a text; the last of the request cannot be read."""
    prompt = tokenised([np.arange(3)] * (count + 2))
    found = (scorer or GroupwiseScorer()).read(Generated(text, (1,) * 9, reached_limit), prompt)
    request = RankRequest("q", [*"abcdefgh"[:count], ""])
    unscored = torch.nonzero(found.unscored_C)[:, 0].tolist()
    made = Ranking.from_scores(request, found.scores_C.tolist(), kind="probability", unscored=unscored)
    assert found.repaired == bool(found.warnings)
    assert sorted(entry.index for entry in made) == list(range(count + 1))
    object.__setattr__(made, "warnings", found.warnings)
    return made


def test_documents_without_a_grade_follow_in_the_given_order() -> None:
    """A grade of 0 is one: that document comes before those of which nothing is said."""
    ranking = scored('<answer>{"[4]": 0, "[5]": 7, "[9]": 1}</answer>', 5)
    assert [(entry.index, round(entry.score, 6)) for entry in ranking] == [
        (4, 0.7),
        (3, 0),
        (0, 0),
        (1, 0),
        (2, 0),
        (5, 0),
    ]
    assert ranking.unscored == (0, 1, 2)
    assert ranking.warnings == (
        "the model's answer graded 2 of 5 documents; the others follow in the given order.",
        "1 of the grades in the model's answer are ignored: they are of no document, or not from 0 to 10.",
    )
    assert scored("", 2, reached_limit=True).warnings == (
        "the model's answer, which ended at the limit of 9 tokens, graded 0 of 2 documents; the others follow in the "
        "given order.",
    )
    assert ranking.logits()[0] > ranking.logits()[1]


def test_a_whole_answer_says_nothing() -> None:
    ranking = scored(FENCED, 2)
    assert [entry.score for entry in ranking] == [1.0, 0.5, 0.0]
    assert (ranking.warnings, ranking.unscored) == ((), ())


def test_missing_grades_can_be_refused() -> None:
    strict = GroupwiseScorer(missing="refused")
    assert scored(FENCED, 2, scorer=strict)[0].index == 1
    with pytest.raises(ModelError, match=r"the model's answer graded 1 of 2 documents\."):
        scored('<answer>{"[1]": 3}</answer>', 2, scorer=strict)
    with pytest.raises(InputError, match="missing must be"):
        GroupwiseScorer(missing="first")  # type: ignore[arg-type]
