"""Markdown to blocks: headings, code, paragraphs. Read by markdown-it-py, as CommonMark with tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from blockrank.retrieve.passages import TextBlock, heading_name, paragraphs
from blockrank.types import MissingExtraError

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

SUFFIXES = frozenset({".md", ".markdown", ".mdx", ".qmd", ".rmd"})
_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(?=[\w-]+:)(?:.*\n)*?(?:---|\.\.\.)[ \t]*\r?(?:\n|\Z)")
_LONGEST_TITLE = 1000  # characters of a heading that are read


def markdown_blocks(text: str) -> Iterator[TextBlock]:
    """Blocks of a Markdown text, in order: a heading, a block of code, or lines up to a blank one.

    Raises `MissingExtraError` without the extra.
    """
    match = _FRONT_MATTER.match(text)
    at = match.end() if match else 0
    if at:
        yield TextBlock(0, at)
    headings: list[tuple[int, str]] = []
    for block, level in _marked(text, at):
        yield from _between(text, at, block.start, _path(headings))
        if level:  # a heading ends those of its own level and below
            headings = [*((other, name) for other, name in headings if other < level), (level, block.headings[0])]
        yield replace(block, headings=_path(headings))
        at = block.end
    yield from _between(text, at, len(text), _path(headings))


def _path(headings: list[tuple[int, str]]) -> tuple[str, ...]:
    return tuple(name for _, name in headings if name)


def _between(text: str, start: int, end: int, headings: tuple[str, ...]) -> Iterator[TextBlock]:
    """The paragraphs of a part of a text."""
    for block in paragraphs(text[start:end], headings):
        yield replace(block, start=start + block.start, end=start + block.end)


def _marked(text: str, begin: int) -> Iterator[tuple[TextBlock, int]]:
    """Headings, each with its name and level, and blocks of code, with 0, from character `begin` on."""
    body = text[begin:]
    # Only a line feed ends a line, for the parser as for `Lines`.
    tokens = _reader().parse(body.replace("\r\n", "\n").replace("\r", " "))
    starts = [begin, *(begin + match.end() for match in re.finditer("\n", body)), len(text)]
    for place, token in enumerate(tokens):
        if token.map is None or token.type not in ("heading_open", "fence", "code_block"):
            continue
        first, last = token.map
        block = TextBlock(starts[first], starts[min(last, len(starts) - 1)])
        if token.type != "heading_open":
            yield block, 0
        elif _is_title(token, title := tokens[place + 1].content):
            yield replace(block, headings=(_name(title),), is_heading=True), int(token.tag[1:])


def _is_title(token: Token, title: str) -> bool:
    """Whether a heading applies to the text after it: not one in a list or a quote, nor a table row above a line of
    dashes."""
    return token.level == 0 and (token.markup.startswith("#") or "|" not in title)


def _name(title: str) -> str:
    """A heading as it is read, without its markup."""
    reader = _reader()
    tokens: list[Token] = []
    reader.inline.parse(title[:_LONGEST_TITLE], reader, {}, tokens)
    read = (" " if token.type.endswith("break") else token.content for token in tokens if token.type != "html_inline")
    return heading_name("".join(read))


@cache
def _reader() -> MarkdownIt:
    """A parser of blocks only: inline markup matters in headings only."""
    try:
        from markdown_it import MarkdownIt
    except ImportError:
        raise MissingExtraError("reading Markdown needs markdown-it-py: pip install 'blockrank[search]'.") from None
    return MarkdownIt("commonmark").enable("table").disable("inline")
