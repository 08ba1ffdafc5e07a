"""`blockrank bench`: how fast a model ranks on this machine, beside peers measured in the same run."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from blockrank.bench import (
    HF_FULL,
    KNOWN_SHAPES,
    BenchResult,
    BenchSettings,
    Row,
    Shape,
    Timing,
    bench,
    grid,
    read_schedule,
    read_shapes,
    whole_numbers,
)
from blockrank.cli.console import (
    BackendOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ScorerOption,
    VerboseOption,
    aligned,
    logs,
    preview,
    write_data,
)
from blockrank.cli.progress import progress_bars
from blockrank.keep.files import atomic_file
from blockrank.types import InputError

_DOCUMENTS, _LENGTHS = "10,30,100", "96,208"

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=f"'embedded', a folder, a hub name, or a shape with random weights: {', '.join(KNOWN_SHAPES)}.",
    ),
]
DocumentsOption = Annotated[
    str | None,
    typer.Option("--documents", metavar="N,N,...", help=f"Documents per request; {_DOCUMENTS} if left out."),
]
LengthOption = Annotated[
    str | None, typer.Option("--length", metavar="N,N,...", help=f"Tokens per document; {_LENGTHS} if left out.")
]
ShapesOption = Annotated[
    str | None,
    typer.Option("--shapes", metavar="NxN,NxN,...", help="Documents x tokens, in place of --documents and --length."),
]
InstructionOption = Annotated[
    int | None,
    typer.Option(
        "--instruction", help="Tokens of the instruction; 60 if left out, or 0 where the model's prompt has none."
    ),
]
QueryOption = Annotated[int, typer.Option("--query", help="Tokens of the query segment.")]
RaggedOption = Annotated[
    float, typer.Option("--ragged", metavar="SHARE", help="Draw lengths from [1 - SHARE, 1 + SHARE] x --length.")
]
RepeatsOption = Annotated[int, typer.Option("--repeats", help="Times each shape is measured, after a warm-up.")]
PeerRepeatsOption = Annotated[
    int | None, typer.Option("--peer-repeats", help="Times each peer is measured; as --repeats if left out.")
]
AgainstOption = Annotated[
    list[str] | None,
    typer.Option(
        "--against",
        metavar=f"{HF_FULL}|COMMAND",
        help=f"Peer; repeatable. {HF_FULL}: the model with full attention in transformers, every layer; or a command "
        "with {documents} and {length}.",
    ),
]
LayersOption = Annotated[
    str | None, typer.Option("--layers", help="fused, or library for those of transformers; chosen if left out.")
]
PruneOption = Annotated[
    str | None,
    typer.Option(
        "--prune", metavar="LAYER:SHARE,...", help="From each layer on, keep only this share of the documents."
    ),
]
PruneByOption = Annotated[
    str | None,
    typer.Option("--prune-by", metavar="layer|lens", help="How they are chosen; by default as the model says."),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of the random tokens.")]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write the record here as JSON, whole or not at all."),
]


def bench_command(
    model: ModelArgument = "embedded",
    documents: DocumentsOption = None,
    length: LengthOption = None,
    shapes: ShapesOption = None,
    instruction: InstructionOption = None,
    query: QueryOption = 40,
    ragged: RaggedOption = 0.0,
    repeats: RepeatsOption = 5,
    peer_repeats: PeerRepeatsOption = None,
    against: AgainstOption = None,
    output: OutputOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    backend: BackendOption = None,
    layers: LayersOption = None,
    scorer: ScorerOption = None,
    prune: PruneOption = None,
    prune_by: PruneByOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure how fast a model ranks: random requests of each shape, from tokens to sorted scores.

    blockrank bench mistral-7b --documents 100,500 --length 96,208 --against hf-full --output bench.json
    """
    try:
        settings = BenchSettings(
            model=model, shapes=_shapes(documents, length, shapes), instruction=instruction, query=query, ragged=ragged,
            repeats=repeats, peer_repeats=peer_repeats, against=tuple(against or ()), device=device, dtype=dtype,
            backend=backend, layers=layers, scorer=scorer, prune=read_schedule(prune) if prune is not None else None,
            prune_by=prune_by, seed=seed,
        )  # fmt: skip
        _check_schedule(settings)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
    # The record is opened first: a place that cannot be written is reported before anything is measured.
    with logs(verbose), atomic_file(output) if output is not None else nullcontext() as stream:
        with progress_bars(stay=False, draw_between=True) as progress:
            result = bench(settings, progress)
        record = json.dumps(result.to_dict(), indent=1, ensure_ascii=False)
        if stream is not None:
            stream.write((record + "\n").encode())
        write_data(record if as_json else result_text(result))


def _shapes(documents: str | None, length: str | None, shapes: str | None) -> tuple[Shape, ...]:
    """The shapes that the options ask for. Raises `InputError` where they conflict or are no numbers."""
    if shapes is None:
        documents, length = _DOCUMENTS if documents is None else documents, _LENGTHS if length is None else length
        return grid(whole_numbers("documents", documents), whole_numbers("length", length))
    if documents is not None or length is not None:
        raise InputError("shapes stands in place of documents and length: give one or the other.")
    return read_shapes(shapes)


def _check_schedule(settings: BenchSettings) -> None:
    """Raise `InputError` where the model's spec refuses the schedule: a usage error, reported before anything runs."""
    if settings.spec_changes:
        from blockrank.bench.subject import find_subject  # imports torch

        find_subject(settings.model, **settings.spec_changes)


def result_text(result: BenchResult) -> str:
    """What was measured, one row per shape, how time grows, and what stands behind each peer's column."""
    names = _column_names(result)
    header = ["documents", "length", "tokens", "p50 ms", "p90 ms", "tokens/s", "GiB", "TFLOP", "of ceiling"]
    for peer in result.settings.peers:
        header += [f"{names[peer]} ms", "ratio"]
    table = aligned([header, *(_cells(row, result) for row in result.rows)], right=range(len(header)))
    parts = [[_heading(result)], table, _growth_lines(result, names)]
    parts.append([f"{name}: {preview(peer)}" for peer, name in names.items() if peer != HF_FULL])
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _column_names(result: BenchResult) -> dict[str, str]:
    """Short names of the peers: a command is too long to head a column."""
    commands = [peer for peer in result.settings.peers if peer != HF_FULL]
    numbered = {peer: f"command {number}" for number, peer in enumerate(commands, start=1)}
    return {peer: numbered.get(peer, HF_FULL) for peer in result.settings.peers}


def _heading(result: BenchResult) -> str:
    """Model, device and ceiling in two lines."""
    model, hardware, ceiling = result.model, result.environment["hardware"], result.ceiling
    weights = "random weights, " if model["random_weights"] else ""
    place = hardware["gpu"] or f"{hardware['processor']}, {hardware['threads']} threads"
    reads = f"scoring layer {model['scoring_layer']} of {model['all_layers']}"
    runs = f"{model['dtype']}, {model['layers']} layers, backend {model['backend']}"
    if result.settings.scorer:
        runs += f", scorer {result.settings.scorer}"
    if model["prune"]:
        runs += f", prune {model['prune']} by {model['prune_by']}"
    speed, size = f"{ceiling.flops_per_second / 1e12:.3g} TFLOP/s", ceiling.size
    each = f" on each of {ceiling.devices} devices" if ceiling.devices > 1 else ""
    return (
        f"{model['name']} ({weights}{reads}), {runs}, {place}\n"
        f"ceiling: {speed}, the product of two {size} x {size} matrices{each}"
    )


def _cells(row: Row, result: BenchResult) -> list[str]:
    """The row of one shape."""
    share = row.ceiling_share(result.ceiling)
    cells = [str(row.shape.documents), str(row.shape.length), str(row.tokens), _milliseconds(row.timing)]
    cells += [
        _number(row.timing.p90, ".1f"),
        _number(row.tokens_per_second, ".0f"),
        _number(row.timing.peak_gib, ".2f"),
    ]
    cells += [_number(None if row.flops is None else row.flops / 1e12, ".3g"), _number(share, ".1%")]
    for peer, timing in row.peers.items():
        cells += [_milliseconds(timing), _number(row.ratio(peer), ".2f")]
    return cells


def _milliseconds(timing: Timing) -> str:
    """The median, or what went wrong."""
    return timing.error or _number(timing.p50, ".1f")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _growth_lines(result: BenchResult, names: dict[str, str]) -> list[str]:
    """The exponent of time over documents, one line per length; none where there is one number of documents."""
    lines = result.growth()
    if not lines:
        return []
    systems = [name for name in lines[0] if name != "length"]
    rows = [["time ~ documents^x, x at length", *(names.get(system, system) for system in systems)]]
    rows += [[str(line["length"]), *(_number(line[system], ".2f") for system in systems)] for line in lines]
    return aligned(rows, right=range(len(rows[0])))
