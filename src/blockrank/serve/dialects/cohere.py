"""Cohere's `/v2/rerank`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from blockrank.serve.calls import Call, TokenCounts, read_call
from blockrank.serve.dialects.parts import (
    IGNORED,
    OWN_FIELDS,
    UNSUPPORTED_FIELDS,
    check_unsupported,
    echo_object,
    query_counts,
    result,
    warnings_of,
)
from blockrank.serve.fields import Fields
from blockrank.serve.refusals import Refusal
from blockrank.serve.settings import ServeSettings
from blockrank.serve.spans import read_span_options
from blockrank.types import Ranking


class Cohere:
    """Cohere's `/v2/rerank`: as version 1, but documents come back only where `return_documents` asks for it, and
    `relevant_spans` says where the attention fell."""

    name: ClassVar[str] = "cohere"
    _known: ClassVar[frozenset[str]] = (
        OWN_FIELDS | UNSUPPORTED_FIELDS | {"query", "documents", "top_n", "return_documents", "relevant_spans"}
    )

    def read(self, body: Mapping[str, Any], settings: ServeSettings, request_id: str) -> Call:
        """See `Dialect.read`."""
        fields = Fields(body, self._known, IGNORED)
        check_unsupported(fields)
        echo, spans = fields.flag("return_documents", False), read_span_options(fields)
        return read_call(fields, settings, request_id=request_id, echo=echo, spans=spans)

    def answer(self, call: Call, ranking: Ranking, read: TokenCounts) -> Any:
        """See `Dialect.answer`."""
        meta: dict[str, Any] = {"api_version": {"version": "2"}, "tokens": {"input_tokens": read.tokens}}
        if warnings := warnings_of(call, ranking, read):
            meta["warnings"] = warnings
        results = [result(call, entry, "relevance_score") | echo_object(call, entry) for entry in ranking]
        return {"id": call.request.query_id, "results": results, "meta": meta, **query_counts(call, read)}

    def refusal(self, refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
        """`message`, under 400 where query or documents are missing."""
        status = 400 if refusal.cause == "empty" else refusal.status
        return status, {"id": request_id, "message": refusal.sentence}
