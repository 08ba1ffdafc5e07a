"""Rewards for reinforcement learning of rankings that a model writes: functions of its text and the labels.

Answers are read as the scorers read them, so that what is rewarded is what ranks. `choice_rewards` and `grades_rewards`
have the form that TRL's `GRPOTrainer` calls: lists of completions, and the columns of its data set by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from blockrank.scorers.generation import last_answer
from blockrank.scorers.groupwise import read_grades
from blockrank.scorers.reasoned import read_choice

Completion = str | Sequence[dict[str, str]]  # a text, or a turn of a chat, as TRL hands over either

_CHOICE_FORM = re.compile(r"<think>.*</think>\s*<answer>[^<]*</answer>", re.DOTALL)
_GRADES_FORM = re.compile(r"\s*<reason>.*</reason>\s*<answer>.*</answer>\s*", re.DOTALL)
_DEPTH = 10
_RECALL_WEIGHT, _DISTRIBUTION_WEIGHT = 0.2, 0.1
_BROKEN_GRADES, _BROKEN_FORM = -0.1, -0.5


def choice_reward(text: str, count: int, positives: Collection[int]) -> float:
    """Rank-R1's (arXiv 2503.06034): 1 for thoughts and an answer in their tags that names a positive, else 0.

    count: documents in the prompt; positives: their places, from 0. The paper has one positive.
    """
    if not _CHOICE_FORM.search(text):
        return 0.0
    return float(read_choice(text, count) in set(positives))


def grades_reward(text: str, relevance: Sequence[float]) -> float:
    """GroupRank's (arXiv 2511.11653): nDCG@10 + 0.2 recall@10 + 0.1 (1 - JS) of the grades in an answer.

    relevance: of each document in the prompt, from 0; those above 0 are relevant. JS: Jensen-Shannon divergence, base
    2, of grades and relevance, each divided by its sum. Where the tags are not as asked for, -0.5; where they are and
    do not hold a JSON object with a grade for each document and nothing else, -0.1. Without a relevant document, nDCG
    and recall are 0.
    """
    if not _GRADES_FORM.fullmatch(text) or last_answer(text) is None:
        return _BROKEN_FORM
    found = read_grades(text, len(relevance))
    if found.repaired:
        return _BROKEN_GRADES
    grades = [found.by_place[place] for place in range(len(relevance))]
    # Equal grades stand as in the prompt, as they do in a ranking.
    order = sorted(range(len(grades)), key=lambda place: -grades[place])
    ideal = _gain(sorted(relevance, reverse=True))
    ndcg = _gain([relevance[place] for place in order]) / ideal if ideal else 0.0
    relevant = sum(value > 0 for value in relevance)
    recall = sum(relevance[place] > 0 for place in order[:_DEPTH]) / relevant if relevant else 0.0
    alike = 1 - jensen_shannon(grades, relevance)
    return ndcg + _RECALL_WEIGHT * recall + _DISTRIBUTION_WEIGHT * alike


def _gain(relevance: Sequence[float]) -> float:
    """DCG@10 of relevance in the order of a ranking."""
    return sum(value / math.log2(rank + 1) for rank, value in enumerate(relevance[:_DEPTH], start=1))


def jensen_shannon(one: Sequence[float], two: Sequence[float]) -> float:
    """Jensen-Shannon divergence, base 2, of two rows of numbers from 0, each divided by its sum; a row of zeros is
    spread evenly."""
    p, q = (_shares(row) for row in (one, two))
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (_divergence(p, middle) + _divergence(q, middle)) / 2


def _shares(row: Sequence[float]) -> list[float]:
    total = sum(row)
    return [value / total if total else 1 / len(row) for value in row]


def _divergence(p: Sequence[float], q: Sequence[float]) -> float:
    """Kullback-Leibler divergence, base 2; q is above 0 where p is."""
    return sum(a * math.log2(a / b) for a, b in zip(p, q, strict=True) if a)


# As TRL calls them


def choice_rewards(
    completions: Sequence[Completion], relevance: Sequence[Sequence[float]], **_columns: Any
) -> list[float]:
    """`choice_reward` of each completion: documents of a relevance above 0 are positives."""

    def reward(text: str, labels: Sequence[float]) -> float:
        return choice_reward(text, len(labels), [place for place, value in enumerate(labels) if value > 0])

    return _each(reward, completions, relevance)


def grades_rewards(
    completions: Sequence[Completion], relevance: Sequence[Sequence[float]], **_columns: Any
) -> list[float]:
    """`grades_reward` of each completion."""
    return _each(grades_reward, completions, relevance)


def _each(
    reward: Callable[[str, Sequence[float]], float],
    completions: Sequence[Completion],
    relevance: Sequence[Sequence[float]],
) -> list[float]:
    texts = [item if isinstance(item, str) else item[-1]["content"] for item in completions]
    return [reward(text, labels) for text, labels in zip(texts, relevance, strict=True)]
