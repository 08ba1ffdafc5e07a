"""The content of `/openapi.json`. Bodies are validated by `dialects`, which checks more than a schema can."""

from __future__ import annotations

from typing import Any

from blockrank import __version__
from blockrank.serve.paths import RERANK_PATHS
from blockrank.serve.settings import ServeSettings

_OPENAPI = "3.1.0"
# Description of each route: path -> title, sentence, type of its answer.
_TOLD = {
    "/livez": ("Livez", "Whether the process is worth keeping.", "application/json"),
    "/readyz": ("Readyz", "Whether requests are served: every device has run a forward lately.", "application/json"),
    "/health": ("Readyz", "Whether requests are served: every device has run a forward lately.", "application/json"),
    "/metrics": ("Metrics", "Metrics in the format of Prometheus.", "text/plain"),
    "/v1/models": ("Models", "The model served and its limits.", "application/json"),
}
_TEXT = {"type": "string"}
_FLAG = {"type": "boolean"}
_NUMBER = {"type": "number"}
_OBJECT = {"type": "object"}
_COUNT = {"type": "integer", "minimum": 1}
_DOCUMENT: dict[str, Any] = {
    "oneOf": [
        _TEXT,
        {
            "type": "object",
            "required": ["text"],
            "properties": {"text": _TEXT, "title": _TEXT, "id": {"type": ["string", "integer"]}},
        },
    ]
}
_OWN = {"evidence": _FLAG, "token_counts": _FLAG, "max_tokens_per_doc": _COUNT}
_INDEX = {"type": "integer", "minimum": 0}
_SPANS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "field": {"enum": ["text", "title"]}, "start": _INDEX, "end": _INDEX, "share": _NUMBER,
        },
    },
}  # fmt: skip
_SPAN = {"type": "object", "properties": {"start": _INDEX, "end": _INDEX, "score": _NUMBER}}
_SPAN_OPTIONS = {
    "type": "object",
    "required": ["mode"],
    "properties": {"mode": {"enum": ["enabled", "disabled"]}, "threshold": _NUMBER, "max_spans": _COUNT},
}
_EXTRAS = {"id": {"type": ["string", "integer"]}, "evidence": _SPANS, "tokens": _INDEX, "cut_tokens": _INDEX}


def description(settings: ServeSettings) -> dict[str, Any]:
    """The interface of a server, an OpenAPI document."""
    paths = {path: {"post": _rerank(path, settings)} for path in RERANK_PATHS}
    return {
        "openapi": _OPENAPI,
        "info": {"title": "blockrank", "version": __version__},
        "paths": {**paths, **{path: {"get": _told(path, *told)} for path, told in _TOLD.items()}},
    }


def _told(path: str, title: str, sentence: str, media_type: str) -> dict[str, Any]:
    return {
        "summary": title,
        "description": sentence,
        "operationId": path.strip("/").replace("/", "_"),
        "responses": {"200": {"description": "Successful Response", "content": {media_type: {"schema": {}}}}},
    }


def _rerank(path: str, settings: ServeSettings) -> dict[str, Any]:
    """Request and responses of one route."""
    bodies, answers = _shapes(path, settings)
    refusals = {
        "400": "No JSON; query or documents missing (Cohere, TEI).", "401": "No key.", "404": "Another model.",
        "413": "Body over the limit.", "422": "Cannot be ranked: the sentence names the field and the document.",
        "429": "Too much is waiting: see Retry-After.", "500": "The model's scores are not finite, or a fault.",
        "503": "Loading, draining, out of memory, or the device is lost.", "504": "Not in the time allowed.",
    }  # fmt: skip
    return {
        "summary": "Rerank",
        "operationId": "rerank" + path.replace("/", "_").removesuffix("_rerank"),
        "requestBody": {"required": True, "content": {"application/json": {"schema": _one_of(bodies)}}},
        "responses": {
            "200": {"description": "Best first.", "content": {"application/json": {"schema": _one_of(answers)}}},
            **{status: {"description": text} for status, text in refusals.items()},
        },
    }


def _shapes(path: str, settings: ServeSettings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Bodies that a route takes, and answers that it gives."""
    jina = _body(settings, {"top_n": _COUNT, "return_documents": _FLAG, "truncation": _FLAG})
    voyage = _body(settings, {"top_k": _COUNT, "return_documents": _FLAG, "truncation": _FLAG})
    cohere = _body(settings, {"top_n": _COUNT, "return_documents": _FLAG, "relevant_spans": _SPAN_OPTIONS})
    tei_fields = {"top_n": _COUNT, "return_text": _FLAG, "truncate": _FLAG, "raw_scores": _FLAG}
    tei = _body(settings, tei_fields, documents="texts")
    results = _object_answer("results", _result("relevance_score", {"document": _OBJECT}))
    data = _object_answer("data", _result("relevance_score", {"document": _TEXT, "metadata": _OBJECT}))
    bare = {"type": "array", "items": _result("score", {"text": _TEXT, "metadata": _OBJECT})}
    if path.endswith("/score"):
        scores = _object_answer("data", _result("score", {"object": _TEXT}))
        return [_body(settings, {}, query="text_1", documents="text_2")], [scores]
    if path == "/v2/rerank":
        spans = {"relevant_spans": {"type": "array", "items": _SPAN}}
        return [cohere], [_object_answer("results", _result("relevance_score", {"document": _OBJECT, **spans}))]
    if path.startswith("/voyage/"):
        return [voyage], [data]
    if path == "/rerank":
        return [jina, voyage, tei], [results, data, bare]
    return [jina, voyage], [results, data]


def _one_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"oneOf": schemas}


def _body(
    settings: ServeSettings, more: dict[str, Any], *, query: str = "query", documents: str = "documents"
) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [query, documents],
        "properties": {
            query: {**_TEXT, "maxLength": settings.max_query_chars},
            documents: {"type": "array", "minItems": 1, "maxItems": settings.max_documents, "items": _DOCUMENT},
            "model": _TEXT,
            **more,
            **_OWN,
        },
    }


def _result(score: str, more: dict[str, Any]) -> dict[str, Any]:
    properties = {"index": _INDEX, score: _NUMBER, **more, **_EXTRAS}
    return {"type": "object", "required": ["index", score], "properties": properties}


def _object_answer(name: str, result: dict[str, Any]) -> dict[str, Any]:
    results = {"type": "array", "items": result}
    counts = {"prompt_tokens": _INDEX, "completion_tokens": _INDEX, "total_tokens": _INDEX}
    usage = {"type": "object", "properties": counts}
    warnings = {"type": "array", "items": _TEXT}
    meta = {"type": "object", "properties": {"warnings": warnings}}
    properties = {"id": _TEXT, "model": _TEXT, name: results, "usage": usage, "meta": meta}
    return {"type": "object", "required": ["id", name], "properties": properties}
