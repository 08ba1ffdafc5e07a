"""`blockrank mcp`: a ranker as a tool of the Model Context Protocol."""

from __future__ import annotations

from typing import Annotated

import typer

from blockrank.cli.console import (
    BackendOption,
    CutQueriesOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    ScorerOption,
    SegmentOption,
    SpecOption,
    StrategyOption,
    VerboseOption,
    load_ranker,
    logs,
)

DocumentsLimit = Annotated[int, typer.Option("--max-documents", min=1, help="Most documents per call.")]
CharsLimit = Annotated[int, typer.Option("--max-document-chars", min=1, help="Most characters per document.")]
PortOption = Annotated[
    int | None,
    typer.Option(
        "--http", metavar="PORT", min=1, max=65535, help="Streamable HTTP on 127.0.0.1:PORT/mcp in place of stdio."
    ),
]


def mcp_command(
    model: ModelOption = None,
    spec: SpecOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    backend: BackendOption = None,
    scorer: ScorerOption = None,
    strategy: StrategyOption = None,
    max_documents: DocumentsLimit = 1000,
    max_document_chars: CharsLimit = 200_000,
    max_segment_tokens: SegmentOption = None,
    cut_queries: CutQueriesOption = False,
    http: PortOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Serve one tool, rank, to an MCP client: on standard input and output, until it closes them."""
    with logs(verbose):
        from blockrank.integrations.mcp import create_mcp_server, run_mcp_server
        from blockrank.serve.settings import ServeSettings

        settings = ServeSettings(max_documents=max_documents, max_document_chars=max_document_chars)
        ranker = load_ranker(
            model,
            device=device,
            dtype=dtype,
            backend=backend,
            scorer=scorer,
            spec=spec,
            strategy=strategy,
            max_segment_tokens=max_segment_tokens,
            cut_queries=cut_queries,
        )
        run_mcp_server(create_mcp_server(ranker, settings), http)
