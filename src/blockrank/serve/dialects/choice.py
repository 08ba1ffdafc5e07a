"""Which dialect a call speaks, by its path and the keys of its body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockrank.serve.dialects.cohere import Cohere
from blockrank.serve.dialects.dialect import Dialect
from blockrank.serve.dialects.jina import Jina
from blockrank.serve.dialects.score import Score
from blockrank.serve.dialects.tei import Tei
from blockrank.serve.dialects.voyage import Voyage
from blockrank.serve.refusals import invalid

JINA, COHERE, TEI, VOYAGE, SCORE = Jina(), Cohere(), Tei(), Voyage(), Score()
_OF_PATHS: dict[str, Dialect] = {
    "/v2/rerank": COHERE, "/score": SCORE, "/v1/score": SCORE, "/voyage/v1/rerank": VOYAGE,
}  # fmt: skip


def dialect_of_path(path: str) -> Dialect:
    """The dialect of a route, as far as the path alone tells."""
    return _OF_PATHS.get(path, COHERE if path.startswith("/v2/") else JINA)


def likely_dialect(path: str, body: bytes) -> Dialect:
    """The dialect of a call by its path alone, for refusals before its body is read."""
    return TEI if path == "/rerank" and b'"texts"' in body and b'"documents"' not in body else dialect_of_path(path)


def dialect_of(path: str, body: Mapping[str, Any]) -> Dialect:
    """The dialect of a call. `/rerank` is TEI's where the body has `texts`; that and `/v1/rerank` are Voyage's where it
    has `top_k`, also as null, and no `top_n`. Raises `Refusal` where a body has `texts` and `documents`."""
    if path == "/rerank" and body.get("texts") is not None:
        if body.get("documents") is not None:
            raise invalid("a body has 'documents' or 'texts', not both.", "texts")
        return TEI
    if path in ("/rerank", "/v1/rerank") and "top_k" in body and body.get("top_n") is None:
        return VOYAGE
    return dialect_of_path(path)
