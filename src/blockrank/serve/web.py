"""The web page: a few static files, read once, with a Content-Security-Policy that allows requests to this server
only."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# Path of each file, and its type. Paths are literals: no request can name another file.
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page/view.js": ("view.js", "text/javascript; charset=utf-8"),
    "/page/examples.jsonl": ("examples.jsonl", "application/jsonl; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
PAGE_PATHS = frozenset(_FILES)
# No inline script or style, nothing from other origins, and no way for a script to turn text into markup.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


def page_routes() -> list[Route]:
    """The page's routes, which answer HEAD too."""
    return [_file_route(path, name, media_type) for path, (name, media_type) in _FILES.items()]


@cache
def static_file(name: str) -> bytes:
    """A file of the page."""
    return files("blockrank.serve").joinpath("static", name).read_bytes()


def _file_route(path: str, name: str, media_type: str) -> Route:
    async def send(_: Request) -> Response:
        return Response(static_file(name), media_type=media_type, headers=_HEADERS)

    return Route(path, send)
