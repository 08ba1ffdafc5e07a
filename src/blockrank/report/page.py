"""One self-contained HTML page: text, tables and pictures in a single file that needs no network and no script.

Every text is escaped here, once: a plain `str` is data, only `Html` is markup. The same input gives the same bytes.
"""

from __future__ import annotations

import base64
import html
import io
import math
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from blockrank.types import InputError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "PALETTE",
    "Cell",
    "Column",
    "Html",
    "Page",
    "code",
    "details",
    "escape",
    "facts",
    "figure",
    "items",
    "number",
    "paragraph",
    "picture",
    "short",
    "table",
]

_PNG = b"\x89PNG\r\n\x1a\n"
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
NOTHING = "–"  # printed where there is no value

# Okabe and Ito's colours, told apart by colour-blind readers, without those too pale for a white card.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DRAWING: dict[str, object] = {
    "svg.hashsalt": "blockrank",  # else every id is random
    "svg.fonttype": "none",  # letters stay letters: small files, and the reader's fonts know every script
    "text.parse_math": False,  # a name may hold dollar signs
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#57606a",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7eb",
    "figure.facecolor": "#ffffff",
    "axes.facecolor": "#ffffff",
}

# Nothing outside the file is ever asked for, whatever a text contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --band: #f5f7f9;
  --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181c; --ink: #e6e8eb; --soft: #9aa4af; --line: #3a424b; --band: #1f242a; --link: #7db7f0; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 66rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  overflow-wrap: break-word; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.75rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
p, ul, dl { max-width: 44rem; }
.lead { font-size: 1.1rem; color: var(--soft); margin: 0 0 1.25rem; }
a { color: var(--link); }
nav ul { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem;
  max-width: none; }
code { font: .92em ui-monospace, "SFMono-Regular", Consolas, "DejaVu Sans Mono", monospace; background: var(--band);
  padding: .1em .3em; border-radius: 4px; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .3rem 1.25rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 1.25rem 0; }
table { border-collapse: collapse; font-size: .95rem; }
caption { caption-side: top; text-align: left; color: var(--soft); padding: 0 0 .5rem; position: sticky; left: 0;
  max-width: min(44rem, calc(100vw - 2rem)); }
th, td { padding: .35rem .55rem; text-align: left; vertical-align: baseline; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } tbody th, tfoot th { font-weight: 500; min-width: 7rem; max-width: 24rem; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
thead .number { white-space: normal; }
tbody tr:nth-child(even) { background: var(--band); }
tfoot th, tfoot td { color: var(--soft); border-bottom: 0; }
tfoot tr:first-child > * { border-top: 2px solid var(--line); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.mark { display: inline-block; min-width: 1.1em; padding-left: .15em; text-align: left; }
strong { font-weight: 750; }
figure { margin: 1.5rem 0; }
figure .card { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: .75rem; overflow-x: auto;
  max-width: max-content; }
figure img { display: block; max-width: 100%; height: auto; min-width: 34rem; }
figcaption { color: var(--soft); font-size: .95rem; margin-top: .5rem; max-width: 44rem; }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--link); }
footer { margin-top: 3rem; color: var(--soft); font-size: .9rem; }
@media (max-width: 40rem) { body { padding: 1.25rem 1rem 3rem; } h1 { font-size: 1.5rem; }
  th, td { padding: .3rem .5rem; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
@media print {
  :root { color-scheme: light; --page: #fff; --ink: #000; --soft: #444; --line: #bbb; --band: #f5f5f5; }
  body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; } .wide, .card { overflow: visible; }
  figure img { min-width: 0; }
  details::details-content { content-visibility: visible; block-size: auto; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; } thead { display: table-header-group; } }
"""


class Html(str):
    """Markup that is ready to stand in a page. Every other string is text, and escaped."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Column:
    """A column of numbers: right-aligned, `digits` after the point, its best value in bold where `best` says which."""

    name: str
    digits: int = 3
    best: Literal["high", "low"] | None = None
    signed: bool = False


# A number with a mark behind it, such as (0.512, "▲"), is compared and aligned as the number.
Cell = str | float | tuple[float, str] | None


def escape(text: str) -> Html:
    """Text as markup; markup as it is. What no page may hold (control characters, lone surrogates) becomes U+FFFD."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(_UNPRINTABLE.sub("\ufffd", text)))


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """A number for readers: thousands grouped, a true minus sign, a dash where there is none or it is not finite."""
    if value is None or not math.isfinite(value):
        return NOTHING
    printed = f"{value:,.{digits}f}"
    if float(printed.replace(",", "")) == 0:
        return printed.removeprefix("-")  # neither -0.000 nor +0.000
    return (f"+{printed}" if signed and value > 0 else printed).replace("-", "−")


def code(text: str) -> Html:
    """A command, a path, a name from a program."""
    return Html(f"<code>{escape(text)}</code>")


def paragraph(*parts: str) -> Html:
    """One paragraph of texts and inline markup, set after each other."""
    return Html(f"<p>{''.join(escape(part) for part in parts)}</p>\n")


def items(entries: Sequence[str]) -> Html:
    """A bulleted list; nothing where there are no entries."""
    return Html("<ul>\n" + "".join(f"<li>{escape(entry)}</li>\n" for entry in entries) + "</ul>\n" if entries else "")


def facts(pairs: Mapping[str, str]) -> Html:
    """Names and what they are, side by side; nothing where there are none."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>\n" for name, text in pairs.items())
    return Html(f"<dl>\n{rows}</dl>\n" if rows else "")


def details(summary: str, *parts: str) -> Html:
    """Something to open by a click; printed in full where the browser can."""
    return Html(f"<details>\n<summary>{escape(summary)}</summary>\n{_blocks(parts)}</details>\n")


def short(text: str, longest: int = 32) -> str:
    """Text for a label in a picture: one line of at most `longest` characters; a longer one loses its middle."""
    line = " ".join(_UNPRINTABLE.sub("\ufffd", text).split())
    if len(line) > longest:
        end = (longest - 1) // 2  # names often differ at their ends
        line = f"{line[: longest - 1 - end]}…{line[len(line) - end :]}"
    return f" {line}" if line.startswith("_") else line  # matplotlib leaves such labels out of a legend


def picture(width: float, height: float, draw: Callable[[Figure], None], *, extra: str = "plot") -> bytes:
    """An SVG picture of `width` x `height` inches that `draw` draws on an empty matplotlib figure; the same bytes each
    time. 8 inches fill the width of a page.

    Raises `MissingExtraError`, naming `extra`, without matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(f"a figure needs matplotlib: pip install 'blockrank[{extra}]'.") from error
    stream = io.BytesIO()
    with rc_context(_DRAWING), warnings.catch_warnings():
        # matplotlib only measures the text; the reader's fonts draw it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        drawn = Figure(figsize=(width, height), layout="constrained")
        draw(drawn)
        drawn.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def figure(picture: bytes, alt: str, caption: str) -> Html:
    """An SVG or PNG picture inside the page, on a white card. `alt` says what is seen, `caption` how to read it.

    The picture is an image, not inline markup: its ids cannot clash and nothing in it can run.
    Raises `InputError` for other formats.
    """
    if picture.startswith(_PNG):
        kind = "image/png"
    elif picture.lstrip().startswith((b"<?xml", b"<svg")):
        kind = "image/svg+xml"
    else:
        raise InputError("a figure must be an SVG or a PNG picture.")
    data = base64.b64encode(picture).decode("ascii")
    image = f'<img src="data:{kind};base64,{data}" alt="{escape(alt)}">'
    return Html(f'<figure>\n<div class="card">{image}</div>\n<figcaption>{escape(caption)}</figcaption>\n</figure>\n')


def table(
    header: Sequence[str | Column], rows: Sequence[Sequence[Cell]], caption: str, *, last: Sequence[Sequence[Cell]] = ()
) -> Html:
    """A table whose first column names its rows.

    `header`: a string heads a column of texts, a `Column` one of numbers. `last`: rows set apart at the end that do
    not compete for the best value (a ceiling, a mean). A cell of None is printed as a dash.
    """
    for row in (*rows, *last):
        assert len(row) == len(header), "a row has as many cells as the header"
    best = [_best(column, [row[place] for row in rows]) for place, column in enumerate(header)]
    marked = {place for row in (*rows, *last) for place, cell in enumerate(row) if isinstance(cell, tuple)}
    # Where one number has a mark, every number leaves room for one: the digits stay under each other.
    rows, last = ([_with_marks(row, marked) for row in part] for part in (rows, last))
    heads = "".join(f'<th scope="col"{_class(column)}>{escape(_name(column))}</th>' for column in header)
    body = "".join(_row(header, row, best) for row in rows)
    foot = "".join(_row(header, row, [None] * len(header)) for row in last)
    inner = f"<caption>{escape(caption)}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody>\n"
    inner += f"<tfoot>\n{foot}</tfoot>\n" if foot else ""
    # Reached by the keyboard, so that a wide table can be scrolled without a mouse.
    return Html(f'<div class="wide" tabindex="0">\n<table>\n{inner}</table>\n</div>\n')


def _with_marks(row: Sequence[Cell], places: Collection[int]) -> list[Cell]:
    return [
        (math.nan if cell is None else cell, "") if place in places and not isinstance(cell, (str, tuple)) else cell
        for place, cell in enumerate(row)
    ]


def _name(column: str | Column) -> str:
    return column.name if isinstance(column, Column) else column


def _class(column: str | Column) -> str:
    return ' class="number"' if isinstance(column, Column) else ""


def _value(cell: Cell) -> float | None:
    """The number in a cell; None for texts, dashes and what is not finite."""
    value = cell[0] if isinstance(cell, tuple) else cell
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _best(column: str | Column, cells: Sequence[Cell]) -> str | None:
    """The best value of a column as it is printed; None where none is better than another."""
    if not isinstance(column, Column) or column.best is None:
        return None
    values = [value for cell in cells if (value := _value(cell)) is not None]
    printed = {number(value, column.digits) for value in values}
    if len(printed) < 2:
        return None
    return number(max(values) if column.best == "high" else min(values), column.digits)


def _row(header: Sequence[str | Column], row: Sequence[Cell], best: Sequence[str | None]) -> str:
    cells = []
    for place, (column, cell) in enumerate(zip(header, row, strict=True)):
        tag, scope = ("th", ' scope="row"') if place == 0 else ("td", "")
        cells.append(f"<{tag}{scope}{_class(column)}>{_content(column, cell, best[place])}</{tag}>")
    return f"<tr>{''.join(cells)}</tr>\n"


def _content(column: str | Column, cell: Cell, best: str | None) -> Html:
    if isinstance(cell, str):
        return escape(cell)
    digits, signed = (column.digits, column.signed) if isinstance(column, Column) else (3, False)
    value = _value(cell)
    printed = number(value, digits, signed=signed)
    bold = best is not None and value is not None and number(value, digits) == best
    mark = f'<span class="mark">{escape(cell[1])}</span>' if isinstance(cell, tuple) else ""
    return Html((f"<strong>{printed}</strong>" if bold else printed) + mark)


def _blocks(parts: Sequence[str]) -> str:
    """Markup as it is; a plain text becomes a paragraph."""
    return "".join(part if isinstance(part, Html) else paragraph(part) for part in parts)


class Page:
    """A page that grows by sections. `html()` is the whole file."""

    def __init__(self, title: str, lead: str) -> None:
        self._title, self._lead = title, lead
        self._sections: list[tuple[str, str]] = []

    def section(self, heading: str, *parts: str) -> Page:
        """Add a section; a plain text among `parts` becomes a paragraph. Returns the page, for the next call."""
        self._sections.append((heading, _blocks(parts)))
        return self

    def html(self) -> str:
        """The file's text, to be written as UTF-8."""
        title = escape(self._title)
        head = (
            '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            f'<meta name="color-scheme" content="light dark">\n<title>{title}</title>\n<style>{_STYLE}</style>\n'
        )
        sections = "".join(
            f'<section aria-labelledby="section-{place}">\n<h2 id="section-{place}">{escape(heading)}</h2>\n'
            f"{body}</section>\n"
            for place, (heading, body) in enumerate(self._sections, start=1)
        )
        header = f'<header>\n<h1>{title}</h1>\n<p class="lead">{escape(self._lead)}</p>\n{self._contents()}</header>\n'
        body = f"{header}<main>\n{sections}</main>\n"
        return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}</head>\n<body>\n{body}</body>\n</html>\n'

    def _contents(self) -> str:
        """Links to the sections, where there are enough to lose one's way."""
        if len(self._sections) < 4:
            return ""
        links = "".join(
            f'<li><a href="#section-{place}">{escape(heading)}</a></li>\n'
            for place, (heading, _) in enumerate(self._sections, start=1)
        )
        return f'<nav aria-label="Contents">\n<ul>\n{links}</ul>\n</nav>\n'
