"""What `/openapi.json` says of the rerank routes. Bodies are read by `dialects`, which knows more than a schema can."""

from __future__ import annotations

from typing import Any

from blockrank.serve.settings import ServeSettings

TITLE = "blockrank"
_TEXT = {"type": "string"}
_FLAG = {"type": "boolean"}
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
            "field": {"enum": ["text", "title"]}, "start": _INDEX, "end": _INDEX, "share": {"type": "number"},
        },
    },
}  # fmt: skip
_EXTRAS = {"id": {"type": ["string", "integer"]}, "evidence": _SPANS, "tokens": _INDEX, "cut_tokens": _INDEX}


def rerank_schema(path: str, settings: ServeSettings) -> dict[str, Any]:
    """Request and responses of one route."""
    bodies = [_body("documents", settings, {"return_documents": _FLAG})]
    answers = [_object_answer()]
    if path == "/rerank":
        bodies.append(_body("texts", settings, {"return_text": _FLAG, "truncate": _FLAG, "raw_scores": _FLAG}))
        answers.append({"type": "array", "items": _result("score", {"text": _TEXT})})
    refusals = {
        "400": "No JSON; query or documents missing (Cohere, TEI).", "401": "No key.", "404": "Another model.",
        "413": "Body over the limit.", "422": "Cannot be ranked: the sentence names the field and the document.",
        "429": "Too much is waiting: see Retry-After.", "500": "The model's scores are not finite, or a fault.",
        "503": "Loading, draining, out of memory, or the device is lost.", "504": "Not in the time allowed.",
    }  # fmt: skip
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": _one_of(bodies)}}},
        "responses": {
            "200": {"description": "Best first.", "content": {"application/json": {"schema": _one_of(answers)}}},
            **{status: {"description": text} for status, text in refusals.items()},
        },
    }


def _one_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"oneOf": schemas}


def _body(documents: str, settings: ServeSettings, more: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["query", documents],
        "properties": {
            "query": {**_TEXT, "maxLength": settings.max_query_chars},
            documents: {"type": "array", "minItems": 1, "maxItems": settings.max_documents, "items": _DOCUMENT},
            "model": _TEXT,
            "top_n": _COUNT,
            **more,
            **_OWN,
        },
    }


def _result(score: str, echo: dict[str, Any]) -> dict[str, Any]:
    properties = {"index": _INDEX, score: {"type": "number"}, **echo, **_EXTRAS}
    return {"type": "object", "required": ["index", score], "properties": properties}


def _object_answer() -> dict[str, Any]:
    document = {"type": "object", "properties": {"text": _TEXT, "title": _TEXT}}
    results = {"type": "array", "items": _result("relevance_score", {"document": document})}
    usage = {"type": "object", "properties": {"total_tokens": _INDEX, "prompt_tokens": _INDEX}}
    properties = {"id": _TEXT, "model": _TEXT, "results": results, "usage": usage, "meta": {"type": "object"}}
    return {"type": "object", "required": ["id", "results"], "properties": properties}
