"""Measures of a run against judgements, by ir-measures; names as the field writes them (`nDCG@10`, `RR@10`, `R@100`).

Documents of a query are ordered as trec_eval orders them, for every measure: by score as float32, descending, then by
doc_id, descending. Every query of the judgements counts: one that the run lacks has the value of an empty ranking.
Relevance below zero means judged and not relevant, as zero does.

The library hands each measure to an evaluator, and each of them reads ids in a way of its own: gdeval, which computes
ERR and nDCG with exponential gains, takes numbers alone and drops what stands before a hyphen. So evaluators see ids
that are numbers. A measure is tried on a few made-up queries before anybody ranks for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from blockrank.data import Qrels, Run
from blockrank.data.trec import evaluation_order
from blockrank.types import InputError, MissingExtraError

DEFAULT_MEASURES = ("nDCG@10", "RR@10", "P@1", "R@100", "Judged@10")
_HIGHEST = 1_000_000  # pytrec_eval keeps a counter for every relevance up to the highest
_HIGHEST_BY_EVALUATOR = {"gdeval": 4}  # what it takes for a perfect document, and refuses anything above
_TRIED_QRELS: Qrels = {
    "relevant first": {"x": 1, "y": 0},
    "relevant last": {"x": 2},
    "nothing relevant": {"x": 0},
    "not in the run": {"x": 1},
}
_TRIED_RUN: Run = {"relevant first": {"x": 2, "y": 1}, "relevant last": {"y": 2, "x": 1}, "nothing relevant": {"x": 1}}
_Found = TypeVar("_Found")


class MeasureError(InputError):
    """One measure cannot be computed. measure: its name. judgement: the query_id and doc_id at fault, if it is one."""

    def __init__(self, measure: str, sentence: str, judgement: tuple[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.measure, self.judgement = measure, judgement


_KNOWN = (*DEFAULT_MEASURES, "AP", "Rprec", "Bpref", "Success@5", "P(rel=2)@10")


def per_query(run: Run, qrels: Qrels, measures: Sequence[str]) -> dict[str, dict[str, float]]:
    """query_id -> measure -> value, for every query of the judgements, in their order.

    Raises `InputError` where a measure is unknown, `MeasureError` where one cannot be computed for these judgements,
    `MissingExtraError` without ir-measures.
    """
    parsed = {name: parse_measure(name) for name in measures}
    if (error := too_high(qrels, measures)) is not None:
        raise error
    return _computed(run, qrels, parsed)


def without_failing(
    measures: Sequence[str], compute: Callable[[tuple[str, ...]], _Found]
) -> tuple[_Found, tuple[str, ...], list[MeasureError]]:
    """What `compute` gives for the measures that it does not fail for; their names, and how each other one failed.

    Raises `MeasureError` where none is left.
    """
    left = tuple(measures)
    failures: list[MeasureError] = []
    while True:
        try:
            return compute(left), left, failures
        except MeasureError as error:
            left = tuple(name for name in left if name != error.measure)
            if not left:
                raise
            failures.append(error)


def too_high(qrels: Qrels, measures: Sequence[str]) -> MeasureError | None:
    """What there is to say of the first relevance that one of the measures cannot take; None where there is none.

    Raises as `parse_measure` does.
    """
    limits = {name: _HIGHEST_BY_EVALUATOR.get(_evaluator(parse_measure(name)), _HIGHEST) for name in measures}
    name = min(limits, key=limits.__getitem__, default="")
    for query_id, judged in qrels.items():
        for doc_id, relevance in judged.items() if limits else ():
            if relevance > limits[name]:
                sentence = (
                    f"the relevance {relevance} of the doc_id {doc_id!r} for the query_id {query_id!r} is above "
                    f"{limits[name]}, the highest that {name} can be computed with."
                )
                return MeasureError(name, sentence, (query_id, doc_id))
    return None


def aggregate(run: Run, qrels: Qrels, measures: Sequence[str]) -> dict[str, float]:
    """Measure -> mean over the queries of the judgements (the sum, for measures that count). Raises as `per_query`."""
    return summary(per_query(run, qrels, measures), measures)


def summary(values: dict[str, dict[str, float]], measures: Sequence[str]) -> dict[str, float]:
    """Measure -> mean (or sum) of what `per_query` found."""
    result = {}
    for name in measures:
        total = parse_measure(name).aggregator()
        for row in values.values():
            total.add(row[name])
        result[name] = float(total.result()) if values else 0.0
    return result


def ceiling(run: Run, qrels: Qrels, measures: Sequence[str]) -> dict[str, float]:
    """What the best possible order of the same candidates would reach. Raises as `per_query`."""
    return aggregate(ideal(run, qrels), qrels, measures)


def ideal(run: Run, qrels: Qrels, depth: int | None = None) -> Run:
    """The run with the first `depth` candidates of each query (None: all) in the best possible order.

    That is: by relevance, descending, then what is not judged. Later candidates keep their order below.
    """
    best: Run = {}
    for query_id, scores in run.items():
        judged = qrels.get(query_id, {})
        ranked = list(evaluation_order(scores))
        head = sorted(ranked[:depth], key=lambda doc_id: -judged.get(doc_id, -math.inf))
        best[query_id] = _descending([*head, *ranked[len(head) :]])
    return best


def parse_measure(name: str) -> Any:
    """The measure of ir-measures called `name`.

    Raises `InputError` where there is none, or nothing installed computes it for every query, which is tried;
    `MissingExtraError` without ir-measures.
    """
    _ir_measures()
    return _tried(name)


@cache
def _tried(name: str) -> Any:
    measure = _parsed(name)
    try:
        _computed(_TRIED_RUN, _TRIED_QRELS, {name: measure})
    except MeasureError as error:
        raise InputError(str(error)) from None
    return measure


def _parsed(name: str) -> Any:
    """A measure by its name, and within what evaluators survive."""
    library = _ir_measures()
    try:
        measure = library.parse_measure(name)
        supported = library.DefaultPipeline.supports(measure)
    except (NameError, ValueError, KeyError, AssertionError, TypeError, SyntaxError):
        raise InputError(f"measure {name!r} is unknown; some known ones are {', '.join(_KNOWN)}.") from None
    cutoff = measure.params.get("cutoff", 1)
    if isinstance(cutoff, bool) or cutoff < 1:  # the library would end the process
        raise InputError(f"measure {name!r} has a cutoff that is not positive.")
    gains = measure.params.get("gains", {})
    if not all(type(gain) is int and 0 <= gain <= _HIGHEST for gain in gains.values()):  # as `_numbered` on relevance
        raise InputError(f"measure {name!r} has gains that are no whole numbers from 0 to {_HIGHEST}.")
    if not supported:
        raise InputError(f"measure {name!r} is not computed by anything installed here{_needed(measure)}.")
    return measure


def _needed(measure: Any) -> str:
    """What would have to be installed for a measure, to follow a clause; else which measures there are."""
    for provider in _ir_measures().DefaultPipeline.providers:
        if not provider.is_available() and provider.supports(measure):
            advice = " ".join(str(provider.install_instructions() or "").split()).rstrip(".")
            return f"; {provider.NAME} does ({advice})" if advice else f"; {provider.NAME} does"
    return f"; some that are: {', '.join(_KNOWN)}"


def _evaluator(measure: Any) -> str:
    """The name of the evaluator that computes a measure here."""
    providers = _ir_measures().DefaultPipeline.providers
    return next((str(item.NAME) for item in providers if item.is_available() and item.supports(measure)), "")


def cutoff_of(name: str) -> int:
    """How many documents a measure looks at, 0 where it looks at all of them."""
    return int(parse_measure(name).params.get("cutoff", 0))


@cache
def _ir_measures() -> Any:
    try:
        import ir_measures
    except ImportError:
        raise MissingExtraError("evaluation needs ir-measures: pip install 'blockrank[eval]'.") from None
    return ir_measures


def _computed(run: Run, qrels: Qrels, measures: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Values by query and name. Raises `MeasureError` for the first measure that fails or leaves a query out."""
    numbers = {query_id: str(number) for number, query_id in enumerate(qrels, start=1)}
    judged, ranked = _numbered(run, qrels, numbers)
    found = _calculated(measures, judged, ranked)
    values: dict[str, dict[str, float]] = {query_id: {} for query_id in qrels}
    for name, measure in measures.items():
        for query_id, number in numbers.items():
            value = found.get((number, measure), math.nan if qrels[query_id] else measure.DEFAULT)
            if not math.isfinite(value):
                raise MeasureError(
                    name, f"{name} cannot be computed here: it has no value for the query_id {query_id!r}."
                )
            values[query_id][name] = float(value)
    return values


def _numbered(run: Run, qrels: Qrels, numbers: dict[str, str]) -> tuple[Qrels, Run]:
    """Judgements, and the judged queries of the run, with numbers for ids.

    Negative relevance becomes zero: pytrec_eval would write outside its memory. Scores become places in trec_eval's
    order: evaluators break ties in different ways.
    """
    judged: Qrels = {}
    ranked: Run = {}
    for query_id, number in numbers.items():
        names: dict[str, str] = {}
        relevances = qrels[query_id].items()
        judged[number] = {names.setdefault(doc_id, str(len(names))): max(gain, 0) for doc_id, gain in relevances}
        if scores := run.get(query_id):
            ordered = evaluation_order(scores)
            ranked[number] = _descending([names.setdefault(doc_id, str(len(names))) for doc_id in ordered])
    return judged, ranked


def _descending(doc_ids: Sequence[str]) -> dict[str, float]:
    return {doc_id: float(len(doc_ids) - place) for place, doc_id in enumerate(doc_ids)}


def _calculated(measures: dict[str, Any], qrels: Qrels, run: Run) -> dict[tuple[str, Any], float]:
    """(query, measure) -> value, with a call for each measure.

    Of measures that share a call one may get the value of another, or none: in ir-measures 0.4.3 nDCG beside nDCG with
    gains of its own, and measures of diversity in two settings.

    What fails in a foreign evaluator becomes a `MeasureError` that names its measure.
    """
    found: dict[tuple[str, Any], float] = {}
    for name, measure in measures.items():
        try:
            found |= {(item.query_id, measure): item.value for item in _ir_measures().iter_calc([measure], qrels, run)}
        except (Exception, SystemExit) as error:  # evaluators run other programs and raise whatever they raise
            raise MeasureError(name, f"{name} cannot be computed here: {type(error).__name__}: {error}") from error
    return found
