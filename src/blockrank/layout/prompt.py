"""From a request to the text of its segments, frame and body kept apart: only a body is ever cut."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from blockrank.spec import Template
from blockrank.types import RankRequest

Kind = Literal["instruction", "document", "query"]
_FIELD = re.compile(r"\{(query|text|id|count)\}")
_OURS = ("id", "count")  # frame: what they bring in must survive a cut


@dataclass(frozen=True, slots=True)
class Piece:
    """A string that is tokenised on its own, and the character spans of it that came from the caller.

    `content`: index of the span that is the document's content, None if there is none. `id_spans`: spans of the ids in
    an answer, in their order.
    """

    text: str
    bodies: tuple[tuple[int, int], ...] = ()
    content: int | None = None
    id_spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class SegmentText:
    """One segment of the prompt before tokenisation. `index` is the candidate's position, -1 for the others."""

    kind: Kind
    pieces: tuple[Piece, ...]
    index: int = -1


def fill(piece: str, values: dict[str, str]) -> Piece:
    """Replace the fields of one template piece and record the spans of the caller's text.

    Braces in the caller's text are plain text: values are inserted, never formatted again. A document's number is
    frame: it is not the caller's text, and must survive a cut.
    """
    text, content, at = "", None, 0
    bodies: list[tuple[int, int]] = []
    for match in _FIELD.finditer(piece):
        text += piece[at : match.start()]
        start, at = len(text), match.end()
        text += values[match[1]]
        if match[1] == "text":
            content = len(bodies)
        if match[1] not in _OURS:
            bodies.append((start, len(text)))
    return Piece(text + piece[at:], tuple(bodies), content)


def _segment(kind: Kind, pieces: tuple[str, ...], values: dict[str, str], index: int = -1) -> SegmentText:
    return SegmentText(kind, tuple(fill(piece, values) for piece in pieces), index)


def _answer(template: Template, ids: list[str]) -> Piece:
    """The opening of the answer and, if there are ids, the ids and the end."""
    text, spans = template.answer, []
    for place, name in enumerate(ids):
        text += template.answer_separator if place else ""
        spans.append((len(text), len(text) + len(name)))
        text += name
    return Piece(text + (template.answer_end if ids else ""), id_spans=tuple(spans))


def segments(
    template: Template, request: RankRequest, answer: tuple[int, ...] | None = None, read: Sequence[int] | None = None
) -> list[SegmentText]:
    """The segments of a request: instruction, one per candidate in the given order, query.

    `read` lists the candidates that get a segment, by default the readable ones; a template numbers only these, so that
    scores equal those of a request without the others. `answer` lists indices of candidates; training passes them and
    the query segment then ends in their numbers, in the order given, and the template's end (method, section 2).
    """
    read = request.readable if read is None else read
    query = {"query": template.shown(request.query.strip()), "count": str(len(read))}
    numbers = {index: template.id(place) for place, index in enumerate(read)}
    tail = [fill(piece, query) for piece in template.query]
    if template.answer:
        tail.append(_answer(template, [numbers[index] for index in answer or ()]))
    return [
        _segment("instruction", template.instruction, query),
        *(
            _segment(
                "document",
                template.document,
                {**query, "text": template.shown(request.candidates[index].content), "id": number},
                index,
            )
            for index, number in numbers.items()
        ),
        SegmentText("query", tuple(tail)),
    ]
