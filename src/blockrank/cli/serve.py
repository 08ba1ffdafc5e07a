"""`blockrank serve`: a ranker behind HTTP."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    note,
)
from blockrank.types import InputError, ServedRanker

if TYPE_CHECKING:
    from blockrank.serve.settings import ServeSettings

KEY_VARIABLE = "BLOCKRANK_API_KEY"
_MIB = 1 << 20

HostOption = Annotated[str, typer.Option("--host", help="Address to listen on.")]
PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
KeyFileOption = Annotated[
    Path | None, typer.Option("--key-file", help=f"File of keys, one per line; or one key in {KEY_VARIABLE}.")
]
NoKeyOption = Annotated[
    bool, typer.Option("--no-key", help="Listen without a key on addresses that other machines reach.")
]
PageOption = Annotated[
    bool | None,
    typer.Option("--page/--no-page", help="The web page at /, open to all; with a key only if asked for."),
]
NameOption = Annotated[str | None, typer.Option("--name", help="Name of the model in requests.", show_default=False)]
AliasOption = Annotated[
    list[str] | None, typer.Option("--alias", help="Another name for the model; may be repeated.", show_default=False)
]
DocumentsLimit = Annotated[int, typer.Option("--max-documents", min=1, help="Most documents per request.")]
CharsLimit = Annotated[int, typer.Option("--max-document-chars", min=1, help="Most characters per document.")]
BodyLimit = Annotated[float, typer.Option("--max-body-mib", min=0.001, help="Largest body of a request.")]
QueueLimit = Annotated[
    int | None,
    typer.Option("--max-queue-tokens", min=1, help="Tokens waiting and running at once; 16 batches if left out."),
]
BatchOption = Annotated[
    int | None, typer.Option("--batch-tokens", min=1, help="Tokens of requests that share a forward; chosen by device.")
]
BatchingOption = Annotated[bool, typer.Option("--batching/--no-batching", help="Whether requests share a forward.")]
CacheOption = Annotated[
    float, typer.Option("--cache-mib", min=0, help="Memory per device for documents' keys; 0: none.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds from arrival to answer at most.")]
DrainOption = Annotated[
    float, typer.Option("--drain", min=0.001, help="Seconds to wait at the end for requests in progress.")
]
ConnectionsLimit = Annotated[int, typer.Option("--max-connections", min=1, help="Connections at once.")]
HeaderTimeout = Annotated[
    float, typer.Option("--header-timeout", min=0.001, help="Seconds for a request's header to arrive.")
]
BodyTimeout = Annotated[float, typer.Option("--body-timeout", min=0.001, help="Seconds for a body to arrive.")]
IdleTimeout = Annotated[float, typer.Option("--idle-timeout", min=0.001, help="Seconds between two requests.")]
WriteTimeout = Annotated[
    float, typer.Option("--write-timeout", min=0.001, help="Seconds that an answer may wait for its client to read on.")
]
AllowedHostOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-host", metavar="NAME", show_default=False,
        help="Another name that requests and web pages may come under, *.NAME for all below it, * for any; may be "
        "repeated.",
    ),
]  # fmt: skip
LogOption = Annotated[str, typer.Option("--log-format", metavar="json|text", help="How logs are written.")]


def serve_command(
    host: HostOption = "127.0.0.1",
    port: PortOption = 8100,
    model: ModelOption = None,
    spec: SpecOption = None,
    name: NameOption = None,
    alias: AliasOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    backend: BackendOption = None,
    scorer: ScorerOption = None,
    strategy: StrategyOption = None,
    key_file: KeyFileOption = None,
    no_key: NoKeyOption = False,
    allowed_host: AllowedHostOption = None,
    page: PageOption = None,
    max_documents: DocumentsLimit = 1000,
    max_document_chars: CharsLimit = 200_000,
    max_body_mib: BodyLimit = 16,
    max_segment_tokens: SegmentOption = None,
    cut_queries: CutQueriesOption = False,
    max_queue_tokens: QueueLimit = None,
    batch_tokens: BatchOption = None,
    batching: BatchingOption = True,
    cache_mib: CacheOption = 256,
    timeout: TimeoutOption = 60,
    drain: DrainOption = 30,
    max_connections: ConnectionsLimit = 1000,
    header_timeout: HeaderTimeout = 20,
    body_timeout: BodyTimeout = 30,
    idle_timeout: IdleTimeout = 75,
    write_timeout: WriteTimeout = 30,
    log_format: LogOption = "json",
    verbose: VerboseOption = False,
) -> None:
    """Serve a model over HTTP: /v1/rerank, /v2/rerank, /rerank, until interrupted."""
    if log_format not in ("json", "text"):
        raise typer.BadParameter(f"--log-format is json or text, not {log_format!r}.")
    from blockrank.serve.settings import ServeSettings

    settings = ServeSettings(
        served_name=name or model_name(model), aliases=tuple(alias or ()), keys=_keys_for(host, key_file, no_key),
        page=page, bound_host=host, allowed_hosts=tuple(allowed_host or ()), max_body_bytes=int(max_body_mib * _MIB),
        max_documents=max_documents, max_document_chars=max_document_chars, max_queue_tokens=max_queue_tokens,
        batch_tokens=batch_tokens, batching=batching, cache_bytes=int(cache_mib * _MIB), timeout_s=timeout,
        drain_s=drain, max_connections=max_connections, header_timeout_s=header_timeout, body_timeout_s=body_timeout,
        idle_timeout_s=idle_timeout, write_timeout_s=write_timeout,
    )  # fmt: skip
    options: dict[str, Any] = {
        "device": device, "dtype": dtype, "backend": backend, "scorer": scorer, "strategy": strategy,
        "spec": spec,
        "max_segment_tokens": max_segment_tokens, "cut_queries": cut_queries,
    }  # fmt: skip
    _serve(settings, partial(load_ranker, model, **options), host, port, log_format, verbose=verbose)


def _serve(
    settings: ServeSettings, load: Callable[[], ServedRanker], host: str, port: int, log_format: str, *, verbose: bool
) -> None:
    """Serve until interrupted, and end whatever threads still run."""
    from blockrank.serve.logs import server_logs
    from blockrank.serve.server import run

    with server_logs("json" if log_format == "json" else "text", verbose=verbose):
        ended = run(settings, lambda: [load()], host=host, port=port)
    if not ended:  # the interpreter would end under a thread that computes, and be aborted
        os._exit(0)


def _keys_for(host: str, key_file: Path | None, no_key: bool) -> tuple[str, ...]:
    """The keys; a usage error where there are none and others than this machine could reach the server."""
    from blockrank.serve.hosts import is_loopback

    keys = read_keys(key_file, os.environ)
    if not keys and not is_loopback(host):
        if not no_key:
            raise typer.BadParameter(
                f"whoever reaches {host} could use this server: set {KEY_VARIABLE} or --key-file, or say --no-key."
            )
        note(f"listening on {host} without a key: whoever reaches it can use it.")
    return keys


def read_keys(path: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Keys from a file, one per line, and from the environment. Raises `InputError` where a file holds none."""
    from blockrank.serve.keys import NO_KEY, is_key, keys_in

    key = environment.get(KEY_VARIABLE, "").strip()
    if key and not is_key(key):
        raise InputError(f"the value of {KEY_VARIABLE} is no key: {NO_KEY}.")
    return (*((key,) if key else ()), *(keys_in(path) if path is not None else ()))


def model_name(model: str | None) -> str:
    """What a model is called where nothing says otherwise: its name on the hub, or that of its folder."""
    if model is None:
        return "blockrank/mini"
    return Path(model).resolve().name if Path(model).is_dir() else model
