"""How a ranking is shown: plain lines for files and pipes, a drawing for a terminal."""

from __future__ import annotations

import sys

from rich.text import Text

from blockrank.cli.console import aligned, preview
from blockrank.cli.evidence import marked, strongest
from blockrank.types import Ranking

_BAR_WIDTH = 16
_DOC_ID_WIDTH = 32
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_INDENT = "    "


def plain_text(ranking: Ranking) -> str:
    """The query, then one line per document: rank, score, doc_id and its beginning; with evidence, a further line."""
    rows = [
        (str(entry.rank), f"{entry.score:.4f}", preview(entry.doc_id), preview(entry.document.content))
        for entry in ranking
    ]
    lines = [preview(ranking.query)]
    for line, entry in zip(aligned(rows, right=(0,)), ranking, strict=True):
        lines.append(line)
        if entry.evidence:
            lines.append(f"{_INDENT}evidence: {strongest(entry)}")
    return "\n".join(lines)


def drawing(ranking: Ranking, width: int) -> Text:
    """The same for a terminal, with a bar for each score, relative to the best, and the evidence marked in the text.

    A logit has the bar of its place in [0, 1]; scores that are an order have none.
    """
    lengths = [0.0 if ranking.kind == "order" else max(entry.score, 0.0) for entry in ranking.in_unit_range()]
    best = max(lengths[0], sys.float_info.min)
    rows = [
        (
            str(entry.rank),
            f"{entry.score:.4f}",
            bar(min(length / best, 1.0)),
            preview(entry.doc_id, _DOC_ID_WIDTH),
            "" if entry.evidence else preview(entry.document.content, width),
        )
        for entry, length in zip(ranking, lengths, strict=True)
    ]
    drawn = Text(preview(ranking.query, width), "bold")
    for line, entry in zip(aligned(rows, right=(0,), width=width), ranking, strict=True):
        row = Text(line)
        row.highlight_regex(f"[{_EIGHTHS.strip()}]+", "cyan")
        drawn = Text.assemble(drawn, "\n", row)
        if entry.evidence:
            drawn = Text.assemble(drawn, "\n", marked(entry, width - len(_INDENT), _INDENT))
    return Text.assemble(drawn, "\n")


def bar(share: float) -> str:
    """A bar of block characters, `share` in [0, 1] of its columns, padded."""
    full, rest = divmod(round(share * _BAR_WIDTH * 8), 8)
    return ("█" * full + _EIGHTHS[rest]).ljust(_BAR_WIDTH)[:_BAR_WIDTH]
