"""Documents cut into passages: along their structure, small enough for a model to read whole.

An extractor turns a file into `Block`s of a text (a paragraph, a heading, a block of code); here blocks are joined or
cut into spans of about 120 English words. No span crosses a heading, and every character that is not white space lies
in exactly one.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from blockrank.text.words import end_of_marks

# Sizes are rough counts of a model's tokens. In English prose a word has about 1.25. The embedded model reads 256
# tokens of a document; it counts a tenth more than this, and the title is one part of the document.
USUAL, MOST, MOST_WITH_TITLE = 150, 210, 225
_SMALL = USUAL // 3  # a block or span up to this size may join its neighbour even above the usual size
_HEADING = 30  # room that a block under the limit leaves for the heading above it
_HEADING_LENGTH = 200  # characters
_MOST_MARKS = 8  # of a letter
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\d_]{1,9}|\d{1,3}|[^\w\s]|_")
# Places where a block over the limit is cut, best first.
_CUTS = (
    re.compile(r"\n\s*\n"),
    re.compile(r"\n"),
    re.compile(r"(?<=[.!?:;।॥؟؛۔።])\s+|(?<=[。！？；။។])"),
    re.compile(r"\s+"),
    re.compile(r"(?<=[,;}\])>/&，、،၊])"),
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document, and its position.

    path: its file, relative to the folder searched. doc_id: its document; for a file of JSON lines the id in it, else
    the path. title: the file and the headings above it, or the document's title. text: its text, for PDF and HTML
    without markup. Lines and pages count from 1; a PDF file has pages, all others have lines.
    """

    path: str
    doc_id: str
    title: str
    text: str
    first_line: int | None = None
    last_line: int | None = None
    page: int | None = None

    @property
    def place(self) -> str:
        """`file:first-last`, `file:line` or `file:p3`."""
        if self.page is not None:
            return f"{self.path}:p{self.page}"
        if self.first_line == self.last_line:
            return f"{self.path}:{self.first_line}"
        return f"{self.path}:{self.first_line}-{self.last_line}"


@dataclass(frozen=True, slots=True)
class TextBlock:
    """The characters [start, end) of a text that belong together, and the headings above them (outermost first).

    is_heading: the block is itself a heading, the last of its `headings`.
    """

    start: int
    end: int
    headings: tuple[str, ...] = ()
    is_heading: bool = False


class Lines:
    """Line numbers of characters in a text; only a line feed ends a line."""

    def __init__(self, text: str) -> None:
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def __call__(self, position: int) -> int:
        """Number of the line, from 1."""
        return bisect_right(self._starts, position)


def heading_name(text: str) -> str:
    """A heading on one line, as in titles: a long one is shortened."""
    name = " ".join(text[: 2 * _HEADING_LENGTH].split())
    return name if len(name) <= _HEADING_LENGTH else name[: _HEADING_LENGTH - 1] + "\N{HORIZONTAL ELLIPSIS}"


def size(text: str) -> int:
    """About how many tokens a model sees in a text."""
    return sum(1 for _ in _TOKEN.finditer(text))


def paragraphs(text: str, headings: tuple[str, ...] = ()) -> Iterator[TextBlock]:
    """Blocks between blank lines."""
    start = 0
    for match in re.finditer(r"\n[^\S\n]*(?=\n)|\Z", text):
        if text[start : match.start()].strip():
            yield TextBlock(start, match.start(), headings)
        start = match.end()


def spans(text: str, blocks: Iterable[TextBlock], title: str = "") -> Iterator[TextBlock]:
    """Blocks joined or cut to the size of passages; each stripped of white space except its first indentation.

    title: the text before the headings in the titles of these passages.
    """
    group: list[TextBlock] = []
    held = 0
    for block in blocks:
        room = _room(title, block)
        for part in _parts(text, block, room - _HEADING):
            weight = size(text[part.start : part.end])
            if group and not _joins(group, held, part, weight, room):
                yield _joined(text, group)
                group, held = [], 0
            group.append(part)
            held += weight
    if group:
        yield _joined(text, group)


def _room(title: str, block: TextBlock) -> int:
    """The largest size of a passage under these headings; a long title takes at most half of it."""
    return max(min(MOST, MOST_WITH_TITLE - size(" ".join((title, *block.headings)))), MOST // 2)


def _joins(group: Sequence[TextBlock], held: int, block: TextBlock, weight: int, room: int) -> bool:
    """Whether a block belongs to the span of those before it."""
    if block.is_heading and not all(earlier.is_heading for earlier in group):
        return False
    headings_alone = group[-1].is_heading
    return held + weight <= (room if headings_alone or min(held, weight) <= _SMALL else min(USUAL, room))


def _joined(text: str, group: Sequence[TextBlock]) -> TextBlock:
    """One span, which starts at the beginning of its first line if only white space precedes it there."""
    line = group[0].start
    while line and text[line - 1] in " \t":
        line -= 1
    start = line if line == 0 or text[line - 1] == "\n" else group[0].start
    return replace(group[-1], start=start, is_heading=False)


def _parts(text: str, block: TextBlock, limit: int) -> Iterator[TextBlock]:
    """A stripped block; one over the limit is cut into parts of about the same size."""
    pieces = list(_pieces(text, block.start, block.end, limit, 0))
    total = sum(weight for _, _, weight in pieces)
    usual = min(USUAL, limit)
    share = total / max(1, -(-total // usual)) if total > limit else total
    start, held = None, 0
    for index, (piece_start, end, weight) in enumerate(pieces):
        start, held = piece_start if start is None else start, held + weight
        following = pieces[index + 1][2] if index + 1 < len(pieces) else 0
        if index + 1 == len(pieces) or held >= share or held + following > limit:
            yield replace(block, start=start, end=end)
            start, held = None, 0


def _pieces(text: str, start: int, end: int, limit: int, level: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, size) of pieces under the limit, cut at the best places that suffice, and stripped."""
    part = text[start:end]
    start, end = end - len(part.lstrip()), start + len(part.rstrip())
    if start >= end:
        return
    weight = size(text[start:end])
    if weight <= limit // (2 if level else 1):
        yield start, end, weight
    elif level < len(_CUTS):
        at = start
        for match in _CUTS[level].finditer(text, start, end):
            yield from _pieces(text, at, match.start(), limit, level + 1)
            at = match.end()
        yield from _pieces(text, at, end, limit, level + 1)
    else:
        step = limit // 2 - _MOST_MARKS
        edges = [_before_a_letter(text, at) for at in range(start + step, end, step)]
        for first, last in itertools.pairwise([start, *edges, end]):  # a token has at least one character
            yield from _pieces(text, first, last, limit, level)


def _before_a_letter(text: str, position: int) -> int:
    """`position`, or the end of the marks there that belong to the letter before; too many marks are not kept
    together."""
    end = end_of_marks(text, position)
    return end if end - position <= _MOST_MARKS else position
