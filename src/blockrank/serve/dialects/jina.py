"""Jina's `/v1/rerank`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from blockrank.serve.calls import Call, TokenCounts, read_call
from blockrank.serve.dialects.parts import (
    IGNORED,
    OWN_FIELDS,
    UNSUPPORTED_FIELDS,
    check_unsupported,
    detailed,
    echo_object,
    meta,
    query_counts,
    result,
    usage,
)
from blockrank.serve.fields import Fields
from blockrank.serve.refusals import Refusal
from blockrank.serve.settings import ServeSettings
from blockrank.types import Ranking


class Jina:
    """Jina's `/v1/rerank`, also used by vLLM, llama.cpp, infinity, Xinference and Cohere's version 1: `documents` in,
    an object with `results` out. Documents come back unless `return_documents` is false."""

    name: ClassVar[str] = "jina"
    _known: ClassVar[frozenset[str]] = (
        OWN_FIELDS | UNSUPPORTED_FIELDS | {"query", "documents", "top_n", "return_documents", "truncation"}
    )

    def read(self, body: Mapping[str, Any], settings: ServeSettings, request_id: str) -> Call:
        """See `Dialect.read`."""
        fields = Fields(body, self._known, IGNORED)
        check_unsupported(fields)
        echo, may_cut = fields.flag("return_documents", True), fields.flag("truncation", True)
        return read_call(fields, settings, request_id=request_id, echo=echo, may_cut=may_cut)

    def answer(self, call: Call, ranking: Ranking, read: TokenCounts) -> Any:
        """See `Dialect.answer`. No `object` field: infinity's client accepts only its own value."""
        results = [result(call, entry, "relevance_score") | echo_object(call, entry) for entry in ranking]
        return {
            "id": call.request.query_id,
            "model": call.model,
            "usage": usage(read),
            "results": results,
            **query_counts(call, read),
            **meta(call, ranking, read),
        }

    def refusal(self, refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
        """Jina's `detail` and vLLM's `error` in one body."""
        return detailed(refusal, request_id)
