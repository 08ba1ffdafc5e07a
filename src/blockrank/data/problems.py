"""Every problem of a run, of judgements, of requests or of documents: what a reader would stop at, and what misleads.

An error makes a reader refuse the file or an evaluator see another order than the file shows. A warning does neither.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from blockrank.configfile import json_object
from blockrank.data.files import Source, byte_lines, decoded, named, source_name
from blockrank.data.jsonl import as_request, positives_of
from blockrank.data.trec import JudgementParser, RunLine
from blockrank.text.characters import is_readable
from blockrank.types import InputError
from blockrank.types.documents import check_readable, check_unique_ids, checked_document

Kind = Literal["run", "qrels", "requests", "documents"]
Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `line` counts from 1; 0 is the file as a whole."""

    line: int
    severity: Severity
    sentence: str


@dataclass(slots=True)
class Report:
    """What a file was found to be. `depths`: documents by query_id, in the order of the file."""

    kind: Kind
    problems: list[Problem] = field(default_factory=list)
    documents: int = 0
    depths: dict[str, int] = field(default_factory=dict)

    def add(self, line: int, severity: Severity, sentence: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(line, severity, sentence))

    def count(self, query_id: str, documents: int = 1) -> None:
        """Count documents of a query."""
        self.documents += documents
        self.depths[query_id] = self.depths.get(query_id, 0) + documents


def validate_run(source: Source) -> list[Problem]:
    """Every problem of a TREC run, by line. Raises `InputError` where the source cannot be read at all."""
    return validate(source, "run").problems


def validate(source: Source, kind: Kind | None = None) -> Report:
    """Every problem of a file, by line; its kind is taken from its first line where it is not given.

    Holds no text, but the ids and scores of all lines. Raises `InputError` where the source cannot be read at all, or
    its kind cannot be told.
    """
    lines = byte_lines(source)
    if kind is None:
        head = list(itertools.islice(lines, _PEEKED))
        with named(source_name(source)):
            kind = _guess(head)
        lines = itertools.chain(head, lines)
    check = _CHECKS[kind](Report(kind))
    for number, line in lines:
        if not line.strip():
            continue
        try:
            check.line(number, decoded(number, line))
        except InputError as error:
            check.report.add(number, "error", str(error))
    check.end()
    if not check.report.documents and not check.report.problems:
        check.report.add(0, "error", "there is nothing in it.")
    check.report.problems.sort(key=lambda problem: problem.line)
    return check.report


_PEEKED = 100


def _guess(head: Sequence[tuple[int, bytes]]) -> Kind:
    """What kind of file begins like this. Raises `InputError` where that cannot be told, and says of JSON what is
    wrong with it."""
    reason = ""
    for number, line in head:
        try:
            text = decoded(number, line)
            if text.lstrip().startswith("{"):
                value = json_object(text)
                return "requests" if "query" in value or "documents" in value else "documents"
        except InputError as error:
            reason = reason or f" (line {number}: {str(error).removesuffix('.')})"
            continue
        if kind := _KINDS_BY_FIELDS.get(len(text.split())):
            return kind
    raise InputError(f"its lines do not tell what it is{reason}; give its kind.")


_KINDS_BY_FIELDS: dict[int, Kind] = {6: "run", 4: "qrels", 3: "qrels"}


@dataclass(slots=True)
class LineCheck(ABC):
    """Looks at the lines of one file, one after the other."""

    report: Report

    @abstractmethod
    def line(self, number: int, text: str) -> None:
        """Look at a line that is not empty. Raises `InputError`, without a place, where it cannot be read."""

    def end(self) -> None:  # noqa: B027  # most checks need no look back
        """Look at the whole, after the last line."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A document of a run: its line, its float32 score, and its rank, None where that is no number."""

    line: int
    score: float
    rank: int | None


@dataclass(slots=True)
class RunCheck(LineCheck):
    """A TREC run."""

    entries: dict[str, list[Entry]] = field(default_factory=dict)
    lines: dict[tuple[str, str], int] = field(default_factory=dict)
    tags: dict[str, int] = field(default_factory=dict)
    current: str = ""

    def line(self, number: int, text: str) -> None:
        """Look at fields, score, rank, tag, and whether document and query were there before."""
        line = RunLine.parse(text)
        query_id, doc_id = line.query_id, line.doc_id
        rank = int(line.rank) if line.rank.isascii() and line.rank.isdigit() and len(line.rank) < _DIGITS else None
        if rank is None:
            self.report.add(number, "error", f"the rank {line.rank!r} is not a whole number.")
        self._follow(number, line)
        first = self.lines.setdefault((query_id, doc_id), number)
        # The rank of a document listed twice counts, its second score is nobody's.
        score = float(np.float32(line.score)) if first == number else math.nan
        self.entries.setdefault(query_id, []).append(Entry(number, score, rank))
        if first != number:
            raise InputError(f"the doc_id {doc_id!r} of the query_id {query_id!r} is that of line {first}.")
        self.report.count(query_id)

    def _follow(self, number: int, line: RunLine) -> None:
        """Compare with the lines before: one tag, and each query in one piece."""
        if line.tag not in self.tags:
            if self.tags:
                tag, first = next(iter(self.tags.items()))
                self.report.add(number, "warning", f"the tag {line.tag!r} is not the {tag!r} of line {first}.")
            self.tags[line.tag] = number
        if line.query_id != self.current and line.query_id in self.entries:
            left = self.entries[line.query_id][-1].line
            self.report.add(
                number, "warning", f"the query_id {line.query_id!r} was left at line {left} and comes back."
            )
        self.current = line.query_id

    def end(self) -> None:
        """Compare each query's ranks and scores."""
        for query_id, entries in self.entries.items():
            self._compare_scores(query_id, [entry for entry in entries if not math.isnan(entry.score)])
            self._compare_ranks(query_id, entries)

    def _compare_scores(self, query_id: str, entries: list[Entry]) -> None:
        """Every document of a query needs a score of its own, and a rank in the order of the scores."""
        better = (0, 0)  # rank and line of the document with the next higher score
        ordered = sorted(entries, key=lambda entry: -entry.score)
        for _, tied in itertools.groupby(ordered, key=lambda entry: entry.score):
            group = sorted(tied, key=lambda entry: entry.line)
            if len(group) > 1:
                sentence = (
                    f"{len(group)} documents of the query_id {query_id!r} tie at this score in float32 "
                    f"(the next is line {group[1].line}): evaluators order them by doc_id."
                )
                self.report.add(group[0].line, "error", sentence)
            ranks = sorted((entry.rank, entry.line) for entry in group if entry.rank is not None)
            if ranks and ranks[0][0] < better[0]:
                sentence = f"rank {ranks[0][0]} has a lower score than rank {better[0]} of line {better[1]}."
                self.report.add(ranks[0][1], "error", sentence)
            better = ranks[-1] if ranks else better

    def _compare_ranks(self, query_id: str, entries: list[Entry]) -> None:
        """Ranks must run from 1 without a gap; the first gap of a query is reported."""
        ranks = sorted((entry.rank, entry.line) for entry in entries if entry.rank is not None)
        if ranks and ranks[0][0] != 1:
            sentence = f"the ranks of the query_id {query_id!r} start at {ranks[0][0]}, not at 1."
            self.report.add(ranks[0][1], "warning", sentence)
        for (before, _), (rank, line) in itertools.pairwise(ranks):
            if rank != before + 1:
                sentence = f"rank {rank} comes after rank {before} for the query_id {query_id!r}."
                self.report.add(line, "warning", sentence)
                break


_DIGITS = 10


@dataclass(slots=True)
class QrelsCheck(LineCheck):
    """Judgements."""

    parser: JudgementParser = field(default_factory=JudgementParser)
    lines: dict[tuple[str, str], int] = field(default_factory=dict)

    def line(self, number: int, text: str) -> None:
        """Look at fields, relevance, and whether the pair was judged before."""
        if (judged := self.parser.parse(text)) is None:
            return
        if (first := self.lines.setdefault((judged.query_id, judged.doc_id), number)) != number:
            raise InputError(
                f"the doc_id {judged.doc_id!r} of the query_id {judged.query_id!r} is that of line {first}."
            )
        self.report.count(judged.query_id)


@dataclass(slots=True)
class RequestsCheck(LineCheck):
    """Requests in JSON lines, with the relevant candidates where they are named."""

    lines: dict[str, int] = field(default_factory=dict)
    index: int = -1

    def line(self, number: int, text: str) -> None:
        """Look at query, documents, relevant candidates, and whether the query_id was there before."""
        self.index += 1
        value = json_object(text)
        request = as_request(value, str(self.index))
        if (first := self.lines.setdefault(request.query_id, number)) != number:
            raise InputError(f"the query_id {request.query_id!r} is that of line {first}.")
        self.report.count(request.query_id, len(request.candidates))
        if "positives" in value or "answer_ids" in value:  # for training, which takes neither
            check_readable(request.candidates)
            check_unique_ids(request.candidates)
        for sentence in request.warnings:
            self.report.add(number, "warning", sentence)
        positives_of(value, request)


@dataclass(slots=True)
class DocumentsCheck(LineCheck):
    """Documents in JSON lines."""

    lines: dict[str | None, int] = field(default_factory=dict)
    index: int = -1

    def line(self, number: int, text: str) -> None:
        """Look at text and title, and whether the doc_id was there before."""
        self.index += 1
        document = checked_document(json_object(text), self.index)
        self.report.documents += 1
        if not is_readable(document.content):
            self.report.add(number, "warning", f"documents[{self.index}] has no readable character: it is ranked last.")
        if document.doc_id and (first := self.lines.setdefault(document.doc_id, number)) != number:
            self.report.add(number, "warning", f"the doc_id {document.doc_id!r} is that of line {first}.")


_CHECKS: dict[Kind, type[LineCheck]] = {
    "run": RunCheck,
    "qrels": QrelsCheck,
    "requests": RequestsCheck,
    "documents": DocumentsCheck,
}
