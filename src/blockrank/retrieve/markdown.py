"""Markdown to blocks: headings, fenced code, paragraphs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from blockrank.retrieve.passages import Block, heading_name

SUFFIXES = frozenset({".md", ".markdown", ".mdx", ".qmd", ".rmd"})
_HEADING = re.compile(r" {0,3}(#{1,6})(?:\s|$)")
_FENCE = re.compile(r"\s*(?:[-*+>]\s+)*(`{3,}|~{3,})([^`]*)$")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*\r?$")
_NOT_A_TITLE = re.compile(r"\s*(?:[-*+>|#]|\d+[.)]\s)|.*\|")  # such a line above --- is a list, a quote or a table
_LINK = re.compile(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")


def markdown_blocks(text: str) -> Iterator[Block]:
    """Blocks of a Markdown text, in order: a heading, a fenced block, or lines up to a blank one."""
    return _Parser(text).blocks()


@dataclass(slots=True)
class _Parser:
    """Goes through the lines once. `start`: where the open block begins, None where none is open."""

    text: str
    headings: list[tuple[int, str]] = field(default_factory=list)
    start: int | None = None
    lines: int = 0
    fence: str = ""

    def blocks(self) -> Iterator[Block]:
        """The blocks."""
        at = self._front_matter()
        if at:
            yield Block(0, at)
        previous = ""
        for match in re.compile(r"[^\n]*(?:\n|\Z)").finditer(self.text, at):
            line, at = match.group().rstrip("\n"), match.start()
            yield from self._line(line, previous, at, at + len(line))
            previous = line
        yield from self._close(len(self.text))

    def _front_matter(self) -> int:
        """End of the YAML at the top, 0 where there is none."""
        match = re.match(r"---[ \t]*\r?\n(?=[\w-]+:)(?:.*\n)*?(?:---|\.\.\.)[ \t]*\r?(?:\n|\Z)", self.text)
        return match.end() if match else 0

    def _line(self, line: str, previous: str, at: int, end: int) -> Iterator[Block]:
        """What one line closes; opens a block where it begins one."""
        if self.fence:
            if line.strip().rstrip(self.fence[0]) == "" and line.strip().startswith(self.fence):
                self.fence = ""
                yield from self._close(end)
        elif match := _FENCE.match(line):
            yield from self._close(at)
            self.start, self.fence = at, match.group(1)
        elif match := _HEADING.match(line):
            yield from self._close(at)
            yield self._heading(len(match.group(1)), line[match.end() :].strip().rstrip("#"), at, end)
        elif self.lines == 1 and (match := _UNDERLINE.match(line)) and not _NOT_A_TITLE.match(previous):
            start, self.start, self.lines = self.start, None, 0
            yield self._heading(1 if match.group(1)[0] == "=" else 2, previous, start or 0, end)
        elif not line.strip():
            yield from self._close(at)
        else:
            self.start = at if self.start is None else self.start
            self.lines += 1

    def _heading(self, level: int, title: str, start: int, end: int) -> Block:
        """A heading; it ends those of its own level and below."""
        title = _LINK.sub(r"\1", heading_name(title)).replace("`", "").replace("**", "").strip()
        self.headings = [*((other, name) for other, name in self.headings if other < level), (level, title)]
        return Block(start, end, self._path(), is_heading=True)

    def _path(self) -> tuple[str, ...]:
        return tuple(name for _, name in self.headings if name)

    def _close(self, end: int) -> Iterator[Block]:
        """End the open block."""
        if self.start is not None:
            yield Block(self.start, end, self._path())
        self.start, self.lines = None, 0
