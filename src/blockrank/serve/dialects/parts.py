"""Shared by the dialects: common fields, fields without effect, and the parts of an answer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from blockrank.serve.calls import Call, TokenCounts
from blockrank.serve.fields import Fields
from blockrank.serve.refusals import Refusal
from blockrank.serve.spans import relevant_spans
from blockrank.types import RankedDocument, Ranking

OWN_FIELDS = frozenset({"model", "evidence", "token_counts", "max_tokens_per_doc"})
# Fields that clients send but that cannot change a ranking here, and why. A dialect that defines one of them reads it.
_ONE_SCORE = "there is one kind of score"
_NO_CHUNKS = "a document is not split into chunks"
IGNORED = {
    "raw_scores": _ONE_SCORE, "use_activation": _ONE_SCORE, "activation": _ONE_SCORE, "softmax": _ONE_SCORE,
    "normalize": _ONE_SCORE,
    "max_chunks_per_doc": _NO_CHUNKS, "overlap_tokens": _NO_CHUNKS,
    "return_len": "token_counts gives the tokens of each document",
    "is_truncated": "what was cut is always told",
    "return_text": "documents come back by return_documents",
    "encoding_format": "a ranking has no embeddings",
    "mm_processor_kwargs": "only texts are ranked",
    "priority": "requests are served as they come",
    "request_id": "the header x-request-id names a request",
    "user": "requests are not told apart by it",
    "kwargs": "it is empty",
}  # fmt: skip
# Fields that would change a ranking, with their values that have no effect.
_UNSUPPORTED = {
    "truncate_prompt_tokens": ((-1,), "limit documents with max_tokens_per_doc"),
    "max_tokens_per_query": ((-1,), "shorten the query before it is sent"),
    "truncation_side": (("right",), "documents are cut at their end"),
    "truncation_direction": (("right", "Right"), "documents are cut at their end"),
    "instruction": (("",), "the served model takes no instruction"),
    "instruct": (("",), "the served model takes no instruction"),
    "rank_fields": ((["text"], ["title", "text"]), "title and text are ranked, in that order"),
    "modality": (("text",), "only texts are ranked"),
    "kwargs": (("{}", "", {}), "give fields by their own names"),
}
UNSUPPORTED_FIELDS = frozenset(_UNSUPPORTED) - IGNORED.keys() | {"return_embeddings"}


def check_unsupported(fields: Fields) -> None:
    """Refuse fields that would change the ranking in an unsupported way."""
    for name, (allowed, why) in _UNSUPPORTED.items():
        fields.must_be(name, allowed, why)
    if fields.flag("return_embeddings", False):
        fields.must_be("return_embeddings", (), "a ranking has no embeddings")


def warnings_of(call: Call, ranking: Ranking, read: TokenCounts) -> list[str]:
    """Warnings for the caller, beside the ranking."""
    warnings = [*call.notes, *(call.names.in_words(warning) for warning in ranking.warnings)]
    if read.cut_documents:
        warnings.append(
            f"{read.cut_documents} of {len(call.given)} documents were cut at their end to fit (at most "
            f"{read.most_cut} tokens were left out)."
        )
    if read.query_cut:
        warnings.append(f"the query lost its last {read.query_cut} tokens to fit.")
    return warnings


def meta(call: Call, ranking: Ranking, read: TokenCounts) -> dict[str, Any]:
    """`meta` with the warnings, where there are any."""
    warnings = warnings_of(call, ranking, read)
    return {"meta": {"warnings": warnings}} if warnings else {}


def usage(read: TokenCounts) -> dict[str, int]:
    """Tokens read. Some clients insist on all three."""
    return {"prompt_tokens": read.tokens, "completion_tokens": 0, "total_tokens": read.tokens}


def query_counts(call: Call, read: TokenCounts) -> dict[str, int]:
    """Tokens that the query lost, where counts were asked for."""
    return {"query_cut_tokens": read.query_cut} if call.counts else {}


def result(call: Call, entry: RankedDocument, score: str) -> dict[str, Any]:
    """One document of an answer, without its text."""
    found: dict[str, Any] = {"index": entry.index, score: entry.score}
    if (name := call.given[entry.index].name) is not None:
        found["id"] = name
    if call.counts:
        found |= {"tokens": entry.tokens, "cut_tokens": entry.cut_tokens}
        if entry.cut_is_estimate:
            found["cut_is_estimate"] = True
    if call.evidence:
        found["evidence"] = [asdict(item) for item in entry.evidence]
    if call.spans is not None and (spans := relevant_spans(entry, call.spans)):
        found["relevant_spans"] = spans
    return found


def echo_object(call: Call, entry: RankedDocument) -> dict[str, Any]:
    """The document as an object with all its fields, if it is to be returned."""
    if not call.echo:
        return {}
    title = {"title": entry.document.title} if entry.document.title else {}
    return {"document": {"text": entry.text, **title, **call.given[entry.index].beside}}


def echo_text(call: Call, entry: RankedDocument, key: str) -> dict[str, Any]:
    """The document's text under `key` and its other fields under `metadata`, if it is to be returned."""
    if not call.echo:
        return {}
    beside = call.given[entry.index].beside
    return {key: entry.text, **({"metadata": dict(beside)} if beside else {})}


def detailed(refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
    """A refusal as Jina's and Voyage's `detail` and vLLM's `error` in one body."""
    error: dict[str, Any] = {"message": refusal.sentence, "type": refusal.cause, "code": refusal.status}
    if refusal.param is not None:
        error["param"] = refusal.param
    return refusal.status, {"detail": refusal.sentence, "error": error, "id": request_id}
