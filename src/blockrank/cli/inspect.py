"""`blockrank inspect`: what a model would read of a request, without ranking it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockrank.cli.console import (
    JsonOption,
    ModelOption,
    PatternOption,
    SegmentOption,
    SpecOption,
    VerboseOption,
    aligned,
    logs,
    preview,
    terminal,
    write_data,
)
from blockrank.cli.inputs import DocumentsOption, FilesArgument, Inputs, LinesOption, QueryArgument, RequestsOption
from blockrank.cli.pattern import blocks, draw, pairs_read, save_png
from blockrank.keep.files import atomic_file
from blockrank.types import RankRequest

if TYPE_CHECKING:
    from blockrank.layout import PackedLayout

_DOC_ID_WIDTH = 32


@dataclass(frozen=True, slots=True)
class SegmentLine:
    """One segment as shown. first_position, last_position: None where it has no tokens."""

    name: str
    kind: str
    doc_id: str | None
    tokens: int
    first_position: int | None
    last_position: int | None
    cut_tokens: int
    text: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """A request as a model would read it."""

    request: RankRequest
    layout: PackedLayout
    lines: tuple[SegmentLine, ...]
    signal_tokens: int

    @property
    def names(self) -> list[str]:
        """Names of the segments."""
        return [line.name for line in self.lines]

    @property
    def totals(self) -> dict[str, Any]:
        """Tokens, and how many of all (token, token) pairs attention computes."""
        pairs = pairs_read(self.layout)
        return {
            "segments": len(self.lines),
            "tokens": self.layout.tokens,
            "signal_tokens": self.signal_tokens,
            "cut_documents": sum(line.cut_tokens > 0 for line in self.lines),
            "pairs": pairs,
            "share_of_all_pairs": pairs / self.layout.tokens**2,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `blocks` rows read columns: 0 not at all, 1 all of it, 2 each token up to itself,
        3 at the scoring layer alone.
        """
        return {
            "query_id": self.request.query_id,
            "query": self.request.query,
            "totals": self.totals,
            "segments": [asdict(line) for line in self.lines],
            "blocks": blocks(self.layout).tolist(),
        }


def inspect_command(
    query: QueryArgument = None,
    files: FilesArgument = None,
    documents: DocumentsOption = None,
    requests: RequestsOption = None,
    lines: LinesOption = False,
    png: Annotated[Path | None, typer.Option("--png", help="Draw the block pattern to scale into this file.")] = None,
    as_json: JsonOption = False,
    model: ModelOption = None,
    spec: SpecOption = None,
    max_segment_tokens: SegmentOption = None,
    pattern: PatternOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Show the segments of a request (the first of a file) and which of them reads which."""
    inputs = Inputs(query, files or [], documents, requests, lines)
    with logs(verbose):
        with inputs.opened() as read:
            _, request = next(read())
        inspection = inspect_request(request, model, max_segment_tokens, pattern, spec)
        if png is not None:
            with atomic_file(png) as stream:
                save_png(inspection.layout, inspection.names, stream)
        if as_json:
            write_data(json.dumps(inspection.to_dict(), indent=2, ensure_ascii=False))
        else:
            console = terminal()
            write_data(_text(inspection, console.width if console else None))


def inspect_request(
    request: RankRequest,
    model: str | None,
    max_segment_tokens: int | None = None,
    pattern: str | None = None,
    spec: str | None = None,
) -> Inspection:
    """Tokenise and lay out a request as a ranker with that model would; no weight is read."""
    from blockrank.layout import pack
    from blockrank.layout.prompt import segments
    from blockrank.model import load_tokenizer
    from blockrank.scorers import resolve_scorer

    _, read = resolve_scorer(model, spec=spec)
    if max_segment_tokens is not None:
        read = read.changed(max_segment_tokens=max_segment_tokens)
    if pattern is not None:
        read = read.changed(pattern=pattern)
    tokenizer, _ = load_tokenizer(model)
    tokenised = tokenizer.tokenise_request(request, read)
    texts = segments(tokenizer.written(read.prompt), request, read=tokenised.indices)
    layout = pack([tokenised], read)
    lines = []
    for place, (text, segment) in enumerate(zip(texts, tokenised.segments, strict=True)):
        positions = layout.positions_T[layout.starts_S[place] : layout.ends_S[place]].tolist()
        lines.append(
            SegmentLine(
                name=segment.kind if text.index < 0 else f"document {text.index}",
                kind=segment.kind,
                doc_id=None if text.index < 0 else request.candidates[text.index].doc_id,
                tokens=len(segment.ids),
                first_position=positions[0] if positions else None,
                last_position=positions[-1] if positions else None,
                cut_tokens=segment.cut,
                text=preview("".join(piece.text for piece in text.pieces)),
            )
        )
    return Inspection(request, layout, tuple(lines), len(layout.signal_G))


def _text(inspection: Inspection, width: int | None) -> str:
    """Segments, totals and pattern."""
    rows = [("segment", "doc_id", "tokens", "positions", "cut", "text")]
    for line in inspection.lines:
        span = "" if line.first_position is None else f"{line.first_position}-{line.last_position}"
        doc_id = preview(line.doc_id or "", _DOC_ID_WIDTH)
        rows.append((line.name, doc_id, str(line.tokens), span, str(line.cut_tokens or ""), line.text))
    totals = inspection.totals
    summary = (
        f"{totals['tokens']} tokens in {totals['segments']} segments, {totals['signal_tokens']} signal tokens, "
        f"{totals['cut_documents']} documents cut; attention computes {totals['pairs']} token pairs a layer and head, "
        f"{totals['share_of_all_pairs']:.1%} of all."
    )
    pattern = draw(blocks(inspection.layout), inspection.names)
    return "\n".join([*aligned(rows, right=(2, 3, 4), width=width), "", summary, "", pattern])
