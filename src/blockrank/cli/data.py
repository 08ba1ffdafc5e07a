"""`blockrank data`: training requests from judged collections, teachers' scores, statistics, parts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from blockrank.cli.console import (
    CutQueriesOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ScorerOption,
    SegmentOption,
    StrategyOption,
    VerboseOption,
    logs,
    note,
    write_data,
)
from blockrank.cli.data_options import (
    AboveOption,
    BatchOption,
    CandidatesOption,
    CrossOption,
    DepthOption,
    EncoderOption,
    ExamplesOption,
    FillOption,
    FromDocumentsOption,
    GivenOption,
    MarginOption,
    MostOption,
    NegativesOption,
    OutputOption,
    PositivesOption,
    QrelsOption,
    QueriesOption,
    RelevanceOption,
    RequestsArgument,
    SeedOption,
    SharesOption,
    SkipOption,
    SourceArgument,
    SplitOption,
    TeacherOption,
    TitlesOption,
    TokenizerOption,
)
from blockrank.cli.data_text import example_lines, statistics_lines
from blockrank.cli.inputs import check_requests
from blockrank.cli.progress import progress_bars
from blockrank.cli.teaching import Models, check_scorer
from blockrank.data import (
    TrainingRequest,
    packed_file,
    placed_training_requests,
    read_training_requests,
    rereadable,
    training_line,
)
from blockrank.mine import (
    DropRule,
    Judged,
    RankerTeacher,
    RequestMaker,
    RequestPlan,
    StatisticsCollector,
    Teacher,
    Titles,
    drop,
    open_judged,
    open_unjudged,
    parse_negatives,
    split_file,
    teach,
)
from blockrank.mine.requests import drawn_queries
from blockrank.types import InputError, RankRequest

if TYPE_CHECKING:
    from blockrank.mine.statistics import Measure
    from blockrank.mine.unjudged import Taken

data_app = typer.Typer(no_args_is_help=True, help="Make and inspect training requests.")


@data_app.command("requests")
def requests_command(
    source: SourceArgument,
    output: OutputOption,
    split: SplitOption = "train",
    qrels: QrelsOption = None,
    queries: QueriesOption = None,
    from_documents: FromDocumentsOption = None,
    given: GivenOption = None,
    min_relevance: RelevanceOption = 1,
    titles: TitlesOption = "keep",
    candidates: CandidatesOption = 30,
    negatives: NegativesOption = "bm25",
    depth: DepthOption = 50,
    skip_top: SkipOption = 0,
    max_positives: PositivesOption = 4,
    max_queries: MostOption = None,
    fill: FillOption = True,
    seed: SeedOption = 0,
    encoder: EncoderOption = None,
    teacher: TeacherOption = None,
    scorer: ScorerOption = None,
    strategy: StrategyOption = None,
    cross_encoder: CrossOption = None,
    drop_above: AboveOption = None,
    drop_margin: MarginOption = None,
    device: DeviceOption = None,
    batch_size: BatchOption = 32,
    cut_queries: CutQueriesOption = False,
    tokenizer: TokenizerOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Turn a judged collection, a file of questions and passages, or a collection alone into training requests."""
    _check_output(output)
    plan = RequestPlan(candidates, parse_negatives(negatives), depth, skip_top, max_positives, max_queries, fill, seed)
    rule = _rule(drop_above, drop_margin)
    _check_requests(teacher, cross_encoder, encoder, rule)
    check_scorer(scorer, strategy, teacher)
    _check_given(given, plan)
    models = Models(
        teacher, cross_encoder, encoder, device, batch_size, cut_queries=cut_queries, scorer=scorer, strategy=strategy
    )
    settings = _JudgedSettings(split, qrels, given, depth, min_relevance, _titles(titles))
    with (
        logs(verbose),
        _opened(source, queries, from_documents, seed, settings, rule) as judged,
        progress_bars() as progress,
    ):
        measure = _measure(tokenizer)
        if rule:
            drawn = drawn_queries(judged.queries, max_queries, seed)
            asked = ((judged.source, RankRequest(item.query, ["x"], item.query_id)) for item in drawn)
            sum(1 for _ in check_requests(asked, models.check()))
        bi_encoder = models.load_encoder()
        teaching = models.load_teacher(bi_encoder) if rule else None
        maker = RequestMaker(judged, plan, encoder=bi_encoder, teacher=teaching, rule=rule, progress=progress)
        collector = _write(output, maker, seed)
    _tell(collector, measure)
    _tell_made(maker.counts, judged.left_out, candidates)
    _tell_cut(teaching)


@data_app.command("teach")
def teach_command(
    requests: RequestsArgument,
    output: OutputOption,
    teacher: TeacherOption = None,
    scorer: ScorerOption = None,
    strategy: StrategyOption = None,
    cross_encoder: CrossOption = None,
    encoder: EncoderOption = None,
    drop_above: AboveOption = None,
    drop_margin: MarginOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchOption = 32,
    max_segment_tokens: SegmentOption = None,
    cut_queries: CutQueriesOption = False,
    tokenizer: TokenizerOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Store a teacher's score of every document with the requests."""
    _check_output(output)
    rule = _rule(drop_above, drop_margin)
    if sum(name is not None for name in (teacher, cross_encoder, encoder)) != 1:
        raise typer.BadParameter("give one of --teacher, --cross-encoder and --encoder.")
    check_scorer(scorer, strategy, teacher)
    limits = (max_segment_tokens, cut_queries)
    models = Models(teacher, cross_encoder, encoder, device, batch_size, dtype, *limits, scorer, strategy)
    with logs(verbose), rereadable(requests) as source, progress_bars() as progress:
        # A broken line, or a request that the teacher refuses, is reported before a model is loaded.
        placed = ((place, item.request) for place, item in placed_training_requests(source, judged=False))
        total = sum(1 for _ in check_requests(placed, models.check()))
        measure = _measure(tokenizer)
        teaching = models.load_teacher(models.load_encoder())
        assert teaching is not None, "one is named"
        dropped = emptied = 0

        def taught() -> Iterator[TrainingRequest]:
            nonlocal dropped, emptied
            for number, item in enumerate(teach(read_training_requests(source, judged=False), teaching), start=1):
                progress("teaching", number, total)
                kept = drop(item, rule, are_logs=teaching.are_logs) if rule and item.positives else item
                dropped += len(item.request.candidates) - len(kept.request.candidates)
                if len(kept.positives) < len(kept.request.candidates) or kept is item:
                    yield kept
                else:
                    emptied += 1

        collector = _write(output, taught(), 0)
    _tell(collector, measure)
    if rule:
        note(f"negatives dropped as too good: {dropped}.")
    if emptied:
        note(f"requests left out, no negative was left: {emptied}.")
    _tell_cut(teaching)


@data_app.command("show")
def show_command(
    requests: RequestsArgument,
    examples: ExamplesOption = 3,
    tokenizer: TokenizerOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show what is in a file of training requests: statistics, and the first ones."""
    with logs(verbose), rereadable(requests) as source:
        measure = _measure(tokenizer)
        collector = StatisticsCollector(seed)
        for item in read_training_requests(source, judged=False):
            collector.add(item)
        found = collector.result(measure, "tokens" if measure else "words")
        if as_json:
            write_data(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
            return
        write_data("\n".join(statistics_lines(found)))
        for item in islice(read_training_requests(source, judged=False), examples):
            write_data("\n".join(["", *example_lines(item)]))


@data_app.command("split")
def split_command(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON lines with `query`, and `group` or not.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for NAME.PART.jsonl.")],
    shares: SharesOption = "train=0.9,dev=0.05,test=0.05",
    seed: SeedOption = 0,
    verbose: VerboseOption = False,
) -> None:
    """Divide a file by query: rows with one query or group share a part."""
    wanted: dict[str, float] = {}
    for item in shares.split(","):
        part, _, share = item.strip().partition("=")
        try:
            wanted[part] = float(share)
        except ValueError:
            raise typer.BadParameter(f"--shares takes PART=SHARE, not {item!r}.") from None
    with logs(verbose):
        rows = split_file(file, output, wanted, seed=seed)
    note(", ".join(f"{part} {count}" for part, count in rows.items()) + f" of {sum(rows.values())} rows.")


@dataclass(frozen=True, slots=True)
class _JudgedSettings:
    """What says how judgements are read."""

    split: str
    qrels: Path | None
    given: Path | None
    depth: int
    min_relevance: int
    titles: Titles


def _opened(
    source: str, queries: Path | None, taken: str | None, seed: int, settings: _JudgedSettings, rule: DropRule | None
) -> AbstractContextManager[Judged]:
    """The source with its judgements, or without where queries come from elsewhere."""
    if queries is None and taken is None:
        return open_judged(source, **asdict(settings))
    if queries is not None and taken is not None:
        raise typer.BadParameter("--queries and --from-documents exclude each other.")
    if queries is not None and rule:
        raise typer.BadParameter("--drop-above and --drop-margin need positives, which --queries has not.")
    if settings.qrels is not None or settings.given is not None or settings.titles != "keep":
        raise typer.BadParameter("--qrels, --given and --titles are for what is judged.")
    if taken not in (None, "titles", "sentences"):
        raise typer.BadParameter(f"--from-documents is titles or sentences, not {taken!r}.")
    return open_unjudged(source, queries, take=cast("Taken", taken or "titles"), seed=seed)


def _check_given(given: Path | None, plan: RequestPlan) -> None:
    if given is not None and "given" not in plan.negatives:
        raise typer.BadParameter("--given is for --negatives given.")


def _check_requests(teacher: str | None, cross_encoder: str | None, encoder: str | None, rule: DropRule | None) -> None:
    """Which models `requests` takes together."""
    if teacher and cross_encoder:
        raise typer.BadParameter("--teacher and --cross-encoder exclude each other.")
    if rule and not (teacher or cross_encoder or encoder):
        raise typer.BadParameter("--drop-above and --drop-margin need --teacher, --cross-encoder or --encoder.")
    if (teacher or cross_encoder) and not rule:
        raise typer.BadParameter("a teacher serves --drop-above and --drop-margin here; `data teach` stores scores.")


def _titles(given: str) -> Titles:
    if given not in ("keep", "drop", "share"):
        raise typer.BadParameter(f"--titles is keep, drop or share, not {given!r}.")
    return cast("Titles", given)


def _check_output(output: Path) -> None:
    if output.suffix == ".xz":
        raise typer.BadParameter(f"{output}: output is packed by gzip alone; let it end in .jsonl or .jsonl.gz.")


def _rule(above: float | None, margin: float | None) -> DropRule | None:
    return None if above is None and margin is None else DropRule(above, margin)


def _measure(tokenizer: str | None) -> Measure | None:
    """Length of a text in tokens, None for words."""
    if tokenizer is None:
        return None
    from blockrank.model import load_tokenizer

    prompt_tokenizer, _ = load_tokenizer(tokenizer)
    return lambda text: len(prompt_tokenizer.encode(text))


def _write(output: Path, items: Iterable[TrainingRequest], seed: int) -> StatisticsCollector:
    """Write requests as they come, and count them. Nothing is left behind where there is none or one fails."""
    collector = StatisticsCollector(seed)
    with packed_file(output) as stream:
        for item in items:
            stream.write(f"{training_line(item)}\n".encode())
            collector.add(item)
        if not len(collector):
            raise InputError(f"{output}: no request was left to write.")
    return collector


def _tell(collector: StatisticsCollector, measure: Measure | None) -> None:
    """Statistics on standard error."""
    for line in statistics_lines(collector.result(measure, "tokens" if measure else "words")):
        typer.echo(line, err=True)


def _tell_made(counts: Counter[str], left_out: Mapping[str, int], candidates: int) -> None:
    """What became of queries and negatives, where not all is as it was asked for."""
    for reason, count in {**left_out, "without a negative": counts["left out"]}.items():
        if count:
            note(f"queries left out, {reason}: {count}.")
    if counts["scored"]:
        note(f"negatives dropped as too good: {counts['dropped']} of {counts['scored']} drawn.")
    if counts["filled"]:
        note(f"negatives drawn in place of a kind that had no more: {counts['filled']}.")
    if counts["short"]:
        note(f"requests with fewer than {candidates} candidates: {counts['short']}.")


def _tell_cut(teacher: Teacher | None) -> None:
    if isinstance(teacher, RankerTeacher) and teacher.cut:
        note(f"documents and queries cut to fit the teacher's limits: {teacher.cut}; --verbose lists them.")
