"""TEI's `/rerank`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from blockrank.serve.calls import Call, Names, TokenCounts, read_call
from blockrank.serve.dialects.parts import (
    IGNORED,
    OWN_FIELDS,
    UNSUPPORTED_FIELDS,
    check_unsupported,
    echo_text,
    result,
)
from blockrank.serve.fields import Fields
from blockrank.serve.refusals import Cause, Refusal
from blockrank.serve.settings import ServeSettings
from blockrank.types import Ranking


class Tei:
    """`texts` in, a bare list out. A list has no place for warnings, so fields without effect are ignored."""

    name: ClassVar[str] = "tei"
    _known: ClassVar[frozenset[str]] = (
        OWN_FIELDS | UNSUPPORTED_FIELDS | {"query", "texts", "top_n", "truncate", "raw_scores", "return_text"}
    )
    _ignored: ClassVar[Mapping[str, str]] = {**IGNORED, "return_documents": "texts come back by return_text"}
    _kinds: ClassVar[dict[Cause, str]] = {
        "overload": "Overloaded", "loading": "Unhealthy", "draining": "Unhealthy", "failed": "Unhealthy",
        "deadline": "Backend", "memory": "Backend", "not_finite": "Backend", "internal": "Backend", "empty": "Empty",
    }  # fmt: skip

    def read(self, body: Mapping[str, Any], settings: ServeSettings, request_id: str) -> Call:
        """See `Dialect.read`."""
        fields = Fields(body, self._known, self._ignored)
        check_unsupported(fields)
        fields.flag("raw_scores", False)  # TEI's own fields: accepted, without effect
        echo, may_cut = fields.flag("return_text", False), fields.flag("truncate", True)
        names = Names(documents="texts")
        return read_call(fields, settings, request_id=request_id, echo=echo, may_cut=may_cut, names=names)

    def answer(self, call: Call, ranking: Ranking, read: TokenCounts) -> Any:
        """See `Dialect.answer`."""
        del read
        return [result(call, entry, "score") | echo_text(call, entry, "text") for entry in ranking]

    def refusal(self, refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
        """`error` and `error_type`, with status 400 where query or texts are missing."""
        del request_id
        status = 400 if refusal.cause == "empty" else refusal.status
        return status, {"error": refusal.sentence, "error_type": self._kinds.get(refusal.cause, "Validation")}
