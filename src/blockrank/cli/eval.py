"""`blockrank eval`: measure a run, or rerank judged collections and measure that."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockrank.cli.cluster import RayCpusOption, RayOption, RayWorkersOption, Workers
from blockrank.cli.console import (
    BackendOption,
    CutQueriesOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    PatternOption,
    ScorersOption,
    SegmentOption,
    SpecOption,
    StrategiesOption,
    VerboseOption,
    aligned,
    logs,
    named_spec,
    note,
    write_data,
)
from blockrank.cli.inputs import named_source
from blockrank.cli.progress import progress_bars
from blockrank.cli.systems import rerankers, systems
from blockrank.data import Qrels, Run, Source, judgement_place, open_collection, read_qrels, read_run
from blockrank.types import InputError, MissingExtraError

if TYPE_CHECKING:
    from blockrank.evaluate.first_stage import FirstStage
    from blockrank.evaluate.measures import MeasureError
    from blockrank.evaluate.plan import Plan, Reranker
    from blockrank.evaluate.results import EvaluationResult

_GIB = 1 << 30

WhatArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN QRELS [MEASURE]... | COLLECTION...",
        help="A run file, its judgements and measures (nDCG@10 ...); or folders in BEIR layout and ir_datasets ids.",
        show_default=False,
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Folder for runs and results; an evaluation there is resumed."),
]
ModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model", metavar="[LABEL=]MODEL", help="Model to evaluate; repeatable. The embedded model if left out."
    ),
]
StageOption = Annotated[
    str,
    typer.Option(
        "--first-stage",
        metavar="bm25|RUN",
        help="Candidates: BM25, or a run file, also relative to the collection; {name} is the collection's name.",
    ),
]
DropOwnOption = Annotated[
    bool, typer.Option("--drop-own", help="Leave out candidates whose id is the query's (ArguAna, Quora).")
]
QrelsOption = Annotated[Path | None, typer.Option("--qrels", help="Judgements to use in place of the collection's.")]
SplitOption = Annotated[str, typer.Option("--split", help="Judgements of the collection: qrels/SPLIT.tsv.")]
DepthOption = Annotated[
    list[int] | None, typer.Option("--depth", min=1, help="Candidates to rerank; repeatable. [default: 100]")
]
MeasureOption = Annotated[
    list[str] | None, typer.Option("--measure", help="Measure, the first is tested; repeatable. [default: nDCG@10 ...]")
]
MostOption = Annotated[int | None, typer.Option("--max-queries", min=1, help="Use only the first N judged queries.")]
RestartOption = Annotated[bool, typer.Option("--restart", help="Discard what the output folder holds and begin again.")]
ReuseOption = Annotated[
    float, typer.Option("--reuse-memory", min=0, help="GiB for documents encoded once per collection; 0 turns it off.")
]
LatencyOption = Annotated[
    int, typer.Option("--latency-queries", min=0, help="Requests ranked again, alone, to measure latency.")
]
OrderOption = Annotated[
    int,
    typer.Option(
        "--order-queries",
        min=0,
        help="Queries whose candidates are ranked in three shuffled orders more, to see how far the order matters.",
    ),
]
ReportOption = Annotated[bool, typer.Option("--report/--no-report", help="Write report.html into the output folder.")]
PerQueryOption = Annotated[bool, typer.Option("--per-query", help="For a run: also one line per query.")]
CeilingOption = Annotated[
    bool, typer.Option("--ceiling", help="For a run: also what the best order of its documents would reach.")
]


def eval_command(
    what: WhatArgument,
    output: OutputOption = None,
    models: ModelsOption = None,
    spec: SpecOption = None,
    first_stage: StageOption = "bm25",
    drop_own: DropOwnOption = False,
    qrels: QrelsOption = None,
    split: SplitOption = "test",
    depths: DepthOption = None,
    measures: MeasureOption = None,
    max_queries: MostOption = None,
    restart: RestartOption = False,
    reuse_memory: ReuseOption = 4.0,
    latency_queries: LatencyOption = 5,
    order_queries: OrderOption = 0,
    report: ReportOption = True,
    per_query: PerQueryOption = False,
    with_ceiling: CeilingOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    backend: BackendOption = None,
    max_segment_tokens: SegmentOption = None,
    cut_queries: CutQueriesOption = False,
    pattern: PatternOption = None,
    scorers: ScorersOption = None,
    strategies: StrategiesOption = None,
    ray: RayOption = False,
    ray_workers: RayWorkersOption = None,
    ray_cpus: RayCpusOption = 1,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure a run, or rerank judged collections and measure that.

    blockrank eval RUN QRELS nDCG@10 measures a run file.

    blockrank eval COLLECTION --output DIR ranks with models, compares them with the first stage, and goes on where it
    was interrupted. Every --model with every --scorer under every --strategy is a system of its own.
    """
    if what[0] == "-" or (Path(what[0]).exists() and not Path(what[0]).is_dir()):
        if output is not None or models or ray:
            raise typer.BadParameter(f"{what[0]} is a run file: --output, --model and --ray need a COLLECTION.")
        with logs(verbose):
            _measure_run(what, measures or [], per_query, with_ceiling, as_json)
        return
    folder = _checked(what, output, per_query or with_ceiling, qrels)
    options: dict[str, Any] = {"device": device, "dtype": dtype, "backend": backend, "pattern": pattern}
    options |= {"max_segment_tokens": max_segment_tokens, "cut_queries": cut_queries, **named_spec(spec)}
    workers = Workers(ray, ray_workers, ray_cpus, device)
    with logs(verbose):
        from blockrank.evaluate import FirstStage, evaluate

        collections = [open_collection(source, split=split, qrels=qrels) for source in what]
        limits = (depths, measures, max_queries, reuse_memory, latency_queries, order_queries)
        compared = rerankers(systems(models or [None], scorers, strategies), options, workers)
        plan = _plan(compared, FirstStage(first_stage, drop_own), *limits)
        with workers.session(verbose), progress_bars() as progress:
            result = evaluate(collections, plan, folder, restart=restart, progress=progress)
        _show(result, folder, report, as_json)


def _checked(what: Sequence[str], output: Path | None, for_run: bool, qrels: Path | None) -> Path:
    """The output folder. Raises `typer.BadParameter` where options do not fit an evaluation of collections."""
    if output is None:
        raise typer.BadParameter(f"{what[0]} is no run file; to evaluate a COLLECTION give --output DIR.")
    if for_run:
        raise typer.BadParameter("--per-query and --ceiling are for a RUN; an evaluation writes both into --output.")
    if qrels is not None and len(what) > 1:
        raise typer.BadParameter("--qrels is for one COLLECTION: query_ids of others may mean other queries.")
    return output


# A run against judgements


def _measure_run(
    what: Sequence[str], measures: Sequence[str], with_queries: bool, with_ceiling: bool, as_json: bool
) -> None:
    from blockrank.evaluate.measures import (
        DEFAULT_MEASURES,
        MeasureError,
        ceiling,
        parse_measure,
        per_query,
        summary,
        without_failing,
    )

    if len(what) < 2:
        raise typer.BadParameter(f"{what[0]} is a run file: give the judgements, RUN QRELS.")
    names = list(dict.fromkeys([*what[2:], *measures])) or list(DEFAULT_MEASURES)
    for name in names:
        parse_measure(name)
    if what[0] == what[1] == "-":
        raise typer.BadParameter("only one of RUN and QRELS can be standard input.")
    run, judgements = read_run(named_source(what[0])), named_source(what[1])
    qrels = read_qrels(judgements)

    def compute(wanted: Sequence[str]) -> dict[str, Any]:
        values = per_query(run, qrels, wanted)
        found: dict[str, Any] = {"queries": len(qrels), "measures": summary(values, wanted)}
        found |= {"ceiling": ceiling(run, qrels, wanted)} if with_ceiling else {}
        return found | ({"per_query": values} if with_queries else {})

    try:
        found, computed, failures = without_failing(names, compute)
    except MeasureError as error:
        raise InputError(_placed(error, judgements)) from None
    write_data(json.dumps(found, indent=1, ensure_ascii=False) if as_json else _run_table(found, computed))
    _tell_unmatched(run, qrels)
    if failures:
        raise InputError(" ".join(_placed(error, judgements) for error in failures))


def _placed(error: MeasureError, judgements: Source) -> str:
    """Why a measure could not be computed, after the place of the judgement at fault if there is one."""
    return f"{judgement_place(judgements, *error.judgement)}: {error}" if error.judgement else str(error)


def _run_table(found: dict[str, Any], names: Sequence[str]) -> str:
    """A line for each query where wanted, then for all, then the ceiling."""
    rows = [("query_id", *names)]
    lines = {**found.get("per_query", {}), "all": found["measures"]}
    if "ceiling" in found:
        lines["ceiling"] = found["ceiling"]
    if "per_query" not in found:
        columns = list(lines)
        head = [("measure", *columns)] if "ceiling" in found else []
        return "\n".join(
            aligned([*head, *((name, *(f"{lines[column][name]:.4f}" for column in columns)) for name in names)])
        )
    rows += [(key, *(f"{row[name]:.4f}" for name in names)) for key, row in lines.items()]
    return "\n".join(aligned(rows, right=range(1, len(names) + 1)))


def _tell_unmatched(run: Run, qrels: Qrels) -> None:
    """Say what is not in both files: judged queries, queries of the run, documents."""
    judged = {query_id: {*documents} & run.get(query_id, {}).keys() for query_id, documents in qrels.items()}
    if not any(judged.values()):
        count = sum(map(len, qrels.values()))
        note(f"the run holds none of the {count} judged documents: is it of another collection? Measures say nothing.")
    if missing := len(qrels.keys() - run.keys()):
        note(f"{missing} of {len(qrels)} judged queries are not in the run; they count as empty rankings.")
    if extra := len(run.keys() - qrels.keys()):
        note(f"{extra} queries of the run are not judged; they do not count.")


# Collections


def _plan(
    chosen: Iterable[Reranker],
    first_stage: FirstStage,
    depths: list[int] | None,
    measures: list[str] | None,
    max_queries: int | None,
    reuse_gib: float,
    latency_queries: int,
    order_queries: int,
) -> Plan:
    """What the options ask for. Raises `InputError` and `ModelError` where they cannot be met."""
    from blockrank.evaluate.measures import DEFAULT_MEASURES, parse_measure
    from blockrank.evaluate.plan import Plan

    names = tuple(dict.fromkeys(measures or DEFAULT_MEASURES))
    for name in names:
        parse_measure(name)
    return Plan(
        tuple(chosen),
        first_stage,
        tuple(depths or [100]),
        names,
        max_queries,
        int(reuse_gib * _GIB),
        latency_queries,
        order_queries,
    )


def _show(result: EvaluationResult, output: Path, report: bool, as_json: bool) -> None:
    """The table, or everything as JSON; and the report."""
    from blockrank.evaluate.tables import text_table

    write_data(json.dumps(result.to_dict(), indent=1, ensure_ascii=False) if as_json else text_table(result))
    if not report:
        return
    try:
        from blockrank.evaluate.report import write_report

        write_report(result, output / "report.html")
        note(f"{output / 'report.html'} shows the same with figures.")
    except MissingExtraError as error:
        note(f"there is no report.html: {error}")
