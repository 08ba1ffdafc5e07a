"""The work of threads on a call: from its body to a job for a device, and from scores to the body of the answer."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, get_args

from blockrank.serve.admission import Admission, Ticket
from blockrank.serve.batcher import QueuedRequest
from blockrank.serve.calls import Call, TokenCounts
from blockrank.serve.deadline import Deadline
from blockrank.serve.dialects import Dialect, dialect_of, dialect_of_path
from blockrank.serve.metrics import Metrics, Stage
from blockrank.serve.parsing import read_json
from blockrank.serve.refusals import Refusal, invalid
from blockrank.serve.settings import ServeSettings
from blockrank.types import InputError, ModelError, ServedRanker, Tokenised

_CHARS_PER_TOKEN = 4  # for estimates before anything is tokenised


@dataclass(eq=False, slots=True)
class Trace:
    """What the log reports about one call. `dialect`: also decides the form of its refusals."""

    request_id: str
    dialect: Dialect
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def timing(self) -> str:
        """Milliseconds in each stage, as the header Server-Timing has them."""
        stages = ((name, self.fields.get(f"{name}_ms")) for name in get_args(Stage))
        return ", ".join(f"{name};dur={found}" for name, found in stages if found is not None)


def new_trace(path: str, request_id: str) -> Trace:
    """The trace of a call that nothing is known of but its path."""
    return Trace(request_id, dialect_of_path(path))


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call ready for a device."""

    call: Call
    read: TokenCounts
    job: QueuedRequest
    ticket: Ticket


class Preparation:
    """Reads bodies and writes answers for one ranker. Its methods run in any thread."""

    def __init__(self, ranker: ServedRanker, settings: ServeSettings, admission: Admission, metrics: Metrics) -> None:
        self._ranker, self._settings = ranker, settings
        self._admission, self._metrics = admission, metrics

    def prepare(self, path: str, body: bytes, trace: Trace, deadline: Deadline) -> Prepared:
        """Read, admit and tokenise a call. Raises `Refusal`, also where its deadline passes first."""
        started = time.monotonic()
        values = read_json(body)
        deadline.check()
        trace.dialect = dialect = dialect_of(path, values)
        call = dialect.read(values, self._settings, trace.request_id)
        trace.fields |= {"dialect": dialect.name, "documents": len(call.given)}
        ticket = self._admission.take(_estimate(call, self._ranker))
        try:
            tokenised = self._tokenised(call, deadline)
        except BaseException:
            ticket.release()
            raise
        read = TokenCounts.of(tokenised)
        ticket.settle(read.tokens)
        self._stage(trace, "tokenise", time.monotonic() - started)
        trace.fields |= {"tokens": read.tokens, "cut_documents": read.cut_documents}
        return Prepared(call, read, QueuedRequest(call.request, tokenised, read.tokens, deadline), ticket)

    def _tokenised(self, call: Call, deadline: Deadline) -> Tokenised:
        try:
            tokenised: Tokenised = self._ranker.tokenise(call.request, call.max_document_tokens, between=deadline.check)
        except InputError as error:
            raise _refused(str(error), call) from None
        if not call.may_cut and tokenised.cuts:
            cut = tokenised.cuts[0]
            over = f"{'about ' * cut.is_estimate}{cut.tokens} tokens over the limit"
            sentence = f"documents[{cut.index}] is {over} and may not be cut."
            raise invalid(call.names.in_words(sentence), cause="limit")
        return tokenised

    def finish(self, prepared: Prepared, scored: Any, trace: Trace) -> bytes:
        """From scores to the body of the answer. Raises `Refusal` where the scores are no ranking."""
        started = time.monotonic()
        call, read, job = prepared.call, prepared.read, prepared.job
        try:
            ranking = self._ranker.ranking(call.request, job.tokenised, scored).in_unit_range()
        except ModelError as error:
            raise Refusal(500, "not_finite", str(error)) from None
        answer = trace.dialect.answer(call, ranking, read)
        body = json.dumps(answer, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        self._stage(trace, "queue", job.started - job.arrived)
        self._stage(trace, "forward", job.forward_s)
        self._stage(trace, "readout", time.monotonic() - started)
        self._metrics.ranked(len(call.given), read.tokens, read.cut_documents, read.query_cut > 0)
        return body

    def _stage(self, trace: Trace, name: Stage, seconds: float) -> None:
        self._metrics.stage(name, seconds)
        trace.fields[f"{name}_ms"] = round(1000 * seconds, 2)


def _refused(sentence: str, call: Call) -> Refusal:
    """A ranker's error in the terms of an HTTP caller, with the field at fault."""
    return invalid(call.names.in_words(sentence), call.names.query if sentence.startswith("query ") else None)


def give_back(future: Future[Prepared]) -> None:
    """Release what an abandoned call had taken, once its preparation has ended."""
    if not future.cancelled() and future.exception() is None:
        future.result().ticket.release()


def _estimate(call: Call, ranker: ServedRanker) -> int:
    """Estimated tokens of a call that reach a device, from its characters."""
    limit = ranker.facts.max_segment_tokens or sys.maxsize
    texts = (len(document.text) + len(document.title) for document in call.request.candidates)
    return sum(min(size // _CHARS_PER_TOKEN + 2, limit) for size in texts) + len(call.request.query) // _CHARS_PER_TOKEN
