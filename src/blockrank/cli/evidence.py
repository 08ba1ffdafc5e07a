"""How evidence is shown: a document's words by the attention they received."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from blockrank.cli.console import ELLIPSIS, preview, printable
from blockrank.report.evidence import evidence_words
from blockrank.types import Evidence, RankedDocument

_EXCERPT_WORDS = 48
_STRONGEST = 5
# Shares relative to the strongest word of a document, and the style from there on.
_STYLES = ((0.6, "bold black on bright_yellow"), (0.3, "black on yellow"), (0.12, "underline"))


def strongest(entry: RankedDocument, count: int = _STRONGEST) -> str:
    """The words with the largest shares, best first, as `word 0.31, ...`."""
    best = sorted(evidence_words(entry), key=lambda item: -item.share)[:count]
    return ", ".join(f"{preview(_text(entry, item))} {item.share:.2f}" for item in best)


def marked(entry: RankedDocument, width: int, indent: str = "") -> Text:
    """The part of a document that holds most of its evidence, words marked by their share, in lines of `width`."""
    items = evidence_words(entry)
    if not items:  # the tokens read cover white space alone
        return Text(indent + preview(entry.document.content, width))
    first = _densest([item.share for item in items], _EXCERPT_WORDS)
    kept = items[first : first + _EXCERPT_WORDS]
    most = max(item.share for item in items) or 1.0
    shown = Text(ELLIPSIS + " " if first else "")
    for place, item in enumerate(kept):
        if place:
            shown.append(_between(entry, kept[place - 1], item))
        shown.append(printable(_text(entry, item)), _style(item.share / most))
    if first + len(kept) < len(items):
        shown.append(" " + ELLIPSIS)
    lines = shown.wrap(Console(), max(width, 20))
    return Text("\n").join(Text.assemble(indent, line) for line in lines)


def _text(entry: RankedDocument, item: Evidence) -> str:
    return _field(entry, item)[item.start : item.end]


def _field(entry: RankedDocument, item: Evidence) -> str:
    return entry.document.title if item.field == "title" else entry.text


def _between(entry: RankedDocument, before: Evidence, after: Evidence) -> str:
    """What stands between two words, white space as one space."""
    if before.field != after.field:
        return " "
    gap = _text(entry, replace(before, start=before.end, end=after.start))
    return printable(re.sub(r"\s+", " ", gap))


def _densest(shares: Sequence[float], width: int) -> int:
    """Where the run of `width` neighbours with the largest sum begins."""
    sums = list(itertools.accumulate(shares, initial=0.0))
    starts = range(max(len(shares) - width, 0) + 1)
    return max(starts, key=lambda start: sums[min(start + width, len(shares))] - sums[start])


def _style(relative: float) -> str:
    return next((style for least, style in _STYLES if relative >= least), "")
