"""What a word is, in every script; the words of a text, and where they stand in it.

Texts are compared after folding: NFKC and case folding (Unicode Standard Annex 15, and chapter 3.13), without what is
invisible or optional in writing (soft hyphens, zero-width characters, Arabic harakat and tatweel, Hebrew points, Greek
and Russian accents), digits of every script as 0-9. A word is a run of letters, digits and underscores with their
marks. Scripts that put no space between words, and Korean, whose particles are written together with their nouns, are
compared by pairs of neighbouring characters, as in Lucene's CJKAnalyzer. An emoji is a word.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = [
    "Word",
    "document_words",
    "end_of_marks",
    "fold",
    "is_inside_word",
    "located_words",
    "query_words",
    "spans_of_words",
]

_APOSTROPHES = "'\u2019\u2018\u02bc\u02bb\u055a\u05f3"
_SIGNS = {0x2120: " ", 0x2122: " "}  # service mark and trade mark: NFKC would write them as letters of the word before
_IGNORED = (
    (0x034F, 0x034F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x3164, 0x3164), (0xFE00, 0xFE0F),
    (0xFFA0, 0xFFA0), (0xE0100, 0xE01EF),
)  # fmt: skip
_OPTIONAL = (  # Hebrew points, Arabic signs and vowels, tatweel
    (0x0591, 0x05BD), (0x05BF, 0x05BF), (0x05C1, 0x05C2), (0x05C4, 0x05C5), (0x05C7, 0x05C7), (0x0610, 0x061A),
    (0x0640, 0x0640), (0x064B, 0x0652), (0x0656, 0x065F), (0x0670, 0x0670), (0x06D6, 0x06DC), (0x06DF, 0x06E8),
    (0x06EA, 0x06ED), (0x08D3, 0x08FF),
)  # fmt: skip
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x11FF), (0x1780, 0x17FF), (0x1950, 0x19FF), (0x1A20, 0x1AAF), (0x1B00, 0x1B7F),
    (0x2E80, 0x312F), (0x31A0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA000, 0xA4CF), (0xA980, 0xA9FF),
    (0xAA60, 0xAADF), (0xAC00, 0xD7FF), (0xF900, 0xFAFF), (0x1AFF0, 0x1B2FF), (0x20000, 0x3FFFF),
)  # fmt: skip
_EMOJI = ((0x2600, 0x27BF), (0x2B00, 0x2BFF), (0x1F000, 0x1F1E5), (0x1F200, 0x1F3FA), (0x1F400, 0x1FAFF))
_JAMO = ((0x1160, 0x11FF),)  # vowels and finals, which join the syllable before them
# Greek accents, which capitals omit; Cyrillic stress marks, written for learners; the dot of a Turkish capital I; the
# hamza and madda of alef.
_ACCENTED = re.compile(
    "(?<=[\u0370-\u03ff])[\u0300-\u0345]+|(?<=[\u0400-\u052f])[\u0300\u0301]+|(?<=i)\u0307+|(?<=\u0627)[\u0653-\u0655]+"
)

# Shapes: w a letter, d a digit or underscore, u one of an unspaced script, m a mark, e emoji, r half of a flag; others
# as they are.
_WORD = re.compile(
    r"(?<!\.)(w(?:\.w)+)(?![wdm])"  # an abbreviation
    r"|([wd][wdm]*+)(?!['+\#])"  # nearly all
    r"|([wd][wdm]*(?:'[wd][wdm]*)*(?:(?:\+\+|\#)(?![wdu+#]))?)"  # with apostrophes, or a sign at its end
    r"|((?:um*)+)|rr|e"
)
_ABBREVIATION, _PLAIN, _COMPOUND, _UNSPACED_RUN = 1, 2, 3, 4  # groups
_UNIT = re.compile("um*")


@dataclass(frozen=True, slots=True)
class Word:
    """A folded word, and the characters [start, end) of the text as given that it was made of."""

    text: str
    start: int
    end: int


class _Folding(dict[int, str | None]):
    """Decomposed, case-folded character -> its folded form, or None: a cache filled as characters occur."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        found: str | None = character
        if unicodedata.category(character) == "Cf" or _in(code, _IGNORED) or _in(code, _OPTIONAL):
            found = None
        elif character in _APOSTROPHES:
            found = "'"
        elif character == "ı":
            found = "i"  # capitals cannot tell it from i
        elif character.isdecimal():
            found = str(unicodedata.decimal(character))
        self[code] = found
        return found


class _Shapes(dict[int, str]):
    """The shape of a folded character: filled as characters occur."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        shape = " "
        if unicodedata.category(character)[0] == "M":
            shape = "m"
        elif character.isalpha():
            shape = "u" if _in(code, _UNSPACED) else "w"
        elif character.isalnum() or character == "_":
            shape = "d"
        elif character in "'.+#":
            shape = character
        elif 0x1F1E6 <= code <= 0x1F1FF:
            shape = "r"
        elif _in(code, _EMOJI):
            shape = "e"
        self[code] = shape
        return shape


class _Continuing(dict[str, bool]):
    """Whether a character may change, or belongs to, the one before it: a cache filled as characters occur."""

    def __missing__(self, character: str) -> bool:
        first = unicodedata.normalize("NFKD", character)[0]
        category = unicodedata.category(first)
        found = category[0] == "M" or category == "Cf" or _in(ord(first), _JAMO) or _in(ord(first), _IGNORED)
        self[character] = found or _in(ord(first), _OPTIONAL)
        return self[character]


def _in(code: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= code <= last for first, last in ranges)


_FOLDING, _SHAPES, _CONTINUING = _Folding(), _Shapes(), _Continuing()


def fold(text: str) -> str:
    """A text as it is compared; folding it again changes nothing."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKD", text.translate(_SIGNS)).casefold().translate(_FOLDING)
    return unicodedata.normalize("NFC", _ACCENTED.sub("", folded))


def document_words(text: str) -> list[str]:
    """The words of a text that is searched, in order.

    In scripts without spaces: every character and every pair of neighbours, so that any query can match. `C++` counts
    as `c` too. The parts around an apostrophe are words, except single letters, as in `l'eau` or `Stoker's`.
    """
    return [word for word, _, _ in _folded_words(fold(text), singles=True)]


def query_words(text: str) -> list[str]:
    """The words of a query, in order: as `document_words`, but in unspaced scripts pairs alone where there are any."""
    return [word for word, _, _ in _folded_words(fold(text), singles=False)]


def located_words(text: str) -> list[Word]:
    """`document_words` with their places in `text`, by start."""
    starts, folded = _folded_with_starts(text)
    words = _folded_words(folded, singles=True)
    located = [Word(word, starts[start], _end(starts, end)) for word, start, end in words]
    return sorted(located, key=lambda word: (word.start, word.end))


def spans_of_words(text: str, is_wanted: Callable[[str], bool]) -> list[tuple[int, int]]:
    """Where wanted words stand in a text, as (start, end) of its characters, in order; overlapping spans are merged."""
    spans: list[tuple[int, int]] = []
    for word in located_words(text):
        if is_wanted(word.text):
            if spans and word.start < spans[-1][1]:
                spans[-1] = spans[-1][0], max(spans[-1][1], word.end)
            else:
                spans.append((word.start, word.end))
    return spans


def is_inside_word(text: str, position: int) -> bool:
    """Whether no word begins or ends between the characters before and at `position`.

    In an unspaced script each character counts as a word, with its marks.
    """
    if not 0 < position < len(text):
        return False
    if _CONTINUING[text[position]]:
        return _shape_before(text, position) in ("w", "d", "u")
    return {_shape_before(text, position), fold(text[position]).translate(_SHAPES)[:1]} <= {"w", "d"}


def end_of_marks(text: str, position: int) -> int:
    """End of the marks and invisible characters that follow the character before `position`."""
    while 0 < position < len(text) and _CONTINUING[text[position]]:
        position += 1
    return position


def _shape_before(text: str, position: int) -> str:
    """Shape of the character whose marks, if any, end at `position`."""
    start = position - 1
    while start and _CONTINUING[text[start]]:
        start -= 1
    return fold(text[start:position]).translate(_SHAPES).rstrip("m")[-1:]


def _folded_words(folded: str, *, singles: bool) -> Iterator[tuple[str, int, int]]:
    """Words of a folded text, and where they stand in it. singles: single characters of unspaced scripts, too."""
    shapes = folded.translate(_SHAPES)
    for match in _WORD.finditer(shapes):
        start, end = match.span()
        if match.lastindex == _UNSPACED_RUN:
            spans = _pairs([unit.span() for unit in _UNIT.finditer(shapes, start, end)], singles)
        elif match.lastindex == _COMPOUND:
            spans = _divided(shapes, start, end)
        elif match.lastindex == _ABBREVIATION:
            yield folded[start:end].replace(".", ""), start, end
            continue
        else:
            yield folded[start:end], start, end
            continue
        for first, last in spans:
            yield folded[first:last], first, last


def _pairs(units: list[tuple[int, int]], singles: bool) -> Iterator[tuple[int, int]]:
    """Overlapping pairs of neighbours; also the single units where there is only one or `singles` asks for them."""
    if singles or len(units) == 1:
        yield from units
    for (start, _), (_, end) in itertools.pairwise(units):
        yield start, end


def _divided(shapes: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Parts of a word between apostrophes, single characters only where there is nothing else; of `c++` also `c`."""
    bare = start + len(shapes[start:end].rstrip("+#"))
    parts = [(start + part.start(), start + part.end()) for part in re.finditer("[^']+", shapes[start:bare])]
    long = [(first, last) for first, last in parts if last - first - shapes.count("m", first, last) > 1]
    yield from long or parts[:1]
    if bare < end:
        yield parts[-1][0], end


def _folded_with_starts(text: str) -> tuple[list[int], str]:
    """The folded text, and the position in `text` of each of its characters and of its end.

    Text is folded in units: a character with those that continue it. Each unit can be folded alone.
    """
    if text.isascii():
        return list(range(len(text) + 1)), text.lower()
    starts: list[int] = []
    parts: list[str] = []
    at = 0
    while at < len(text):
        end = end_of_marks(text, at + 1)
        parts.append(fold(text[at:end]))
        starts += [at] * len(parts[-1])
        at = end
    return [*starts, len(text)], "".join(parts)


def _end(starts: list[int], end: int) -> int:
    """End of a word in the original text: the end of the original character behind the word's last folded one."""
    last = starts[end - 1]
    while starts[end] == last:
        end += 1
    return starts[end]
