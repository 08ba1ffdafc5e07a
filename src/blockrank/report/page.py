"""One self-contained HTML page: text, tables and pictures in a single file that needs no network and no script.

The markup is in `templates/`, rendered by Jinja2. Every text is escaped there, once: a plain `str` is data, only `Html`
is markup. The same input gives the same bytes.
"""

from __future__ import annotations

import base64
import io
import math
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from blockrank.types import InputError, MissingExtraError

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

__all__ = [
    "PALETTE",
    "Cell",
    "Column",
    "Html",
    "Page",
    "code",
    "details",
    "facts",
    "figure",
    "items",
    "listing",
    "number",
    "paragraph",
    "picture",
    "short",
    "table",
]

_PNG = b"\x89PNG\r\n\x1a\n"
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
NOTHING = "–"  # printed where there is no value
_CONTENTS = 4  # sections among which one may lose one's way: links to them stand at the top

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


class Html(str):
    """Markup that is ready to stand in a page. Every other string is text, and escaped."""

    __slots__ = ()

    def __html__(self) -> str:
        """Itself: what a template sets into a page as it is."""
        return self


@dataclass(frozen=True, slots=True)
class Column:
    """A column of numbers: right-aligned, `digits` after the point, its best value in bold where `best` says which."""

    name: str
    digits: int = 3
    best: Literal["high", "low"] | None = None
    signed: bool = False


# A number with a mark behind it, such as (0.512, "▲"), is compared and aligned as the number.
Cell = str | float | tuple[float, str] | None


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
    return _part("code", text)


def listing(text: str) -> Html:
    """Lines of a file or a program, as they stand there."""
    return _part("listing", text)


def paragraph(*parts: str) -> Html:
    """One paragraph of texts and inline markup, set after each other."""
    return _part("paragraph", parts)


def items(entries: Sequence[str]) -> Html:
    """A bulleted list; nothing where there are no entries."""
    return _part("items", entries) if entries else Html()


def facts(pairs: Mapping[str, str]) -> Html:
    """Names and what they are, side by side; nothing where there are none."""
    return _part("facts", list(pairs.items())) if pairs else Html()


def details(summary: str, *parts: str) -> Html:
    """Something to open by a click; printed in full where the browser can."""
    return _part("details", summary, _blocks(parts))


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
    return _part("figure", f"data:{kind};base64,{data}", alt, caption)


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
    heads = [_Shown(_name(column), isinstance(column, Column)) for column in header]
    body = [_shown(header, row, best) for row in rows]
    foot = [_shown(header, row, [None] * len(header)) for row in last]
    return _part("table", heads, body, foot, caption)


@dataclass(frozen=True, slots=True)
class _Shown:
    """A cell as the template writes it. mark: stands behind a number; None where its column has no marks."""

    text: str
    is_number: bool
    is_best: bool = False
    mark: str | None = None


def _with_marks(row: Sequence[Cell], places: Collection[int]) -> list[Cell]:
    return [
        (math.nan if cell is None else cell, "") if place in places and not isinstance(cell, (str, tuple)) else cell
        for place, cell in enumerate(row)
    ]


def _name(column: str | Column) -> str:
    return column.name if isinstance(column, Column) else column


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


def _shown(header: Sequence[str | Column], row: Sequence[Cell], best: Sequence[str | None]) -> list[_Shown]:
    return [_cell(column, cell, top) for column, cell, top in zip(header, row, best, strict=True)]


def _cell(column: str | Column, cell: Cell, best: str | None) -> _Shown:
    is_number = isinstance(column, Column)
    if isinstance(cell, str):
        return _Shown(cell, is_number)
    digits, signed = (column.digits, column.signed) if isinstance(column, Column) else (3, False)
    value = _value(cell)
    is_best = best is not None and value is not None and number(value, digits) == best
    mark = cell[1] if isinstance(cell, tuple) else None
    return _Shown(number(value, digits, signed=signed), is_number, is_best, mark)


def _blocks(parts: Sequence[str]) -> Html:
    """Markup as it is; a plain text becomes a paragraph."""
    return Html("".join(part if isinstance(part, Html) else paragraph(part) for part in parts))


def _part(name: str, *arguments: object) -> Html:
    """A part of a page, by the macro of this name."""
    part: Any = getattr(_templates().get_template("parts.html").module, name)
    return Html(part(*arguments))


def _printable(value: object) -> object:
    """A value as a page may hold it: of texts, what is no character for readers becomes U+FFFD."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return _UNPRINTABLE.sub("\ufffd", value)


@cache
def _templates() -> Environment:
    """Where the templates are and how they are rendered. Raises `MissingExtraError` without Jinja2."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise MissingExtraError("a page needs Jinja2: pip install 'blockrank[plot]'.") from None
    return Environment(
        loader=PackageLoader("blockrank.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


class Page:
    """A page that grows by sections. `html()` is the whole file."""

    def __init__(self, title: str, lead: str) -> None:
        self._title, self._lead = title, lead
        self._sections: list[tuple[str, Html]] = []

    def section(self, heading: str, *parts: str) -> Page:
        """Add a section; a plain text among `parts` becomes a paragraph. Returns the page, for the next call."""
        self._sections.append((heading, _blocks(parts)))
        return self

    def html(self) -> str:
        """The file's text, to be written as UTF-8."""
        return (
            _templates()
            .get_template("page.html")
            .render(
                title=self._title,
                lead=self._lead,
                sections=self._sections,
                has_contents=len(self._sections) >= _CONTENTS,
            )
        )
