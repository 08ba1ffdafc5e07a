"""What is to be ranked, as the command line states it: `QUERY FILE...`, `--documents` or `--requests`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from blockrank.data import (
    Source,
    check_ids,
    named,
    placed_requests,
    read_documents,
    read_texts,
    rereadable,
    source_name,
)
from blockrank.types import Document, RankRequest
from blockrank.types.requests import Check

Read = Callable[[], Iterator[tuple[str, RankRequest]]]

QueryArgument = Annotated[
    str | None, typer.Argument(metavar="QUERY", help="The query to rank for.", show_default=False)
]
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
LinesOption = Annotated[bool, typer.Option("--lines", help="Treat every line of a FILE as a document.")]


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

    @contextmanager
    def opened(self) -> Iterator[Read]:
        """What reads the requests, as often as it is called while the block runs, each after its place.

        What comes through a pipe is kept in a temporary file for that. Raises `InputError` where a source is broken.
        """
        if self.requests is not None:
            with rereadable(named_source(self.requests)) as source:
                yield partial(placed_requests, source)
        else:
            place = "" if self.documents is None else source_name(named_source(self.documents))
            alone = [(place, RankRequest(self.query or "", self._documents()))]
            yield lambda: iter(alone)

    def _documents(self) -> list[Document]:
        if self.documents is not None:
            return read_documents(named_source(self.documents))
        return [text for name in self.files for text in read_texts(named_source(name), lines=self.lines)]


def check_requests(
    placed: Iterable[tuple[str, RankRequest]], check: Check | None, *, for_run: bool = False
) -> Iterator[RankRequest]:
    """The requests, each refused with its place where a ranker would refuse it, or a run could not carry its ids.

    check: raises `InputError` where a ranker would; None where that need not be known yet.
    """
    for place, request in placed:
        with named(place) if place else nullcontext():
            if for_run:
                check_ids(request.query_id, [str(document.doc_id) for document in request.candidates])
            if check is not None:
                check(request)
        yield request


def named_source(name: str) -> Source:
    """A path, or standard input for `-`."""
    return typer.get_binary_stream("stdin") if name == "-" else name
