"""What is to be ranked, as the command line states it: `QUERY FILE...`, `--documents` or `--requests`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from blockrank.data import Source, read_documents, read_requests, read_texts
from blockrank.types import RankRequest

QueryArgument = Annotated[str | None, typer.Argument(metavar="QUERY", help="What to rank for.", show_default=False)]
FilesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="FILE", help="Text files, one document each; - is standard input.", show_default=False),
]
DocumentsOption = Annotated[
    str | None, typer.Option("--documents", metavar="FILE", help='JSON lines: {"text", "doc_id", "title", ...}.')
]
RequestsOption = Annotated[
    str | None,
    typer.Option("--requests", metavar="FILE", help='JSON lines: {"query", "query_id", "documents"}; takes no QUERY.'),
]
LinesOption = Annotated[bool, typer.Option("--lines", help="Every line of a FILE is a document.")]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of one command line, checked for what excludes what.

    Raises `typer.BadParameter` (usage) where they conflict or one is missing.
    """

    query: str | None
    files: Sequence[str]
    documents: str | None
    requests: str | None
    lines: bool

    def __post_init__(self) -> None:
        if complaint := self._complaint():
            raise typer.BadParameter(complaint)

    def _complaint(self) -> str | None:
        if self.requests is not None:
            alone = self.query is None and not self.files and self.documents is None
            return None if alone and not self.lines else "--requests takes no QUERY, FILE, --documents or --lines."
        if self.query is None:
            return "give a QUERY and documents (FILE... or --documents FILE), or --requests FILE."
        if self.documents is not None:
            return "--documents takes no FILE and no --lines." if self.files or self.lines else None
        return (
            None if self.files else "there are no documents: give FILE..., - for standard input, or --documents FILE."
        )

    def check(self) -> None:
        """Read a file of requests once to its end, so that a broken line is told before anything is ranked or written.

        Standard input cannot be read twice: there, lines before a broken one are ranked. Raises `InputError`.
        """
        if self.requests not in (None, "-"):
            for _ in read_requests(str(self.requests)):
                pass

    def read(self) -> Iterator[RankRequest]:
        """The requests, read as they are asked for. Raises `InputError` where a source is broken."""
        if self.requests is not None:
            yield from read_requests(_source(self.requests))
        elif self.documents is not None:
            yield RankRequest(self.query or "", read_documents(_source(self.documents)))
        else:
            texts = [text for name in self.files for text in read_texts(_source(name), lines=self.lines)]
            yield RankRequest(self.query or "", texts)


def _source(name: str) -> Source:
    """A path, or standard input for `-`."""
    return typer.get_binary_stream("stdin") if name == "-" else name
