"""The interfaces of reranking that clients speak: what a body means, what an answer looks like, what a refusal does.

Pure functions of JSON: no server here. Sources: the public API pages of Jina, Cohere, vLLM and TEI
(text-embeddings-inference). A key without a value is left out, never null; `index` is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Protocol

from blockrank.serve.calls import Call, Reading, read_call
from blockrank.serve.fields import Fields
from blockrank.serve.refusals import Cause, Refusal, invalid
from blockrank.serve.settings import ServeSettings
from blockrank.types import RankedDocument, Ranking

_OWN_FIELDS = frozenset({"model", "query", "top_n", "evidence", "token_counts", "max_tokens_per_doc"})
_SUPPORTED_SIDE = "documents are cut at their end"
_NO_INSTRUCTION = "the served model takes no instruction"


class Dialect(Protocol):
    """One interface."""

    name: ClassVar[str]

    def read(self, body: Mapping[str, Any], settings: ServeSettings, request_id: str) -> Call:
        """What a body asks for. Raises `Refusal` where that cannot be served."""

    def answer(self, call: Call, ranking: Ranking, read: Reading) -> Any:
        """The body of an answer."""

    def refusal(self, refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
        """Status and body of a refusal."""


class Jina:
    """Jina's `/v1/rerank`, and what vLLM, infinity and Cohere's version 1 put under that name: `documents` in, an
    object with `results` out. Documents come back unless `return_documents` is false."""

    name: ClassVar[str] = "jina"
    _known: ClassVar[frozenset[str]] = _OWN_FIELDS | {
        "documents", "return_documents", "return_embeddings", "truncation", "truncate_prompt_tokens",
        "truncation_side", "instruction", "instruct", "priority", "request_id", "user", "raw_scores", "rank_fields",
        "max_chunks_per_doc",
    }  # fmt: skip

    def read(self, body: Mapping[str, Any], settings: ServeSettings, request_id: str) -> Call:
        """See `Dialect.read`."""
        fields = Fields(body, self._known)
        fields.must_be("return_embeddings", (False,), "a ranking has no embeddings")
        fields.must_be("truncate_prompt_tokens", (-1,), "limit documents with max_tokens_per_doc")
        fields.must_be("truncation_side", ("right",), _SUPPORTED_SIDE)
        fields.must_be("instruction", (), _NO_INSTRUCTION)
        fields.must_be("instruct", (), _NO_INSTRUCTION)
        return read_call(
            fields,
            settings,
            documents="documents",
            request_id=request_id,
            echo=fields.flag("return_documents", True),
            may_cut=fields.flag("truncation", True),
            notes=_cohere_notes(fields),
        )

    def answer(self, call: Call, ranking: Ranking, read: Reading) -> Any:
        """See `Dialect.answer`."""
        results = [_result(call, entry, "relevance_score") for entry in ranking]
        found = {
            "id": call.request.query_id,
            "object": "list",
            "model": call.model,
            "usage": {"total_tokens": read.tokens, "prompt_tokens": read.tokens},
            "results": results,
            **_query_counts(call, read),
        }
        if warnings := warnings_of(call, read):
            found["meta"] = {"warnings": warnings}
        return found

    def refusal(self, refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
        """Jina's `detail` and vLLM's `error` in one body."""
        error: dict[str, Any] = {"message": refusal.sentence, "type": refusal.cause, "code": refusal.status}
        if refusal.param is not None:
            error["param"] = refusal.param
        return refusal.status, {"detail": refusal.sentence, "error": error, "id": request_id}


class Cohere:
    """Cohere's `/v2/rerank`: as version 1, but documents come back only where `return_documents` asks for it."""

    name: ClassVar[str] = "cohere"
    _known: ClassVar[frozenset[str]] = _OWN_FIELDS | {
        "documents", "return_documents", "priority", "rank_fields", "max_chunks_per_doc",
    }  # fmt: skip

    def read(self, body: Mapping[str, Any], settings: ServeSettings, request_id: str) -> Call:
        """See `Dialect.read`."""
        fields = Fields(body, self._known)
        echo = fields.flag("return_documents", False)
        notes = _cohere_notes(fields)
        return read_call(fields, settings, documents="documents", request_id=request_id, echo=echo, notes=notes)

    def answer(self, call: Call, ranking: Ranking, read: Reading) -> Any:
        """See `Dialect.answer`."""
        meta: dict[str, Any] = {"api_version": {"version": "2"}, "tokens": {"input_tokens": read.tokens}}
        if warnings := warnings_of(call, read):
            meta["warnings"] = warnings
        results = [_result(call, entry, "relevance_score") for entry in ranking]
        return {"id": call.request.query_id, "results": results, "meta": meta, **_query_counts(call, read)}

    def refusal(self, refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
        """`message`, under 400 where query or documents are missing."""
        status = 400 if refusal.cause == "empty" else refusal.status
        return status, {"id": request_id, "message": refusal.sentence}


class Tei:
    """TEI's `/rerank`: `texts` in, a bare list out. Its `raw_scores` changes nothing: there is one kind of score."""

    name: ClassVar[str] = "tei"
    _known: ClassVar[frozenset[str]] = _OWN_FIELDS | {
        "texts", "truncate", "truncation_direction", "raw_scores", "return_text",
    }  # fmt: skip
    _kinds: ClassVar[dict[Cause, str]] = {
        "overload": "Overloaded", "loading": "Unhealthy", "draining": "Unhealthy", "failed": "Unhealthy",
        "deadline": "Backend", "memory": "Backend", "not_finite": "Backend", "internal": "Backend", "empty": "Empty",
    }  # fmt: skip

    def read(self, body: Mapping[str, Any], settings: ServeSettings, request_id: str) -> Call:
        """See `Dialect.read`."""
        fields = Fields(body, self._known)
        fields.must_be("truncation_direction", ("right", "Right"), _SUPPORTED_SIDE)
        fields.flag("raw_scores", False)
        return read_call(
            fields,
            settings,
            documents="texts",
            request_id=request_id,
            echo=fields.flag("return_text", False),
            may_cut=fields.flag("truncate", True),
        )

    def answer(self, call: Call, ranking: Ranking, read: Reading) -> Any:
        """See `Dialect.answer`."""
        del read
        return [_result(call, entry, "score", bare=True) for entry in ranking]

    def refusal(self, refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
        """`error` and `error_type`, under 400 where query or texts are missing."""
        del request_id
        status = 400 if refusal.cause == "empty" else refusal.status
        return status, {"error": refusal.sentence, "error_type": self._kinds.get(refusal.cause, "Validation")}


JINA, COHERE, TEI = Jina(), Cohere(), Tei()


def dialect_of_path(path: str) -> Dialect:
    """The dialect of a route, as far as the path alone tells."""
    return COHERE if path.startswith("/v2/") else JINA


def likely_dialect(path: str, body: bytes) -> Dialect:
    """The dialect of a call whose body is not read yet, for refusals before that."""
    return TEI if path == "/rerank" and b'"texts"' in body and b'"documents"' not in body else dialect_of_path(path)


def dialect_of(path: str, body: Mapping[str, Any]) -> Dialect:
    """The dialect of a call: `/rerank` is TEI's where the body has `texts`. Raises `Refusal` where it has both."""
    if path != "/rerank" or body.get("texts") is None:
        return dialect_of_path(path)
    if body.get("documents") is not None:
        raise invalid("a body has 'documents' or 'texts', not both.", "texts")
    return TEI


def warnings_of(call: Call, read: Reading) -> list[str]:
    """What the caller should know beside the ranking."""
    warnings = list(call.notes)
    if read.cut_documents:
        warnings.append(
            f"{read.cut_documents} of {len(call.ids)} documents were cut at their end to fit (at most {read.most_cut} "
            "tokens were left out)."
        )
    if read.query_cut:
        warnings.append(f"the query lost its last {read.query_cut} tokens to fit.")
    return warnings


def _result(call: Call, entry: RankedDocument, score: str, *, bare: bool = False) -> dict[str, Any]:
    """One document of an answer."""
    result: dict[str, Any] = {"index": entry.index, score: entry.score}
    if (name := call.ids[entry.index]) is not None:
        result["id"] = name
    if call.echo and bare:
        result["text"] = entry.text
    elif call.echo:
        title = {"title": entry.document.title} if entry.document.title else {}
        result["document"] = {"text": entry.text, **title}
    if call.counts:
        result |= {"tokens": entry.tokens, "cut_tokens": entry.cut_tokens}
    if call.request.evidence:
        result["evidence"] = [asdict(item) for item in entry.evidence]
    return result


def _query_counts(call: Call, read: Reading) -> dict[str, int]:
    return {"query_cut_tokens": read.query_cut} if call.counts else {}


def _cohere_notes(fields: Fields) -> list[str]:
    """Check the fields of Cohere that mean nothing here; those that change nothing are told."""
    fields.must_be("rank_fields", (["text"], ["title", "text"]), "title and text are ranked, in that order")
    notes = []
    if fields.integer("max_chunks_per_doc", 1) is not None:
        notes.append("max_chunks_per_doc changes nothing: a document is not split into chunks.")
    if "priority" in fields:
        notes.append("priority changes nothing: requests are served as they come.")
    return notes
