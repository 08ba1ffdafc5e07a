"""The route that a path means: clients append their own suffix to any address they are given.

A client that appends `/v2/rerank` to an address that ends in `/v2` asks for `/v2/v2/rerank`; others double a slash, end
in one, or post to the address itself. All of that is unambiguous, so it is served.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockrank.serve.fields import shown

RERANK_PATHS = ("/v1/rerank", "/v2/rerank", "/rerank", "/score", "/v1/score", "/voyage/v1/rerank")
OTHER_PATHS = ("/v1/models", "/livez", "/readyz", "/health", "/metrics", "/openapi.json")
_VERSIONS = frozenset({"v1", "v2"})
_VERBS = {"rerank": "rerank", "reranking": "rerank", "reranks": "rerank", "score": "score"}
_MOST_PARTS = 4  # /v1/rerank/v1/rerank


def canonical_path(path: str, method: str = "POST") -> str:
    """The route that a path means, `path` itself where it is none of this server's interface.

    The last version and the last verb count: `/v1/v2/rerank` is `/v2/rerank`, `/v1/rerank/rerank` is `/v1/rerank`. An
    address without a verb (`/`, `/v1`) is `rerank` to a POST.
    """
    parts = [part for part in path.split("/", 2 * _MOST_PARTS) if part]
    if (plain := "/" + "/".join(parts)) in OTHER_PATHS:
        return plain
    voyage = parts[:1] == ["voyage"]
    rest = parts[1:] if voyage else parts
    if len(rest) > _MOST_PARTS or not all(part in _VERSIONS or part in _VERBS for part in rest):
        return path
    verb = next((_VERBS[part] for part in reversed(rest) if part in _VERBS), "rerank" if method == "POST" else None)
    version = next((part for part in reversed(rest) if part in _VERSIONS), "")
    where = "/voyage/v1" if voyage else f"/{version}" if version else ""
    found = f"{where}/{verb}"
    return found if found in RERANK_PATHS else path


def routes_sentence(method: str, path: str, allowed: Sequence[str]) -> str:
    """The message for a path that is no route, or for a wrong method: what to use instead."""
    if allowed:
        return f"{method} {shown(path)} is not served: use {' or '.join(allowed)}."
    return f"there is no {method} {shown(path)}: POST {', '.join(RERANK_PATHS)}, or GET {', '.join(OTHER_PATHS)}."
