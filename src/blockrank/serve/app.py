"""The application: routes over a `Service`, nothing more."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import blockrank.serve.packages  # noqa: F401  # first: says what is missing

# isort: split
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive

from blockrank.serve.dialects import likely_dialect
from blockrank.serve.faults import Faults
from blockrank.serve.fields import shown
from blockrank.serve.front import Front, refused
from blockrank.serve.metrics import Metrics
from blockrank.serve.paths import RERANK_PATHS, routes_sentence
from blockrank.serve.preparation import Trace
from blockrank.serve.refusals import Refusal
from blockrank.serve.schema import description
from blockrank.serve.service import Load, Service
from blockrank.serve.settings import OPEN_PATHS, ServeSettings
from blockrank.serve.web import PAGE_PATHS, page_routes
from blockrank.types import ServedRanker

TIMEOUT_HEADER = "x-request-timeout-ms"
_MOST_DIGITS = 20


def create_app(
    settings: ServeSettings | None = None,
    load: Load | None = None,
    *,
    on_failure: Callable[[str], None] | None = None,
) -> Starlette:
    """The application of a server. Loading begins when it starts; while it loads or shuts down, it answers 503.

    load: gives the rankers, each of which may be loaded on several devices; None loads the embedded model. on_failure:
    called from any thread, with a message, when nothing can be served any more: loading failed or a device is lost.
    `app.state.service` is the `Service` behind it.
    """
    settings = settings or ServeSettings()
    metrics = Metrics()
    service = Service(settings, load or _embedded, metrics, on_failure)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.start()
        yield
        await service.close()

    routes, open_paths = [*_rerank_routes(service), *_other_routes(service)], OPEN_PATHS
    if settings.has_page:
        routes += page_routes()
        open_paths |= PAGE_PATHS
    app = Starlette(routes=routes, lifespan=lifespan)
    app.router.redirect_slashes = False
    app.state.service = service
    _add_errors(app, service)
    app.add_middleware(Faults, metrics=metrics)
    app.add_middleware(Front, settings=settings, metrics=metrics, routes=app.routes, open_paths=open_paths)
    return app


def _embedded() -> Sequence[ServedRanker]:
    """The only ranker named in this package: the default of the server."""
    from blockrank import Ranker

    return [Ranker.from_pretrained()]


def _rerank_routes(service: Service) -> list[Route]:
    async def rerank(request: Request) -> Response:
        trace: Trace = request.state.trace
        try:
            with service.body() as count_in:
                body = await read_body(request, service.settings, count_in)
                trace.dialect = likely_dialect(request.url.path, body)
                work = service.rank(request.url.path, body, trace, _timeout(request))
                answer = await while_connected(request.receive, work)
        except Refusal as refusal:
            # Its traceback refers to the request, and the request's future to it: a reference cycle.
            return refused(refusal.with_traceback(None), trace, service.metrics)
        headers = {"server-timing": trace.timing}
        if cut := trace.fields.get("cut_documents"):
            headers["x-truncated-documents"] = str(cut)
        return Response(answer, media_type="application/json", headers=headers)

    return [Route(path, rerank, methods=["POST"]) for path in RERANK_PATHS]


def _other_routes(service: Service) -> list[Route]:
    async def livez(_: Request) -> Response:
        """Whether the process is worth keeping."""
        failed = service.readiness() == "failed"
        return JSONResponse({"status": "failed" if failed else "alive"}, 503 if failed else 200)

    async def readyz(_: Request) -> Response:
        """Whether requests are served: every device has run a forward recently."""
        state = service.readiness()
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    async def metrics(_: Request) -> Response:
        """Metrics in the format of Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    started = int(time.time())

    async def models(request: Request) -> Response:
        """The model served and its limits."""
        try:
            service.check()
        except Refusal as refusal:
            return refused(refusal, request.state.trace, service.metrics)
        return JSONResponse(models_body(service, started))

    async def openapi(_: Request) -> Response:
        """The description of the interface."""
        return JSONResponse(description(service.settings))

    answers = {"/livez": livez, "/readyz": readyz, "/health": readyz, "/metrics": metrics, "/v1/models": models}
    routes = [Route(path, answer) for path, answer in answers.items()]
    for route in routes:
        route.methods = {"GET"}  # the library adds HEAD
    return [*routes, Route("/openapi.json", openapi)]


def _add_errors(app: Starlette, service: Service) -> None:
    async def not_routed(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        method, path = request.method, request.url.path
        here = [route for route in app.routes if isinstance(route, Route) and route.path == path]
        allowed = sorted({name for route in here for name in route.methods or ()})
        refusal = Refusal(error.status_code, "route", routes_sentence(method, path, allowed))
        response = refused(refusal, request.state.trace, service.metrics)
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(HTTPException, not_routed)


def models_body(service: Service, created: int) -> dict[str, Any]:
    """The list of models, with the limits of this server."""
    settings, ranker = service.settings, service.ranker
    assert ranker is not None, "ready"
    facts = ranker.facts
    limits = {
        "max_documents": settings.max_documents,
        "max_document_chars": settings.max_document_chars,
        "max_document_tokens": facts.max_segment_tokens,
        "max_query_chars": settings.max_query_chars,
        "max_query_tokens": facts.max_query_tokens,
        "max_body_bytes": settings.max_body_bytes,
    }
    names = [settings.served_name, *settings.aliases]
    rows = [
        {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "blockrank",
            "max_model_len": facts.max_segment_tokens,
            "limits": limits,
        }
        for name in names
    ]
    return {"object": "list", "data": rows}


async def read_body(request: Request, settings: ServeSettings, count_in: Callable[[int], None]) -> bytes:
    """The body of a request, counted as it arrives. Raises `Refusal` where it is compressed, too large or too slow,
    where there is no room for it, or the client left."""
    limit = settings.max_body_bytes
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refusal(415, "body", "a compressed body is not read here: send it as it is.")
    if _declared_size(request) > limit:
        raise Refusal(413, "body", f"the body is larger than the limit of {limit} bytes.")
    chunks, size = [], 0
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise Refusal(413, "body", f"the body is larger than the limit of {limit} bytes.")
                count_in(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise Refusal(408, "body", f"the body did not arrive within {settings.body_timeout_s:g} s.") from None
    except ClientDisconnect:
        raise _left() from None
    return b"".join(chunks)


def _declared_size(request: Request) -> int:
    """The size of a body by its Content-Length; 0 without that header."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() and len(declared) <= _MOST_DIGITS else 0


async def while_connected(receive: Receive, work: Coroutine[Any, Any, bytes]) -> bytes:
    """The result of `work`, which is cancelled when the client leaves; then raises `Refusal`."""

    async def leaves() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(leaves())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise _left()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        del tasks, task  # else an error of theirs is in a reference cycle, and keeps the body in memory


def _left() -> Refusal:
    return Refusal(499, "disconnect", "the client has left.")


def _timeout(request: Request) -> float | None:
    """The client's own timeout in seconds, None if it sets none."""
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return None
    try:
        found = float(given) / 1000
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise Refusal(
            400, "invalid", f"{TIMEOUT_HEADER} must be a positive number of milliseconds, not {shown(given)}."
        )
    return found
