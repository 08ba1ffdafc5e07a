"""`blockrank rank`: rank documents for one query, or a file of requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from blockrank.cli.cluster import RayCpusOption, RayOption, RayWorkersOption, Workers
from blockrank.cli.console import (
    BackendOption,
    CutQueriesOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    PatternOption,
    ScorerOption,
    SegmentOption,
    SpecOption,
    StrategyOption,
    VerboseOption,
    data_stream,
    load_check,
    load_ranker,
    logs,
    named_spec,
    named_strategy,
    terminal,
)
from blockrank.cli.cuts import Cuts
from blockrank.cli.drawing import drawing, plain_text
from blockrank.cli.inputs import (
    DocumentsOption,
    FilesArgument,
    Inputs,
    LinesOption,
    QueryArgument,
    RequestsOption,
    check_requests,
)
from blockrank.cli.progress import progress_bars
from blockrank.cli.resume import Job, ResumeOption
from blockrank.data import json_line, trec_lines
from blockrank.keep.files import check_writable
from blockrank.types import Ranking, RankRequest, ServedRanker

TrecOption = Annotated[bool, typer.Option("--trec", help="Write a TREC run: query_id Q0 doc_id rank score tag.")]
TopOption = Annotated[
    int | None, typer.Option("--top-k", "-k", min=1, help="Keep only this many of the best documents.")
]
ExplainOption = Annotated[bool, typer.Option("--explain", help="Show which words of each document made its score.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file, whole or not at all.")]
BudgetOption = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="Tokens of requests packed into one forward.")
]


def rank_command(
    query: QueryArgument = None,
    files: FilesArgument = None,
    documents: DocumentsOption = None,
    requests: RequestsOption = None,
    lines: LinesOption = False,
    top_k: TopOption = None,
    as_json: JsonOption = False,
    as_trec: TrecOption = False,
    explain: ExplainOption = False,
    output: OutputOption = None,
    model: ModelOption = None,
    spec: SpecOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    backend: BackendOption = None,
    max_tokens: BudgetOption = None,
    max_segment_tokens: SegmentOption = None,
    cut_queries: CutQueriesOption = False,
    pattern: PatternOption = None,
    scorer: ScorerOption = None,
    strategy: StrategyOption = None,
    resume: ResumeOption = False,
    ray: RayOption = False,
    ray_workers: RayWorkersOption = None,
    ray_cpus: RayCpusOption = 1,
    verbose: VerboseOption = False,
) -> None:
    """Rank documents for a query, or every request of a file."""
    form = _form(as_json, as_trec, explain)
    inputs = Inputs(query, files or [], documents, requests, lines)
    options: dict[str, Any] = {
        "device": device, "dtype": dtype, "backend": backend, "max_tokens": max_tokens,
        "max_segment_tokens": max_segment_tokens, "cut_queries": cut_queries,
        "pattern": pattern, "scorer": scorer, **named_spec(spec), **named_strategy(strategy),
    }  # fmt: skip
    workers = Workers(ray, ray_workers, ray_cpus, device)
    if resume or ray:
        if requests in (None, "-") or output is None:
            raise typer.BadParameter("--resume and --ray need --requests FILE and --output FILE.")
        with logs(verbose), inputs.opened() as read:
            Job(read, output, form, FORMS[form], top_k, explain).run(model, options, workers, verbose)
        return
    with logs(verbose), inputs.opened() as read:
        if output is not None:
            check_writable(output)
        if explain and scorer is not None:
            load_check(model, **options).check_evidence()
        check = load_check(model, **options) if requests is not None else None
        count = sum(1 for _ in check_requests(read(), check, for_run=as_trec))
        stream = (replace(request, evidence=explain) for _, request in read())
        _rank(stream, partial(load_ranker, model, **options), form, output, top_k, count)


def _form(as_json: bool, as_trec: bool, explain: bool) -> str:
    """The name of a form. Raises `typer.BadParameter` where it cannot show what is asked for."""
    if as_json and as_trec:
        raise typer.BadParameter("--json and --trec exclude each other.")
    if explain and as_trec:
        raise typer.BadParameter("a TREC run cannot carry evidence: --explain takes no --trec.")
    return "json" if as_json else "trec" if as_trec else "text"


def _rank(
    requests: Iterable[RankRequest],
    load: Callable[[], ServedRanker],
    form: str,
    output: Path | None,
    top_k: int | None,
    count: int,
) -> None:
    """Rank in this process, and write each ranking as soon as it is there. count: of the requests."""
    ranker = load()
    cuts = Cuts(ranker.facts.max_segment_tokens or 0)
    rankings = cuts.counted(ranker.rank_iter(requests))
    if count > 1 and terminal(output) is None:
        rankings = _with_progress(rankings, count)
    shown = (ranking.top(top_k) if top_k else ranking for ranking in rankings)
    if (console := terminal(output)) and form == "text":
        for ranking in shown:
            console.print(drawing(ranking, console.width), no_wrap=True, crop=True)
    else:
        _write(shown, FORMS[form], output)
    cuts.report()


def _with_progress(rankings: Iterator[Ranking], count: int) -> Iterator[Ranking]:
    """Count rankings on standard error, where that is a terminal."""
    with progress_bars(stay=False) as report:
        report("ranking", 0, count)
        for done, ranking in enumerate(rankings, start=1):
            report("ranking", done, count)
            yield ranking


def _write(rankings: Iterable[Ranking], form: Callable[[Ranking], str], output: Path | None) -> None:
    """Write each ranking as soon as it is there."""
    with data_stream(output) as stream:
        for ranking in rankings:
            stream.write((form(ranking) + "\n").encode())
            stream.flush()


def trec_text(ranking: Ranking) -> str:
    """The lines of a TREC run."""
    return "\n".join(trec_lines(ranking))


FORMS: dict[str, Callable[[Ranking], str]] = {"json": json_line, "trec": trec_text, "text": plain_text}
