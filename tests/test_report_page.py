"""The self-contained page: well-formed, offline, everything escaped, numbers aligned and the best one in bold."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockrank.report.page import (
    Cell,
    Column,
    Html,
    Page,
    _templates,
    code,
    details,
    facts,
    figure,
    items,
    listing,
    number,
    paragraph,
    picture,
    short,
    table,
)
from blockrank.types import InputError, MissingExtraError

VOID = {"meta", "img", "br", "hr", "link", "input", "wbr"}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)


class Checker(HTMLParser):
    """Reads a page as a browser's parser would see its tags; raises where one is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def found(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return "".join(self.texts)


def check_offline(page: Checker) -> None:
    """Nothing is fetched: no script, no outside address in any attribute that loads or leads."""
    assert not page.found("script")
    assert not page.found("link")
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), f"<{tag}> has an event handler"
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/")), f"<{tag}> leads to {value}"


texts = st.text(st.characters(codec="utf-16"), max_size=40) | st.sampled_from(
    ['<b>&"', "</style>", "a'b", "-->", "\x00"]
)


@given(st.lists(texts, min_size=8, max_size=8), st.lists(st.floats() | st.none() | texts, max_size=5))
def test_no_text_becomes_markup(words: list[str], cells: list[float | str | None]) -> None:
    rows: list[list[Cell]] = [[words[0], cell] for cell in cells]
    page = Page(words[0], words[1])
    page.section(
        words[2],
        words[3],
        table([words[4], Column(words[5], best="high")], rows, words[6], last=[[words[7], (1.0, words[0])]]),
        figure(PNG, words[0], words[1]),
        details(words[2], paragraph(words[3], code(words[4])), listing(words[5])),
        facts({words[5]: words[6]}),
        items(words),
    )
    text = page.html()
    read = Checker(text)
    check_offline(read)
    text.encode("utf-8")
    empty = Page("", "").section(
        "",
        table(["", Column("")], [["", ""] for _ in cells], "", last=[["", ""]]),
        figure(PNG, "", ""),
        details("", paragraph("", code("")), listing("")),
        facts({"": ""}),
        items([""] * 8),
    )
    extra = {"p", "span", "strong"}  # of the plain text, the mark and a best value
    assert [tag for tag, _ in read.tags if tag not in extra] == [
        tag for tag, _ in Checker(empty.html()).tags if tag not in extra
    ]


def test_texts_are_read_as_they_were_given() -> None:
    read = Checker(Page("a < b & c", "quote \" and '").section("<h>", "1 < 2", paragraph("x ", code("y<z"))).html())
    assert all(given in read.text for given in ("a < b & c", "quote \" and '", "<h>", "1 < 2", "x y<z"))
    assert code("a\x00b\ud800") == "<code>a\ufffdb\ufffd</code>"
    assert code(Html("<b>x</b>")) == "<code><b>x</b></code>"


def test_table_names_rows_and_columns() -> None:
    read = Checker(table(["system", Column("nDCG@10")], [["bm25", 0.5]], "All systems", last=[["ceiling", 0.9]]))
    assert [scope["scope"] for scope in read.found("th")] == ["col", "col", "row", "row"]
    assert [cell.get("class") for cell in read.found("td")] == ["number", "number"]
    assert len(read.found("caption")) == len(read.found("tfoot")) == 1
    assert "All systems" in read.text


@pytest.mark.parametrize(
    ("best", "values", "expected"),
    [
        ("high", [0.5, 0.7, 0.6], ["0.700"]),
        ("low", [0.5, 0.7, 0.6], ["0.500"]),
        ("high", [0.7001, 0.7002, 0.6], ["0.700", "0.700"]),  # equal as printed: no reader sees which is better
        ("high", [0.7, math.nan, None, 0.6], ["0.700"]),
        ("high", [(0.7, "▲"), (0.6, "")], ["0.700"]),
        ("high", [0.7, 0.7], []),
        ("high", [0.7], []),
        ("high", [None, None], []),
        (None, [0.5, 0.7], []),
    ],
)
def test_best_value_is_bold(best: str | None, values: list[Cell], expected: list[str]) -> None:
    rows: list[list[Cell]] = [["row", value] for value in values]
    text = table(["", Column("m", best=best)], rows, "", last=[["ceiling", 0.9]])  # type: ignore[arg-type]
    assert [part.split("<")[0] for part in text.split("<strong>")[1:]] == expected


def test_rows_must_fit_the_header() -> None:
    with pytest.raises(AssertionError, match="as many cells"):
        table(["a", "b"], [["x"]], "")


@pytest.mark.parametrize(
    ("value", "digits", "signed", "printed"),
    [
        (0.12345, 3, False, "0.123"),
        (1234567, 0, False, "1,234,567"),
        (-0.5, 2, False, "−0.50"),
        (0.5, 2, True, "+0.50"),
        (-0.0001, 3, True, "0.000"),
        (0.0001, 3, True, "0.000"),
        (0, 0, True, "0"),
        (None, 3, False, "–"),
        (math.nan, 3, False, "–"),
        (-math.inf, 3, True, "–"),
    ],
)
def test_numbers_for_readers(value: float | None, digits: int, signed: bool, printed: str) -> None:
    assert number(value, digits, signed=signed) == printed


def test_contents_lead_to_every_section() -> None:
    page = Page("t", "l")
    for name in "abc":
        page.section(name)
    assert not Checker(page.html()).found("nav")
    read = Checker(page.section("d").html())
    assert [link["href"] for link in read.found("a")] == [f"#{heading['id']}" for heading in read.found("h2")]


def test_only_pictures_become_figures() -> None:
    assert Checker(figure(b"<svg/>", "seen", "read")).found("img")[0]["alt"] == "seen"
    with pytest.raises(InputError, match="SVG or a PNG"):
        figure(b"GIF89a", "", "")


def test_nothing_stays_nothing() -> None:
    assert items([]) == facts({}) == ""


# Pictures


def plot(title: str) -> bytes:
    return picture(4, 3, lambda drawn: drawn.add_subplot().set(title=title))


def test_picture_is_the_same_each_time_and_holds_any_text() -> None:
    title = '$x\\foo$ <b>&" 中文 _a'
    drawn = plot(title)
    assert drawn == plot(title) != plot("other")
    tree = ElementTree.fromstring(drawn)
    assert title in {"".join(node.itertext()) for node in tree.iter("{http://www.w3.org/2000/svg}text")}


def test_picture_leaves_no_setting_behind() -> None:
    program = (
        "import sys; from matplotlib import rcParams\n"
        "def settings(): return {name: rcParams[name] for name in rcParams if name != 'backend'}\n"
        "before = settings()\n"
        "from blockrank.report.page import picture; picture(2, 2, lambda figure: figure.subplots())\n"
        "assert settings() == before; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"blockrank\[eval\]"):
        picture(2, 2, lambda drawn: None, extra="eval")


def test_missing_jinja_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    _templates.cache_clear()
    with pytest.raises(MissingExtraError, match=r"blockrank\[plot\]"):
        paragraph("text")


@pytest.mark.parametrize("make", [code, listing, paragraph, lambda text: items([text]), lambda text: facts({"": text})])
def test_markup_of_the_kit_is_set_into_a_part_as_it_is(make: Callable[[str], Html]) -> None:
    inner = code("a < b")
    assert inner == "<code>a &lt; b</code>"
    assert make(inner).count(inner) == 1


@given(texts, st.integers(1, 40))
def test_short_fits_on_one_line(text: str, longest: int) -> None:
    label = short(text, longest)
    assert len(label.removeprefix(" ")) <= longest
    assert not label.startswith("_")
    assert len(label.splitlines()) <= 1
