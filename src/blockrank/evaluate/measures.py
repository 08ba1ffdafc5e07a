"""Measures of a run against judgements, by ir-measures; names as the field writes them (`nDCG@10`, `RR@10`, `R@100`).

Documents of a query are ordered as trec_eval orders them, for every measure: by score as float32, descending, then by
doc_id, descending. Every query of the judgements counts: one that the run lacks has the value of an empty ranking.
Relevance below zero means judged and not relevant, as zero does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from blockrank.data import Qrels, Run
from blockrank.data.trec import evaluation_order
from blockrank.types import InputError, MissingExtraError

DEFAULT_MEASURES = ("nDCG@10", "RR@10", "P@1", "R@100", "Judged@10")
_HIGHEST = 1_000_000  # pytrec_eval keeps a counter for every relevance up to the highest
_KNOWN = (*DEFAULT_MEASURES, "AP", "Rprec", "Bpref", "Success@5", "P(rel=2)@10")


def per_query(run: Run, qrels: Qrels, measures: Sequence[str]) -> dict[str, dict[str, float]]:
    """query_id -> measure -> value, for every query of the judgements, in their order.

    Raises `InputError` where a measure is unknown or cannot be computed here, `MissingExtraError` without ir-measures.
    """
    parsed = {name: parse_measure(name) for name in measures}
    ranked = {query_id: _ordered(run[query_id]) for query_id in qrels if run.get(query_id)}
    found: dict[str, dict[Any, float]] = {query_id: {} for query_id in qrels}
    for query_id, measure, value in _calculated(list(set(parsed.values())), _safe(qrels), ranked):
        found[query_id][measure] = float(value)
    return {query_id: {name: values[measure] for name, measure in parsed.items()} for query_id, values in found.items()}


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

    Raises `InputError` where there is none, or nothing installed computes it; `MissingExtraError` without ir-measures.
    """
    library = _ir_measures()
    try:
        measure = library.parse_measure(name)
        supported = library.DefaultPipeline.supports(measure)
    except (NameError, ValueError, KeyError, AssertionError, TypeError):
        raise InputError(f"measure {name!r} is unknown; some known ones are {', '.join(_KNOWN)}.") from None
    cutoff = measure.params.get("cutoff", 1)
    if isinstance(cutoff, bool) or cutoff < 1:  # the library would end the process
        raise InputError(f"measure {name!r} has a cutoff that is not positive.")
    if not supported:
        raise InputError(
            f"measure {name!r} is not computed by anything installed here; some that are: {', '.join(_KNOWN)}."
        )
    return measure


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


def _safe(qrels: Qrels) -> Qrels:
    """Judgements without negative relevance, for which pytrec_eval writes outside its memory, and none too large."""
    safe: Qrels = {}
    for query_id, judged in qrels.items():
        if (highest := max(judged.values(), default=0)) > _HIGHEST:
            raise InputError(f"query_id {query_id!r}: the relevance {highest} is above {_HIGHEST}.")
        safe[query_id] = {doc_id: max(relevance, 0) for doc_id, relevance in judged.items()}
    return safe


def _ordered(scores: dict[str, float]) -> dict[str, float]:
    """Scores without ties in trec_eval's order: the library's providers break ties in different ways."""
    return _descending(list(evaluation_order(scores)))


def _descending(doc_ids: Sequence[str]) -> dict[str, float]:
    return {doc_id: float(len(doc_ids) - place) for place, doc_id in enumerate(doc_ids)}


def _calculated(measures: list[Any], qrels: Qrels, run: Run) -> Iterator[Any]:
    """(query_id, measure, value) of every judged query; what fails in a foreign evaluator becomes one sentence."""
    try:
        yield from _ir_measures().iter_calc(measures, qrels, run)
    except Exception as error:  # providers run other programs and raise whatever they raise
        names = ", ".join(map(str, measures))
        raise InputError(f"{names} cannot be computed here: {type(error).__name__}: {error}") from error
