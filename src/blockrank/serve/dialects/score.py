"""vLLM's `/score`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

from blockrank.serve.calls import Call, Names, TokenCounts, read_call
from blockrank.serve.dialects.parts import (
    IGNORED,
    OWN_FIELDS,
    UNSUPPORTED_FIELDS,
    check_unsupported,
    detailed,
    meta,
    query_counts,
    result,
    usage,
)
from blockrank.serve.fields import Fields
from blockrank.serve.refusals import Refusal, invalid
from blockrank.serve.settings import ServeSettings
from blockrank.types import Ranking

# Names of the query and the documents in the versions of vLLM.
_PAIRS = (("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items"))


class Score:
    """Takes one query and its documents, returns their scores in the given order. The documents of a request are scored
    against each other, so each query needs its own request."""

    name: ClassVar[str] = "score"
    _known: ClassVar[frozenset[str]] = OWN_FIELDS | UNSUPPORTED_FIELDS
    _ignored: ClassVar[Mapping[str, str]] = {**IGNORED, "return_documents": "scores come in the order of the documents"}

    def read(self, body: Mapping[str, Any], settings: ServeSettings, request_id: str) -> Call:
        """See `Dialect.read`."""
        query, documents = next((pair for pair in _PAIRS if _has(body, pair)), _PAIRS[0])
        texts, queries = body.get(documents), body.get(query)
        if isinstance(queries, list):
            if len(queries) != 1:
                raise invalid(f"{query} must be one text: documents are scored against each other.", query)
            queries = queries[0]
        fields = Fields(
            {**body, query: queries, documents: [texts] if isinstance(texts, str | dict) else texts},
            self._known | {query, documents},
            self._ignored,
        )
        check_unsupported(fields)
        return read_call(fields, settings, request_id=request_id, echo=False, names=Names(query, documents, "top_n"))

    def answer(self, call: Call, ranking: Ranking, read: TokenCounts) -> Any:
        """See `Dialect.answer`."""
        by_place = sorted(ranking, key=lambda entry: entry.index)
        return {
            "id": call.request.query_id,
            "object": "list",
            "created": int(time.time()),
            "model": call.model,
            "data": [{"object": "score"} | result(call, entry, "score") for entry in by_place],
            "usage": usage(read),
            **query_counts(call, read),
            **meta(call, ranking, read),
        }

    def refusal(self, refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
        """As vLLM's `error`."""
        return detailed(refusal, request_id)


def _has(body: Mapping[str, Any], pair: tuple[str, str]) -> bool:
    return all(body.get(name) is not None for name in pair)
