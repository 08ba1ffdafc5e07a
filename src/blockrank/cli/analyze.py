"""`blockrank analyze`: where a model's attention goes, and which layer, tokens and heads of it rank best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blockrank.cli.console import (
    BackendOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    VerboseOption,
    aligned,
    logs,
    note,
    write_data,
)
from blockrank.cli.eval import SplitOption, StageOption
from blockrank.cli.progress import progress_bars

if TYPE_CHECKING:
    from blockrank.analyze import Analysis

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, a hub name, or 'embedded'.", show_default=False)
]
CollectionArgument = Annotated[
    str,
    typer.Argument(metavar="COLLECTION", help="A folder in BEIR layout, or an ir_datasets id.", show_default=False),
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the page, pictures and numbers.")
]
QueriesOption = Annotated[
    int, typer.Option("--queries", min=2, help="Judged queries; half of them are used to choose.")
]
CandidatesOption = Annotated[int, typer.Option("--candidates", min=2, help="Candidates per query.")]
DocumentsOption = Annotated[int, typer.Option("--documents", min=2, help="Documents in a prompt under full attention.")]
OrderOption = Annotated[bool, typer.Option("--keep-order", help="Leave candidates in the first stage's order.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random draw.")]
TemplateOption = Annotated[
    str | None,
    typer.Option("--template", help="Prompt of a model without blockrank.json. [default: blockrank]"),
]


def analyze_command(
    model: ModelArgument,
    collection: CollectionArgument,
    output: OutputOption,
    first_stage: StageOption = "bm25",
    split: SplitOption = "test",
    queries: QueriesOption = 60,
    candidates: CandidatesOption = 50,
    documents: DocumentsOption = 15,
    keep_order: OrderOption = False,
    seed: SeedOption = 0,
    template: TemplateOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    backend: BackendOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show where a model's attention goes, and choose what of it to read.

    Half of the judged queries choose a layer, signal tokens and heads; the other half says what the choice is worth.
    DIR gets analysis.html, its pictures, analysis.json, and the choice as blockrank.json.
    """
    with logs(verbose):
        from blockrank.analyze import AnalysisSettings, analyze, load_analysed, write_analysis
        from blockrank.analyze.plots import require_matplotlib
        from blockrank.analyze.report import PAGE_FILE, make_folder
        from blockrank.data import open_collection
        from blockrank.evaluate.first_stage import FirstStage

        require_matplotlib()  # all that can fail early does so before the long part
        make_folder(output)
        opened = open_collection(collection, split=split)
        analysed = load_analysed(model, template=template, device=device, dtype=dtype, backend=backend)
        settings = AnalysisSettings(
            queries=queries, candidates=candidates, documents=documents, shuffle=not keep_order, seed=seed
        )
        with progress_bars() as progress:
            found = analyze(analysed, opened, FirstStage(first_stage), settings, progress=progress)
        write_analysis(found, output)
        write_data(json.dumps(summary(found), indent=1, ensure_ascii=False) if as_json else summary_text(found))
        for sentence in found.notes:
            note(sentence)
        note(f"{output / PAGE_FILE} shows everything; blockrank.json beside it holds the choice.")


def summary(analysis: Analysis) -> dict[str, object]:
    """What was chosen and what it is worth, JSON-ready; the tables are in analysis.json."""
    found = analysis.to_dict()
    kept = ("model", "collection", "first_stage", "queries", "choice", "chosen_spec", "notes")
    return {name: found[name] for name in kept}


def summary_text(analysis: Analysis) -> str:
    """The same in a few lines."""
    from blockrank.analyze.result import MAIN, setting_name

    named = analysis.named_settings()
    rows = [("", f"{MAIN} dev", "test", "reads")]
    for name, found in analysis.figures().items():
        dev, test = (f"{found[half][MAIN]:.4f}" for half in ("development", "test"))
        rows.append((name, dev, test, setting_name(named[name]) if name in named else ""))
    chosen = analysis.choice.chosen
    lines = [f"chosen: {setting_name(chosen)}"]
    if chosen.heads is not None:
        lines.append(f"heads:  {', '.join(map(str, chosen.heads))}")
    return "\n".join([*lines, analysis.choice.rule, "", *aligned(rows, right=(1, 2))])
