"""A ranker as a tool of the Model Context Protocol: `blockrank mcp` runs it. Needs the extra `mcp`.

The model is chosen when the server starts; a call brings a query and documents, nothing else. It is held to the limits
of the HTTP server and refused in the same sentences.
"""

# No postponed annotations: the tool's own are read at run time.
import contextlib
import json
import logging
import uuid
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any

from blockrank import __version__
from blockrank.types import InputError, MissingExtraError, ServedRanker

if TYPE_CHECKING:
    from mcp.server import MCPServer
    from mcp.server.mcpserver.tools import Tool

    from blockrank.serve.settings import ServeSettings

_log = logging.getLogger(__name__)
_SERVER_ERROR = 500
_LOOPBACK = "127.0.0.1"
_INSTRUCTIONS = "rank orders documents by relevance to a query. Send all candidates of a query in one call."
_DESCRIPTION = (
    "Rank documents by relevance to a query, best first; top_n keeps the best so many.\n\n"
    "Each of results has index (the document's place in documents, from 0), score and, where it came with one, id. The "
    "scores of a call sum to 1 over its documents and compare nothing across calls. warnings says what was cut to fit."
)
_ARGUMENTS = frozenset({"query", "documents", "top_n"})
_FIELDS = {"text": {"type": "string"}, "title": {"type": "string"}, "id": {"type": ["string", "integer"]}}
_OBJECT = {"type": "object", "properties": _FIELDS, "required": ["text"], "additionalProperties": False}
_DOCUMENT = {"anyOf": [{"type": "string"}, _OBJECT]}
_COUNT = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}], "default": None}


def create_mcp_server(ranker: "ServedRanker", settings: "ServeSettings | None" = None) -> "MCPServer[Any]":
    """A server with one tool, `rank`, within the limits of `settings`; `max_body_bytes` is that of a call's texts.

    Raises `MissingExtraError` without mcp.
    """
    try:
        from mcp.server import MCPServer
    except ImportError as error:
        raise MissingExtraError("an MCP server needs mcp: pip install 'blockrank[mcp]'.") from error
    from blockrank.serve.settings import ServeSettings

    limits, lock = settings or ServeSettings(), Lock()

    def answer(arguments: dict[str, Any]) -> dict[str, Any]:
        with lock:  # a ranker is used by one thread at a time
            return _answer(ranker, limits, arguments)

    return MCPServer[Any](
        "blockrank",
        version=__version__,
        instructions=_INSTRUCTIONS,
        log_level="WARNING",
        tools=[_tool(answer, limits.max_documents)],
    )


def _tool(answer: Callable[[dict[str, Any]], dict[str, Any]], max_documents: int) -> "Tool":
    """The tool. Its arguments reach `answer` as the client sent them: the library drops those that it does not know and
    converts what has another type, and here both are refused by name. Faults that are not the caller's are reported as
    the HTTP server does: the error's own words, which may name files, only go to the log."""
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.server.mcpserver.tools import Tool
    from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata

    from blockrank.serve.worker import refusal_of

    class AsSent(FuncMetadata):
        def validate_arguments(self, arguments_to_validate: dict[str, Any]) -> dict[str, Any]:
            return {"arguments": arguments_to_validate}

    def rank(arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            return answer(arguments)
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.status >= _SERVER_ERROR:  # no fault of the call's
                _log.error("a call failed", exc_info=error)
            raise ToolError(refusal.sentence) from None

    tool = Tool.from_function(rank, description=_DESCRIPTION)
    known = tool.fn_metadata
    tool.fn_metadata = AsSent(
        arg_model=known.arg_model, output_schema=known.output_schema, output_model=known.output_model
    )
    array = {"type": "array", "items": _DOCUMENT, "minItems": 1, "maxItems": max_documents}
    tool.parameters = {
        "type": "object",
        "properties": {"query": {"type": "string"}, "documents": array, "top_n": _COUNT},
        "required": ["query", "documents"],
        "additionalProperties": False,
    }
    return tool


def run_mcp_server(server: "MCPServer[Any]", port: int | None = None) -> None:
    """Serve until the client leaves: on standard input and output, or on a port of this machine's own address, to
    requests whose Host and Origin are that alone: no web page reaches the tool through a browser."""
    if port is None:
        return server.run("stdio")
    import uvicorn
    from mcp.server.transport_security import TransportSecuritySettings

    from blockrank.serve.sockets import listen

    hosts = [f"{_LOOPBACK}:{port}", f"localhost:{port}"]
    security = TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=[f"http://{host}" for host in hosts])
    app = server.streamable_http_app(stateless_http=True, json_response=True, transport_security=security)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listen(_LOOPBACK, port)])


def _answer(ranker: "ServedRanker", limits: "ServeSettings", values: dict[str, Any]) -> dict[str, Any]:
    """What a call gets. Raises `BlockrankError` where it cannot be ranked."""
    from blockrank.serve.calls import TokenCounts, read_call
    from blockrank.serve.dialects import TEI, warnings_of
    from blockrank.serve.fields import Fields, shown

    call = read_call(Fields(_parsed(values), _ARGUMENTS), limits, request_id=uuid.uuid4().hex, echo=False)
    for index, item in enumerate(call.given):
        if item.beside:  # it would not come back
            name = shown(next(iter(item.beside)))
            raise InputError(f"documents[{index}] has an unknown field {name}; known are id, text, title.")
    size = sum(len(document.text) + len(document.title) for document in call.request.candidates)
    if size > limits.max_body_bytes:
        raise InputError(f"documents have {size} characters together and the limit is {limits.max_body_bytes}.")
    try:
        tokenised = ranker.tokenise(call.request)
    except InputError as error:
        raise InputError(call.names.in_words(str(error))) from None
    ranking = ranker.ranking(call.request, tokenised, ranker.score([call.request], [tokenised])[0]).in_unit_range()
    read = TokenCounts.of(tokenised)
    warnings = warnings_of(call, ranking, read)
    return {"results": TEI.answer(call, ranking, read), **({"warnings": warnings} if warnings else {})}


def _parsed(values: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with documents that a model wrote as the text of a JSON array read as one."""
    documents = values.get("documents")
    if isinstance(documents, str):
        with contextlib.suppress(ValueError, RecursionError):
            return {**values, "documents": json.loads(documents)}
    return values
