"""Rank-R1: the model reasons, then names the one document that answers best (arXiv 2503.06034)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from blockrank.decode import Generated, Sampling
from blockrank.layout import TokenisedRequest
from blockrank.scorers.base import Scored
from blockrank.scorers.generation import GenerationScorer, last_answer
from blockrank.spec import Template

_ANSWER_END = "</answer>"
_LABEL = re.compile(r"\[\s*([0-9]{1,6})\s*\]")
_BARE = re.compile(r"\s*([0-9]{1,6})\s*")

# The words that the published adapters were trained with.
TEMPLATE = Template(
    instruction=('Given the query: "{query}", which of the following documents is most relevant?\n',),
    document=("[{id}] {text}\n",),
    query=(
        "After completing the reasoning process, please provide only the label of the most relevant document to the "
        "query, enclosed in square brackets, within the answer tags. For example, if the third document is the most "
        "relevant, the answer should be: <think> reasoning process here </think> <answer>[3]</answer>.",
    ),
    id_base=1,
    chat=True,
    system=(
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
        "assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
        "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
        "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>."
    ),
)


@dataclass(frozen=True)
class ReasonedChoiceScorer(GenerationScorer):
    """The document that the model chooses comes first, the others follow in the order of the prompt.

    Under a strategy that plays documents against each other, such as a tournament, choices become an order. An answer
    that names none of the documents chooses the first of them; the ranking says so. temperature, top_p, max_new_tokens,
    seed: see `Sampling` and `GenerationScorer`; the defaults are the paper's, which takes the most probable tokens.
    A score is minus the rank.
    """

    name = "reasoned_choice"
    kind = "order"
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 2048

    @property
    def template(self) -> Template:
        """See `GenerationScorer.template`."""
        return TEMPLATE

    @property
    def sampling(self) -> Sampling:
        """See `GenerationScorer.sampling`."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, (_ANSWER_END,))

    def read(self, answer: Generated, prompt: TokenisedRequest) -> Scored:
        """Scores (C,): -1 for the document chosen, -2 for the first of the others."""
        count = len(prompt.documents)
        choice = read_choice(answer.text, count)
        first = 0 if choice is None else choice
        order = [first, *(place for place in range(count) if place != first)]
        scores_C = torch.empty(count)
        scores_C[order] = -torch.arange(1.0, count + 1)
        if choice is not None:
            return Scored(scores_C)
        ended = f", which ended at the limit of {len(answer.tokens)} tokens," if answer.reached_limit else ""
        sentence = f"the model's answer{ended} names none of the {count} documents; they stay in the given order."
        return Scored(scores_C, repaired=1, warnings=(sentence,))


def read_choice(text: str, count: int) -> int | None:
    """The place, from 0, of the one document that the last `<answer>` of a text names, as `[3]` or `3`; None where it
    names none of the `count` documents, or several."""
    block = last_answer(text)
    if block is None:
        return None
    bare = _BARE.fullmatch(block)
    numbers = {int(match) for match in ([bare[1]] if bare else _LABEL.findall(block))}
    number = numbers.pop() if len(numbers) == 1 else 0
    return number - 1 if 1 <= number <= count else None
