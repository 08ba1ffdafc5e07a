"""GroupRank: the model grades all documents of a prompt together, from 0 to 10 (arXiv 2511.11653)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from blockrank.decode import Generated, Sampling
from blockrank.layout import TokenisedRequest
from blockrank.scorers.base import Scored
from blockrank.scorers.generation import GenerationScorer, last_answer
from blockrank.scorers.prompts import Prompts, PromptWriter
from blockrank.spec import Template
from blockrank.types import ModelError, RankRequest

BEST = 10  # the highest grade
_ANSWER_END = "</answer>"
_ID = re.compile(r"\s*\[?\s*([0-9]{1,6})\s*\]*\s*")
_NUMBER = re.compile(r"\s*(-?[0-9]{1,6}(?:\.[0-9]{1,12})?)\s*")
# An id in brackets or quotes, and a number that does not end the text: what broken JSON still says.
_PAIR = re.compile(r"""(?:"\s*([0-9]{1,6})\s*"|\[\s*([0-9]{1,6})\s*\]+)["']?\s*:\s*["']?(-?[0-9.]{1,20})(?=[^\w.])""")

# The words that the published checkpoints were trained with.
_SYSTEM = """\
Your task is to evaluate and rank documents based on how well they help answer the given query. Follow this evaluation \
priority:
1. PRIMARY: Usefulness & Helpfulness - Does the document provide actionable information, solutions, or direct answers \
that help address the user's needs?
2. SECONDARY: Relevance - Does the document contain information related to the query topic?

Evaluation Process:
1. First, identify the user's core intent and what kind of help they need from the query
2. For each document, assess:
   - How directly it addresses the user's intent
   - What actionable information or answers it provides
   - How much it helps solve the user's problem or need
3. Compare documents against each other to ensure proper ranking
4. Assign scores that reflect the relative usefulness ranking

Scoring Scale (0-10):
- 9-10: Extremely helpful, directly answers the query with actionable information
- 7-8: Very helpful, provides substantial useful information for the query
- 5-6: Moderately helpful, contains some useful information but incomplete
- 3-4: Minimally helpful, limited useful information despite topic relevance
- 1-2: Barely helpful, mentions related topics but provides little useful information
- 0: Not helpful at all, cannot assist with answering the query
"""
_COUNT = "(count)"  # stands for the number of documents
_TASK = f"""\
I will provide you {_COUNT} documents, each indicated by a numerical identifier []. Score these documents based on \
their Usefulness and Relevance to the query.
Query:
{{query}}

Documents:
"""
_FORMAT = f"""\


## Final Output Format
You must structure your response in exactly two parts: provide your brief reasoning process first, then output final \
scores in JSON format like below, with document IDs as string keys and integer scores as values for all {_COUNT} \
documents.\x20
The reasoning process and answer are enclosed within <reason> </reason> and <answer> </answer> tags, respectively. Do \
NOT output anything outside the specified tags. Follow this exact format:
<reason>\x20
[Analyze each document's usefulness and relevance to the query, explaining your scoring rationale]
</reason>
<answer>\x20
```json
{{"[1]": 5, "[2]": 3, "[3]": 8}}
```\x20
</answer>
"""
TEMPLATE = Template(
    instruction=(_TASK,),
    document=("[{id}]. {text}\n\n",),
    query=(_FORMAT,),
    id_base=1,
    chat=True,
    system=_SYSTEM,
)


@dataclass(frozen=True, slots=True)
class Grades:
    """What an answer says of `count` documents.

    by_place: grades from 0 to `BEST` by the document's place in the prompt, from 0. ignored: entries that name no
    document or give no such grade. repaired: whether the answer was anything but a JSON object with a grade for each
    document, in the place that it was asked for.
    """

    by_place: dict[int, float]
    ignored: int
    repaired: bool


@dataclass(frozen=True)
class GroupwiseScorer(GenerationScorer):
    """The grade that the model gives each document after it has reasoned about all of them, as a part of ten.

    temperature, top_p, max_new_tokens, seed: see `Sampling` and `GenerationScorer`; the defaults are the paper's.
    missing: what becomes of documents without a grade: they come "last", in the order of the request, and the ranking
    says so; or the model's answer is "refused", with a `ModelError`.
    """

    name = "groupwise"
    kind = "probability"
    temperature: float = 0.3
    top_p: float = 0.8
    max_new_tokens: int = 8000
    missing: Literal["last", "refused"] = "last"

    @property
    def template(self) -> Template:
        """See `GenerationScorer.template`; each prompt says how many documents are in it."""
        return TEMPLATE

    @property
    def sampling(self) -> Sampling:
        """See `GenerationScorer.sampling`."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, (_ANSWER_END,))

    def prompts(self, request: RankRequest, writer: PromptWriter) -> Prompts:
        """See `Scorer.prompts`."""
        count = len(request.readable)
        made = writer.write(request, writer.spec.changed(template=_counted(count)))
        if len(made.indices) < count:  # this tokenizer has no token of some
            counted = writer.spec.changed(template=_counted(len(made.indices)))
            made = replace(writer.write(request, counted, made.indices), query_cut=made.query_cut)
        return Prompts((made,))

    def read(self, answer: Generated, prompt: TokenisedRequest) -> Scored:
        """Scores (C,) in [0, 1]."""
        count = len(prompt.documents)
        grades = read_grades(answer.text, count)
        scores_C, unscored_C = torch.zeros(count), torch.ones(count, dtype=torch.bool)
        for place, grade in grades.by_place.items():
            scores_C[place], unscored_C[place] = grade / BEST, False
        if self.missing == "refused" and bool(unscored_C.any()):
            raise ModelError(_of_missing(answer, grades, count))
        return Scored(
            scores_C, unscored_C=unscored_C, repaired=int(grades.repaired), warnings=_warnings(answer, grades, count)
        )


def _counted(count: int) -> Template:
    """The prompt for so many documents."""
    (task,), (form,) = TEMPLATE.instruction, TEMPLATE.query
    return replace(TEMPLATE, instruction=(task.replace(_COUNT, str(count)),), query=(form.replace(_COUNT, str(count)),))


def _warnings(answer: Generated, grades: Grades, count: int) -> tuple[str, ...]:
    """What a user should know of how an answer was read."""
    found = []
    if len(grades.by_place) < count:
        found.append(f"{_of_missing(answer, grades, count)[:-1]}; the others follow in the given order.")
    if grades.ignored:
        found.append(
            f"{grades.ignored} of the grades in the model's answer are ignored: they are of no document, or not from 0 "
            f"to {BEST}."
        )
    return tuple(found)


def _of_missing(answer: Generated, grades: Grades, count: int) -> str:
    """The sentence about documents without a grade."""
    ended = f", which ended at the limit of {len(answer.tokens)} tokens," if answer.reached_limit else ""
    return f"the model's answer{ended} graded {len(grades.by_place)} of {count} documents."


# Reading


def read_grades(text: str, count: int) -> Grades:
    """The grades that an answer gives `count` documents: those of the last JSON object in its last `<answer>`.

    Where that is no JSON, pairs of an id in brackets or quotes and a number are read all the same. Nothing is made up:
    an entry that names no document, or gives it no grade from 0 to `BEST`, is ignored; of two grades of one document
    the later one counts, as in JSON.
    """
    block = last_answer(text)
    pairs, is_json = _pairs(text if block is None else f"{block}\n")
    by_place: dict[int, float] = {}
    ignored = twice = 0
    for key, value in pairs:
        place, grade = _place(key, count), _grade(value)
        if place is None or grade is None:
            ignored += 1
            continue
        twice += place in by_place
        by_place[place] = grade
    complete = is_json and block is not None and len(by_place) == count
    return Grades(by_place, ignored, not complete or bool(ignored or twice))


def _pairs(text: str) -> tuple[list[tuple[str, Any]], bool]:
    """The entries of the last JSON object in a text, and whether it is one."""
    start, end = text.rfind("{"), text.rfind("}")
    if 0 <= start < end:
        try:
            found = json.loads(text[start : end + 1], object_pairs_hook=list)
        except (ValueError, RecursionError):  # a number of thousands of digits is a ValueError too
            pass
        else:
            return found, True
    return list(_loose(text[max(start, 0) :])), False


def _loose(text: str) -> Iterable[tuple[str, str]]:
    for match in _PAIR.finditer(text):
        yield match[1] or match[2], match[3]


def _place(key: str, count: int) -> int | None:
    """The place that an id such as "[1]" or "1" stands for, from 0, None for one of no document."""
    match = _ID.fullmatch(key)
    number = int(match[1]) if match else 0
    return number - 1 if 1 <= number <= count else None


def _grade(value: Any) -> float | None:
    """A number from 0 to `BEST`, also where it is written as a string; else None."""
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        value = float(match[1]) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= BEST else None
