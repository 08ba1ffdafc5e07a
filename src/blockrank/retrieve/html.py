"""HTML to blocks of readable text, with their line numbers in the source."""

from __future__ import annotations

import re
import warnings
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from blockrank.retrieve.passages import TextBlock, heading_name
from blockrank.types import MissingExtraError

SUFFIXES = frozenset({".html", ".htm", ".xhtml"})
_SKIPPED = frozenset({"head", "iframe", "nav", "noscript", "script", "select", "style", "svg", "template"})
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_BLOCKS = frozenset({
    "address", "article", "aside", "blockquote", "body", "button", "caption", "dd", "details", "dialog", "div", "dl",
    "dt", "fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "html", "label", "legend", "li", "main",
    "ol", "option", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "title", "tr", "ul",
    *_HEADINGS,
})  # fmt: skip
_APART = frozenset({"br", "td", "th"})  # inline elements that still separate words
_BETWEEN = "\n\n"
_TAG = re.compile(r"<(?:[^<>\"']|\"[^\"]*\"|'[^']*')*>")


Pieces = list[tuple[str, int]]  # text, and its line in the source


@dataclass(frozen=True, slots=True)
class HtmlText:
    """The readable text of an HTML page, its blocks separated by blank lines, and the positions of its pieces in the
    source."""

    text: str
    blocks: list[TextBlock]
    starts: list[int]
    lines: list[int]

    def line(self, position: int) -> int:
        """Line in the source of a character of `text`, from 1."""
        return self.lines[bisect_right(self.starts, position) - 1]


def read_page(source: str) -> HtmlText:
    """The text of an HTML page in blocks under its headings. Navigation, scripts and styles are left out.

    A page without first-level headings gets its title as heading. Raises `MissingExtraError` without the extra.
    """
    soup = _parsed(source)
    title = heading_name(soup.title.get_text()) if soup.title else ""
    headings = [(1, title)] if title and not soup.find("h1") else []
    page, texts, at = HtmlText("", [], [], []), [], 0
    for tag, pieces in _block_texts(soup, source):
        if is_heading := tag.name in _HEADINGS:
            level = _HEADINGS.index(tag.name) + 1
            name = heading_name("".join(text for text, _ in pieces))
            headings = [*((other, above) for other, above in headings if other < level), (level, name)]
        start = at
        for text, line in pieces:
            page.starts.append(at)
            page.lines.append(line)
            at += len(text)
        page.blocks.append(TextBlock(start, at, tuple(name for _, name in headings), is_heading))
        texts.append("".join(text for text, _ in pieces))
        at += len(_BETWEEN)
    return replace(page, text=_BETWEEN.join(texts))


def decoded(data: bytes) -> str | None:
    """Text of a page that is not UTF-8, in its declared or detected encoding; None if none fits."""
    text = _library().UnicodeDammit(data, is_html=True).unicode_markup
    return None if text is None else str(text)


def _library() -> Any:
    try:
        import bs4
    except ImportError:
        raise MissingExtraError("reading HTML needs beautifulsoup4: pip install 'blockrank[search]'.") from None
    return bs4


def _parsed(source: str) -> Any:
    """The tree."""
    bs4 = _library()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its warnings about other formats that the text may have
        return bs4.BeautifulSoup(source, "html.parser")


def _block_texts(soup: Any, source: str) -> Iterator[tuple[Any, Pieces]]:
    """Each run of text inside one block element: the element, and its pieces."""
    pieces: Pieces = []
    tag = soup
    for block, text, line in _strings(soup, source):
        if block is not tag:
            if found := _tidied(pieces, keep=tag.name == "pre"):
                yield tag, found
            tag, pieces = block, []
        pieces += [(row, line + index) for index, row in enumerate(text.splitlines(keepends=True))]
    if found := _tidied(pieces, keep=tag.name == "pre"):
        yield tag, found


def _strings(soup: Any, source: str) -> Iterator[tuple[Any, str, int]]:
    """(block element around it, text, line it begins on) of every text that a reader sees."""
    from bs4.element import CData, NavigableString, Tag

    starts = [0, *(match.end() for match in re.finditer("\n", source))]
    blocks: dict[int, Any] = {id(soup): soup}  # block element that contains or is each element, None if hidden
    line = 1
    for item in soup.descendants:
        block = blocks[id(item.parent)]
        if not isinstance(item, Tag):
            if block is not None and type(item) in (NavigableString, CData):
                yield block, str(item), line
            line += item.count("\n")
            continue
        if item.sourceline is not None:
            markup = _TAG.match(source, starts[item.sourceline - 1] + (item.sourcepos or 0))
            line = max(line, item.sourceline + (markup.group().count("\n") if markup else 0))
        if item.name in _SKIPPED:
            block = None
        elif item.name in _BLOCKS and block is not None:
            block = item
        blocks[id(item)] = block
        if item.name in _APART and block is not None:
            yield block, " ", line


def _tidied(pieces: Pieces, *, keep: bool) -> Pieces:
    """Pieces stripped of white space, with runs of it inside replaced by one space unless it must be kept."""
    tidied: Pieces = []
    for text, line in pieces:
        if not keep:
            text = re.sub(r"\s+", " ", text)
            text = text[1:] if text[0] == " " and tidied and tidied[-1][0][-1] == " " else text
        if text and (tidied or text.strip()):
            tidied.append((text if tidied or keep else text.lstrip(), line))
    while tidied and not tidied[-1][0].strip():
        tidied.pop()
    return [*tidied[:-1], (tidied[-1][0].rstrip(), tidied[-1][1])] if tidied else []
