"""Arguments and options of `blockrank data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A folder in BEIR's or MS MARCO's layout, an ir_datasets id, a file of pairs, or one in DPR's form.",
        show_default=False,
    ),
]
RequestsArgument = Annotated[
    Path, typer.Argument(metavar="REQUESTS", help="Training requests; may be .gz.", show_default=False)
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="Written whole or not at all; packed if it ends in .gz.")
]
SplitOption = Annotated[str, typer.Option("--split", help="Queries and judgements of a folder to take.")]
QrelsOption = Annotated[Path | None, typer.Option("--qrels", help="Judgements to use in place of the collection's.")]
QueriesOption = Annotated[
    Path | None,
    typer.Option(
        "--queries", metavar="FILE", help="Queries without judgements: JSON lines, .tsv, or one per line. No positives."
    ),
]
FromDocumentsOption = Annotated[
    str | None,
    typer.Option(
        "--from-documents",
        metavar="titles|sentences",
        help="Take a query from each document: its title, else its first sentence; or a sentence drawn at random.",
    ),
]
GivenOption = Annotated[
    Path | None,
    typer.Option(
        "--given", metavar="FILE", help="Negatives of a collection: a run, or triples query_id, positive, negative."
    ),
]
RelevanceOption = Annotated[int, typer.Option("--min-relevance", min=1, help="Lowest relevance of a positive.")]
TitlesOption = Annotated[
    str, typer.Option("--titles", metavar="keep|drop|share", help="Titles of pairs; share gives negatives the row's.")
]
CandidatesOption = Annotated[int, typer.Option("--candidates", min=2, help="Documents per request.")]
NegativesOption = Annotated[
    str,
    typer.Option("--negatives", metavar="KIND[=SHARE],...", help="Kinds: bm25, dense, given, siblings, random."),
]
DepthOption = Annotated[int, typer.Option("--depth", min=1, help="bm25 and dense draw from this many best documents.")]
SkipOption = Annotated[int, typer.Option("--skip-top", min=0, help="Leave out this many of the first of those.")]
PositivesOption = Annotated[int, typer.Option("--max-positives", min=1, help="Positives per request.")]
MostOption = Annotated[int | None, typer.Option("--max-queries", min=1, help="Number of queries, drawn at random.")]
FillOption = Annotated[bool, typer.Option("--fill/--no-fill", help="Fill up with random negatives.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random draw.")]
EncoderOption = Annotated[
    str | None, typer.Option("--encoder", metavar="MODEL", help="Bi-encoder of sentence-transformers.")
]
CrossOption = Annotated[
    str | None, typer.Option("--cross-encoder", metavar="MODEL", help="CrossEncoder of sentence-transformers.")
]
TeacherOption = Annotated[
    str | None,
    typer.Option("--teacher", metavar="MODEL", help="Folder with blockrank.json, a hub name, or embedded."),
]
AboveOption = Annotated[
    float | None,
    typer.Option("--drop-above", help="Drop negatives over this share of the best positive's teacher score."),
]
MarginOption = Annotated[
    float | None, typer.Option("--drop-margin", help="Drop negatives that score above the best positive minus this.")
]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Texts that an encoder reads at once.")]
TokenizerOption = Annotated[
    str | None,
    typer.Option("--tokenizer", metavar="MODEL", help="Count tokens in place of words; embedded, a folder or a name."),
]
ExamplesOption = Annotated[int, typer.Option("--examples", min=0, help="How many of the first requests to show.")]
SharesOption = Annotated[str, typer.Option("--shares", metavar="PART=SHARE,...", help="Parts and their shares.")]
