"""`blockrank search`: find passages in a folder or file."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from blockrank.cli.console import (
    CutQueriesOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    ScorerOption,
    SpecOption,
    StrategyOption,
    VerboseOption,
    data_stream,
    load_check,
    load_ranker,
    logs,
    note,
    preview,
    printable,
    terminal,
)
from blockrank.cli.progress import progress_bars
from blockrank.retrieve import Hit, PassageIndex, ReadLimits, check_query, matching_words, skipped_text
from blockrank.types import RankRequest

_PLAIN_WIDTH = 100  # columns where no terminal says its own
_INDENT = 4
_PLACE_WIDTH = _TITLE_WIDTH = 200
_COPIES = 5  # places named beside a hit; JSON has all
_PROSE = frozenset({".md", ".markdown", ".txt", ".text", ".rst", ".html", ".htm", ".pdf"})
_WRAPPED = 50  # characters: a line shorter than this was not ended by an editor's margin
_NOT_PROSE = re.compile(r"\s*[|#]|.*\S   ")
# Not the beginning of a list, a quote, a table, a heading or code.
_CONTINUES = re.compile(r"\s{0,4}(?!(?:[-*+]|\d+[.)])\s|[>|#=]|```|~~~)\S(?!.*\S   )")

SourceArgument = Annotated[
    Path,
    typer.Argument(metavar="SOURCE", help="A folder, a file, or JSON lines of documents.", show_default=False),
]
QueryArgument = Annotated[str, typer.Argument(metavar="QUERY", help="What to search for.", show_default=False)]
TopOption = Annotated[int, typer.Option("--top-k", "-k", min=1, help="Show this many of the best documents.")]
DepthOption = Annotated[int, typer.Option("--depth", min=1, help="Passages that BM25 hands to the model.")]
AllOption = Annotated[bool, typer.Option("--all-passages", help="Show every passage, not the best of each document.")]
RebuildOption = Annotated[bool, typer.Option("--rebuild", help="Read every file again.")]
FileTimeoutOption = Annotated[
    float,
    typer.Option(metavar="SECONDS", min=0.1, help="Skip a file that takes longer to read; in proportion above 5 MB."),
]
NoRerankOption = Annotated[bool, typer.Option("--no-rerank", help="Keep BM25's order; no model is loaded.")]


def search_command(
    source: SourceArgument,
    query: QueryArgument,
    top_k: TopOption = 10,
    depth: DepthOption = 100,
    as_json: JsonOption = False,
    model: ModelOption = None,
    spec: SpecOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    scorer: ScorerOption = None,
    strategy: StrategyOption = None,
    cut_queries: CutQueriesOption = False,
    all_passages: AllOption = False,
    rebuild: RebuildOption = False,
    no_rerank: NoRerankOption = False,
    file_timeout: FileTimeoutOption = 20.0,
    verbose: VerboseOption = False,
) -> None:
    """Find the passages of a folder or file that answer a query."""
    check_query(query)
    with logs(verbose):
        if not no_rerank:  # before files are read, which takes longer than a query that is too long
            load_check(model, scorer=scorer, strategy=strategy, spec=spec, cut_queries=cut_queries)(
                RankRequest(query, ["x"])
            )
        with progress_bars(stay=False) as bars:
            limits = ReadLimits(seconds=file_timeout)
            index = PassageIndex.open(source, rebuild=rebuild, progress=partial(bars, "reading"), limits=limits)
        if (skipped := skipped_text(index.skipped)) and (index.is_new or verbose):
            note(f"skipped {skipped}.")
        ranker = None
        if not no_rerank:
            options = {"device": device, "dtype": dtype, "scorer": scorer, "spec": spec, "cut_queries": cut_queries}
            ranker = load_ranker(model, strategy=strategy, **options)
        hits = index.search(query, ranker=ranker, depth=depth, top_k=top_k, all_passages=all_passages)
    if not hits:
        note(
            f"no passage shares a word with the query; {len(index)} were searched ('the' does not count beside others)."
        )
    elif as_json:
        _write(json.dumps(hit.to_dict(), ensure_ascii=False) for hit in hits)
    elif console := terminal():
        for hit in hits:
            console.print(drawing(hit, query))
    else:
        _write(plain_lines(hits))


def _write(lines: Iterable[str]) -> None:
    with data_stream(None) as stream:
        for line in lines:
            stream.write((line + "\n").encode())


def plain_lines(hits: Sequence[Hit]) -> Iterator[str]:
    """Each hit as a line with rank, score, place and headings, its passage indented, and an empty line."""
    margin = " " * _INDENT
    for hit in hits:
        yield "  ".join(filter(None, (str(hit.rank), f"{hit.score:.4f}", preview(hit.place, _PLACE_WIDTH), above(hit))))
        if hit.copies:
            yield margin + also_in(hit)
        for line in readable(hit):
            yield from textwrap.wrap(
                line, _PLAIN_WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
            ) or [""]
        yield ""


def drawing(hit: Hit, query: str) -> RenderableType:
    """The same for a terminal, with the query's words emphasised."""
    head = Text.assemble(
        (f"{hit.rank}  ", "bold"), f"{hit.score:.4f}  ", (preview(hit.place, _PLACE_WIDTH), "cyan"), f"  {above(hit)}"
    )
    if hit.copies:
        head.append(f"\n{' ' * _INDENT}{also_in(hit)}", "dim")
    body = Text("\n".join(readable(hit)))
    for start, end in matching_words(query, body.plain):
        body.stylize("bold yellow", start, end)
    return Group(head, Padding(body, (0, 0, 1, _INDENT)))


def above(hit: Hit) -> str:
    """The headings above a hit, or its document's id and title; the file stands beside it."""
    passage = hit.passage
    if passage.doc_id == passage.path:
        return preview(passage.title.removeprefix(passage.path).removeprefix(" > "), _TITLE_WIDTH)
    return preview(f"{passage.doc_id}  {passage.title}", _TITLE_WIDTH)


def also_in(hit: Hit) -> str:
    """Where else the text of a hit stands."""
    places = [preview(copy.place, _PLACE_WIDTH) for copy in hit.copies[:_COPIES]]
    more = len(hit.copies) - len(places)
    return f"also in {', '.join(places)}{f' and {more} more' if more else ''}"


def readable(hit: Hit) -> list[str]:
    """The lines of a passage for a terminal: no control characters, lines of prose joined into paragraphs."""
    lines: list[str] = []
    prose, fenced, before = Path(hit.path).suffix.lower() in _PROSE, False, ""
    for line in hit.passage.text.expandtabs(4).split("\n"):
        line = printable(line.rstrip())
        fence = line.lstrip().startswith(("```", "~~~"))
        if prose and not (fence or fenced) and len(before) >= _WRAPPED and _CONTINUES.match(line):
            lines[-1] += f" {line.lstrip()}"
        else:
            lines.append(line)
        fenced = fenced != fence
        before = "" if fence or fenced or _NOT_PROSE.match(line) else line
    return lines
