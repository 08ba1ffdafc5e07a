"""TREC runs and judgements, read and written.

Evaluators ignore the order of a run's lines and its rank column: trec_eval sorts by score, as float32, and breaks ties
by doc_id, both descending. Others break ties otherwise (RR with a cutoff in ir_measures: by doc_id, ascending). So a
run is read in the order of trec_eval, and written so that no two scores of a query tie.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blockrank.data.files import Source, is_rereadable, named, packed_file, source_name, text_lines
from blockrank.types import InputError, Ranking

Run = dict[str, dict[str, float]]
Qrels = dict[str, dict[str, int]]

RUN_TAG = "blockrank"
_OVERFLOW = 2.0**128 - 2.0**103  # what is nearer to zero does not round to an infinite float32
_BEIR_HEADER = ("query-id", "corpus-id", "score")


@dataclass(frozen=True, slots=True)
class RunLine:
    """One line of a run. `rank` stays text: evaluators ignore it."""

    query_id: str
    doc_id: str
    rank: str
    score: float
    tag: str

    @classmethod
    def parse(cls, text: str) -> RunLine:
        """Read `query_id Q0 doc_id rank score tag`. Raises `InputError`, without a place, where it is no such line."""
        fields = text.split()
        if len(fields) != 6:
            raise InputError(f"a run has six fields, query_id Q0 doc_id rank score tag; here are {len(fields)}.")
        query_id, _, doc_id, rank, score, tag = fields
        return cls(query_id, doc_id, rank, _number(score, "score"), tag)


def _number(text: str, kind: str) -> float:
    """A finite number that fits float32, in plain notation."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if "_" in text or not abs(value) < _OVERFLOW:
        raise InputError(f"the {kind} {text!r} is not a finite number.")
    return value


def read_run(source: Source) -> Run:
    """Scores of a TREC run: query_id to doc_id to score; each query's documents in the order of evaluation.

    Where scores differ but tie in float32, the lower places get the score of the place above them, so that a stable
    sort by score keeps the order. Ranks in the file are ignored, as evaluators do. Raises `InputError` on a broken
    line, a score that is not finite, a document listed twice for a query, or a source without lines.
    """
    name, run = source_name(source), Run()
    for number, text in text_lines(source):
        if not text.strip():
            continue
        with named(f"{name}:{number}"):
            line = RunLine.parse(text)
            scores = run.setdefault(line.query_id, {})
            if line.doc_id in scores:
                raise InputError(f"the doc_id {line.doc_id!r} is listed before for the query_id {line.query_id!r}.")
            scores[line.doc_id] = line.score
    if not run:
        raise InputError(f"{name}: there is no run in it.")
    return {query_id: evaluation_order(scores) for query_id, scores in run.items()}


def evaluation_order(scores: Mapping[str, float]) -> dict[str, float]:
    """Documents of a query as evaluators sort them: float32 score, then doc_id, both descending; no score rises."""
    singles = np.asarray(list(scores.values()), dtype=np.float32).tolist()
    ordered: dict[str, float] = {}
    previous = math.inf
    for _, doc_id in sorted(zip(singles, scores, strict=True), reverse=True):
        previous = ordered[doc_id] = min(scores[doc_id], previous)
    return ordered


def strictly_decreasing(scores: Sequence[float]) -> list[float]:
    """Scores as float32, each below the one before it: ties in a run would let an evaluator reorder it.

    Evaluators compare float32. A score that is not below the previous one becomes the next float32 under that. Raises
    `InputError` where there is none.
    """
    lowered: list[np.float32] = []
    with np.errstate(over="ignore"):  # found out below
        for score in np.asarray(scores, dtype=np.float32):
            if lowered and score >= lowered[-1]:
                score = np.nextafter(lowered[-1], np.float32(-np.inf))
            lowered.append(score)
    if lowered and np.isinf(lowered[-1]):
        raise InputError("the scores are too low to be told apart in float32.")
    return [float(score) for score in lowered]


def run_lines(query_id: str, scores: Mapping[str, float], tag: str = RUN_TAG) -> list[str]:
    """Lines `query_id Q0 doc_id rank score tag` of one query, best first, without line ends.

    Documents of equal score keep their order. Scores are written as strictly decreasing float32 in nine digits, which
    read back exactly. Raises `InputError` on an id or tag that is empty or holds white space, which the format cannot
    carry, and on a score that is not finite.
    """
    ordered = sorted(scores.items(), key=lambda item: item[1], reverse=True)
    return _lines(query_id, ordered, tag)


def trec_lines(ranking: Ranking, tag: str = RUN_TAG) -> list[str]:
    """Lines of one ranking as `run_lines` writes them, in the ranking's order whatever its scores."""
    return _lines(ranking.query_id, [(entry.doc_id, entry.score) for entry in ranking], tag)


def _lines(query_id: str, scored: Sequence[tuple[str, float]], tag: str) -> list[str]:
    """Lines of one query in the order given."""
    for kind, value in [("query_id", query_id), ("tag", tag), *(("doc_id", doc_id) for doc_id, _ in scored)]:
        _check_field(kind, value, "run")
    for doc_id, score in scored:
        if not abs(score) < _OVERFLOW:
            raise InputError(f"the score {score} of the doc_id {doc_id!r} is not a finite float32.")
    lowered = strictly_decreasing([score for _, score in scored])
    return [
        f"{query_id} Q0 {doc_id} {rank} {score:.9g} {tag}"
        for rank, ((doc_id, _), score) in enumerate(zip(scored, lowered, strict=True), start=1)
    ]


def check_ids(query_id: str, doc_ids: Iterable[str]) -> None:
    """Raise `InputError`, without a place, where a run cannot carry these ids: white space, or a doc_id twice."""
    _check_field("query_id", query_id, "run")
    seen: set[str] = set()
    for doc_id in doc_ids:
        _check_field("doc_id", doc_id, "run")
        if doc_id in seen:
            raise InputError(
                f"the doc_id {doc_id!r} is there twice for the query_id {query_id!r}: a run needs it once."
            )
        seen.add(doc_id)


def _check_field(kind: str, value: str, form: str) -> None:
    if value.split() != [value]:
        raise InputError(f"the {kind} {value!r} is empty or holds white space: a TREC {form} cannot carry it.")


def write_run(path: str | Path, run: Mapping[str, Mapping[str, float]], tag: str = RUN_TAG) -> None:
    """Write a run, whole or not at all; gzip where `path` ends in `.gz`. Raises `InputError` as `run_lines` does."""
    with packed_file(path) as stream:
        for query_id, scores in run.items():
            stream.writelines(f"{line}\n".encode() for line in run_lines(query_id, scores, tag))


@dataclass(frozen=True, slots=True)
class Judgement:
    """One line of the judgements."""

    query_id: str
    doc_id: str
    relevance: int


@dataclass(slots=True)
class JudgementParser:
    """Reads lines of judgements: TREC's `query_id 0 doc_id relevance`, or `query_id doc_id relevance`.

    The first line decides which, and may be a header (BEIR has one). Fields of three are split at tabs where the first
    line has any, else at white space.
    """

    fields: int = 0
    tabs: bool = False

    def parse(self, text: str) -> Judgement | None:
        """The judgement of a line, None for a header. Raises `InputError`, without a place, where it is neither."""
        if first := not self.fields:
            self._settle(text)
        fields = [field.strip() for field in text.split("\t")] if self.tabs else text.split()
        if len(fields) != self.fields or not all(fields):
            found = sum(map(bool, fields))
            raise InputError(f"judgements have {self.fields} fields, {_FORMS[self.fields]}; here are {found}.")
        if first and fields[-1].casefold() in ("score", "relevance", "label", "rel"):
            return None
        relevance = _number(fields[-1], "relevance")
        if not relevance.is_integer():
            raise InputError(f"the relevance {fields[-1]!r} is not a whole number.")
        return Judgement(fields[0], fields[-2], int(relevance))

    def _settle(self, text: str) -> None:
        """Take the form of the first line. It is left open where that line has none."""
        tabs = text.strip().count("\t") == 2
        fields = 3 if tabs else len(text.split())
        if fields not in _FORMS:
            raise InputError(f"judgements have four fields, {_FORMS[4]}, or three, {_FORMS[3]}; here are {fields}.")
        self.fields, self.tabs = fields, tabs


_FORMS = {3: "query_id doc_id relevance", 4: "query_id 0 doc_id relevance"}


def read_qrels(source: Source) -> Qrels:
    """Judgements: query_id to doc_id to relevance. Zero and less are judged not relevant.

    Reads TREC's four columns, and three columns with or without a header, as BEIR has them. A relevance such as `3.0`
    is 3. Raises `InputError` on a broken line, a relevance that is not whole, a pair judged twice, or a source without
    judgements.
    """
    name, parser, qrels = source_name(source), JudgementParser(), Qrels()
    for number, text in text_lines(source):
        if not text.strip():
            continue
        with named(f"{name}:{number}"):
            if (line := parser.parse(text)) is None:
                continue
            judged = qrels.setdefault(line.query_id, {})
            if line.doc_id in judged:
                raise InputError(f"the doc_id {line.doc_id!r} is judged before for the query_id {line.query_id!r}.")
            judged[line.doc_id] = line.relevance
    if not qrels:
        raise InputError(f"{name}: there are no judgements in it.")
    return qrels


def judgement_place(source: Source, query_id: str, doc_id: str) -> str:
    """`FILE:LINE` of a judgement; `FILE` where the source cannot be read again or lacks it."""
    name, parser = source_name(source), JudgementParser()
    for number, text in text_lines(source) if is_rereadable(source) else ():
        line = parser.parse(text) if text.strip() else None
        if line is not None and (line.query_id, line.doc_id) == (query_id, doc_id):
            return f"{name}:{number}"
    return name


def write_qrels(path: str | Path, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Write judgements, whole or not at all: BEIR's three columns into `.tsv`, else TREC's four; gzip into `.gz`.

    Raises `InputError` on an id that is empty or holds white space.
    """
    beir = str(path).removesuffix(".gz").endswith(".tsv")
    with packed_file(path) as stream:
        stream.writelines(f"{line}\n".encode() for line in qrels_lines(qrels, beir=beir))


def qrels_lines(qrels: Mapping[str, Mapping[str, int]], *, beir: bool) -> Iterator[str]:
    """Lines of judgements without line ends: BEIR's three columns under a header, or TREC's four.

    Raises `InputError` on an id that is empty or holds white space.
    """
    if beir:
        yield "\t".join(_BEIR_HEADER)
    for query_id, doc_id, relevance in _judged(qrels):
        _check_field("query_id", query_id, "judgement")
        _check_field("doc_id", doc_id, "judgement")
        yield f"{query_id}\t{doc_id}\t{relevance}" if beir else f"{query_id} 0 {doc_id} {relevance}"


def _judged(qrels: Mapping[str, Mapping[str, int]]) -> Iterable[tuple[str, str, int]]:
    for query_id, judged in qrels.items():
        for doc_id, relevance in judged.items():
            yield query_id, doc_id, relevance
