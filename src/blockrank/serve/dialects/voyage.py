"""Voyage's `/v1/rerank`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from blockrank.serve.calls import Call, Names, TokenCounts, read_call
from blockrank.serve.dialects.parts import (
    IGNORED,
    OWN_FIELDS,
    UNSUPPORTED_FIELDS,
    check_unsupported,
    detailed,
    echo_text,
    meta,
    query_counts,
    result,
    usage,
)
from blockrank.serve.fields import Fields
from blockrank.serve.refusals import Refusal
from blockrank.serve.settings import ServeSettings
from blockrank.types import Ranking


class Voyage:
    """`top_k` in, results under `data`, each with its text as a plain string where `return_documents` is true."""

    name: ClassVar[str] = "voyage"
    _known: ClassVar[frozenset[str]] = (
        OWN_FIELDS | UNSUPPORTED_FIELDS | {"query", "documents", "top_k", "return_documents", "truncation"}
    )

    def read(self, body: Mapping[str, Any], settings: ServeSettings, request_id: str) -> Call:
        """See `Dialect.read`."""
        fields = Fields(body, self._known, IGNORED)
        check_unsupported(fields)
        echo, may_cut = fields.flag("return_documents", False), fields.flag("truncation", True)
        return read_call(fields, settings, request_id=request_id, echo=echo, may_cut=may_cut, names=Names(top="top_k"))

    def answer(self, call: Call, ranking: Ranking, read: TokenCounts) -> Any:
        """See `Dialect.answer`."""
        data = [result(call, entry, "relevance_score") | echo_text(call, entry, "document") for entry in ranking]
        return {
            "id": call.request.query_id,
            "object": "list",
            "data": data,
            "model": call.model,
            "usage": usage(read),
            **query_counts(call, read),
            **meta(call, ranking, read),
        }

    def refusal(self, refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
        """Voyage's `detail`, as Jina's."""
        return detailed(refusal, request_id)
