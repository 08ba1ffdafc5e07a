"""Measures against the evaluators they stand for, paired tests against scipy and by hand, results and tables."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test

from blockrank.data import Qrels, Run
from blockrank.evaluate import (
    DEFAULT_MEASURES,
    CollectionResult,
    Comparison,
    EvaluationResult,
    SystemResult,
    aggregate,
    ceiling,
    compare,
    per_query,
    text_table,
)
from blockrank.evaluate.compare import holm, randomisation_p
from blockrank.evaluate.measures import MeasureError, ideal, parse_measure, too_high, without_failing
from blockrank.types import InputError, MissingExtraError

TREC = {
    "nDCG@10": "ndcg_cut_10",
    "RR": "recip_rank",
    "P@1": "P_1",
    "P@5": "P_5",
    "R@100": "recall_100",
    "AP": "map",
    "Rprec": "Rprec",
    "nDCG": "ndcg",
    "Success@5": "success_5",
}
doc_ids = st.sampled_from([f"d{number}" for number in range(12)] + ["D1", "é", "10"])
query_ids = st.sampled_from(["1", "2", "q3", "q4"])
# Few values, so that they tie; the close ones are equal in float32 and differ in float64.
scores = st.sampled_from([0.0, 1.0, 1.0 + 1e-9, 1.0 + 5e-8, 1.0 + 3e-7, -2.0, 0.25])
runs = st.dictionaries(query_ids, st.dictionaries(doc_ids, scores, max_size=12), max_size=4)
qrels_sets = st.dictionaries(
    query_ids, st.dictionaries(doc_ids, st.integers(-2, 3), min_size=1, max_size=10), min_size=1, max_size=4
)


def trec_order(ranked: dict[str, float]) -> list[str]:
    return [doc_id for _, doc_id in sorted(((np.float32(s), d) for d, s in ranked.items()), reverse=True)]


# Measures


@given(runs, qrels_sets)
def test_measures_are_those_of_trec_eval(run: Run, qrels: Qrels) -> None:
    found = per_query(run, qrels, list(TREC))
    # Negative relevance is not relevant; given as it is, pytrec_eval writes outside its memory.
    judged = {query_id: {doc_id: max(gain, 0) for doc_id, gain in row.items()} for query_id, row in qrels.items()}
    direct = pytrec_eval.RelevanceEvaluator(judged, set(TREC.values()))
    expected = direct.evaluate({query_id: ranked for query_id, ranked in run.items() if query_id in qrels})
    assert list(found) == list(qrels)
    for query_id, values in found.items():
        for name, trec_name in TREC.items():
            assert values[name] == pytest.approx(expected.get(query_id, {}).get(trec_name, 0.0), abs=1e-6)


@given(runs, qrels_sets)
def test_every_measure_sees_the_order_of_trec_eval(run: Run, qrels: Qrels) -> None:
    """The library's own RR@10 and Judged@10 break ties the other way round."""
    found = per_query(run, qrels, ["RR@10", "Judged@10"])
    for query_id, judged in qrels.items():
        top = trec_order(run.get(query_id, {}))[:10]
        places = [place for place, doc_id in enumerate(top, start=1) if judged.get(doc_id, 0) > 0]
        assert found[query_id]["RR@10"] == pytest.approx(1 / places[0] if places else 0.0)
        assert found[query_id]["Judged@10"] == pytest.approx(sum(d in judged for d in top) / max(len(top), 1))


@given(st.permutations([f"d{number}" for number in range(10)]), qrels_sets)
def test_without_ties_the_library_agrees(order: list[str], qrels: Qrels) -> None:
    run = {query_id: {doc_id: -float(place) for place, doc_id in enumerate(order)} for query_id in ("1", "q3")}
    names = [*DEFAULT_MEASURES, "AP", "Bpref", "nDCG(judged_only=True)@5", "P(rel=2)@5", "NumRet", "infAP"]
    judged = {query_id: {doc_id: max(gain, 0) for doc_id, gain in row.items()} for query_id, row in qrels.items()}
    expected: dict[str, float] = {}
    for name in names:  # one at a time: beside nDCG of judged documents NumRet may count those alone
        values = ir_measures.calc_aggregate([ir_measures.parse_measure(name)], judged, run)
        expected |= {str(key): value for key, value in values.items()}
    assert aggregate(run, qrels, names) == pytest.approx(expected, abs=1e-6)


def test_values_worked_by_hand() -> None:
    qrels = {"a": {"x": 3, "y": 1, "z": 0}, "b": {"x": 1}}
    run = {"a": {"z": 9.0, "u": 8.0, "x": 7.0, "y": 6.0}, "c": {"x": 1.0}}
    names = ["nDCG@10", "RR@10", "P@1", "R@3", "Judged@2"]
    values = per_query(run, qrels, names)["a"]
    best = 3 / np.log2(2) + 1 / np.log2(3)
    assert values["nDCG@10"] == pytest.approx((3 / np.log2(4) + 1 / np.log2(5)) / best)
    assert [values[name] for name in names[1:]] == pytest.approx([1 / 3, 0.0, 0.5, 0.5])
    assert aggregate(run, qrels, names)["R@3"] == pytest.approx(0.25)  # query b is not in the run
    assert ceiling(run, qrels, names) == pytest.approx(
        {"nDCG@10": 0.5, "RR@10": 0.5, "P@1": 0.5, "R@3": 0.5, "Judged@2": 0.5}
    )


@given(runs, qrels_sets, st.integers(0, 6))
def test_no_order_of_the_candidates_is_above_the_ceiling(run: Run, qrels: Qrels, depth: int) -> None:
    names = [*DEFAULT_MEASURES, "AP", "nDCG", "nDCG@3"]
    best = per_query(ideal(run, qrels, depth), qrels, names)
    for order in (1, -1):
        shuffled = {}
        for query_id, ranked in run.items():
            first = trec_order(ranked)
            ids = [*sorted(first[:depth])[::order], *first[depth:]]
            shuffled[query_id] = {doc_id: -float(place) for place, doc_id in enumerate(ids)}
        for query_id, values in per_query(shuffled, qrels, names).items():
            assert all(values[name] <= best[query_id][name] + 1e-9 for name in names)
    assert ceiling(run, qrels, names) == pytest.approx(aggregate(ideal(run, qrels, None), qrels, names))


@pytest.mark.parametrize(
    "name",
    ["ndcg@10", "nope", "", "P", "P@0", "nDCG@x", "P@True", "AP(foo=1)", "P@1.5", "P(rel=2", "RBP(p=2)", "P@5 P@6"],
)
def test_a_measure_that_is_none_is_named(name: str) -> None:
    with pytest.raises(
        InputError, match=r"measure .* (unknown; some known ones are nDCG@10, RR@10|not positive)"
    ) as error:
        per_query({"q": {"d": 1.0}}, {"q": {"d": 1}}, ["P@1", name])
    assert repr(name) in str(error.value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("P(rel=0)@5", r"^P\(rel=0\)@5 cannot be computed here: TypeError"),
        ("Accuracy@2", "Accuracy@2 cannot be computed here: it has no value for the query_id 'nothing relevant'"),
        ("Accuracy", "Accuracy cannot be computed here: it has no value"),
        ("P@99999999999999999999", "P@99999999999999999999 cannot be computed here: KeyError"),
        ("nDCG(gains={1:2000000})@5", "has gains that are no whole numbers from 0 to 1000000"),
        ("nDCG(gains={1:0.5})@5", "has gains that are no whole numbers from 0 to 1000000"),
        ("ERR", "'ERR' is not computed by anything installed here; some that are: nDCG@10"),
        ("RR(judged_only=True)@10", "is not computed by anything installed here; some that are"),
        ("INST", "measure 'INST' is unknown"),
    ],
)
def test_a_measure_is_tried_before_anybody_ranks_for_it(name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse_measure(name)


def test_what_would_have_to_be_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = next(item for item in ir_measures.DefaultPipeline.providers if item.NAME == "gdeval")
    monkeypatch.setattr(provider, "_is_available", False)
    with pytest.raises(
        InputError, match=r"'ERR@7' is not computed by anything installed here; gdeval does \(Install perl"
    ):
        parse_measure("ERR@7")


def err(gains: list[int]) -> float:
    """Expected reciprocal rank, its highest grade 4 (Chapelle et al. 2009)."""
    total, left = 0.0, 1.0
    for place, gain in enumerate(gains, start=1):
        satisfied = (2**gain - 1) / 16
        total += left * satisfied / place
        left *= 1 - satisfied
    return total


@pytest.mark.parametrize(
    "ids",
    [
        ("PLAIN-2",), ("q1",), ("1", "x-1"), ("a-1", "b-1"), ("1", "01"), ("a", "q-", "-"), ("2", "1", "10"),
        ("é", "MB-7"), ("1.0", "1"), ("the first query", "the\tsecond"),
    ],
)  # fmt: skip
def test_measures_do_not_depend_on_how_queries_are_called(ids: tuple[str, ...]) -> None:
    exponential = "nDCG(dcg='exp-log2')@3"
    qrels = {query_id: {"d 1": 1 + at % 4, "é": 2, "z": -1} for at, query_id in enumerate(ids)}
    run = {query_id: {"d 1": 3.0, "z": 2.0, "é": 1.0} for query_id in ids}
    values = per_query(run, qrels, ["ERR@3", exponential, "P@1", "RR@10", "Judged@3"])
    for query_id, judged in qrels.items():
        gains = [judged["d 1"], 0, 2]
        best = sum((2**gain - 1) / np.log2(place + 2) for place, gain in enumerate(sorted(gains, reverse=True)))
        found = sum((2**gain - 1) / np.log2(place + 2) for place, gain in enumerate(gains))
        assert values[query_id] == pytest.approx(
            {"ERR@3": err(gains), exponential: found / best, "P@1": 1.0, "RR@10": 1.0, "Judged@3": 1.0}, abs=1e-5
        )


def test_means_of_exponential_gain_are_not_halved() -> None:
    qrels = {"1": {"d": 1}, "x-1": {"d": 1}}
    run = {"1": {"d": 1.0}, "x-1": {"d": 1.0}}
    assert aggregate(run, qrels, ["nDCG(dcg='exp-log2')@3"]) == {"nDCG(dcg='exp-log2')@3": 1.0}  # was 0.5
    run["x-1"] = {"other": 1.0}
    assert aggregate(run, qrels, ["nDCG(dcg='exp-log2')@3"]) == {"nDCG(dcg='exp-log2')@3": 0.5}


@given(runs, qrels_sets)
@settings(max_examples=8, deadline=None)  # each starts perl
def test_err_by_hand(run: Run, qrels: Qrels) -> None:
    found = per_query(run, qrels, ["ERR@5"])
    for query_id, judged in qrels.items():
        gains = [max(judged.get(doc_id, 0), 0) for doc_id in trec_order(run.get(query_id, {}))[:5]]
        assert found[query_id]["ERR@5"] == pytest.approx(err(gains), abs=1e-5)


def test_a_grade_that_a_measure_cannot_take_is_one_sentence() -> None:
    qrels = {"q": {"a": 4, "b": 1}, "r": {"c": 5}}
    with pytest.raises(
        MeasureError, match=r"^the relevance 5 of the doc_id 'c' for the query_id 'r' is above 4"
    ) as error:
        per_query({}, qrels, ["P@1", "ERR@10"])
    assert (error.value.measure, error.value.judgement) == ("ERR@10", ("r", "c"))
    assert too_high(qrels, ["P@1", "nDCG@10"]) is None
    assert too_high({"q": {"a": 4}}, ["ERR@10"]) is None
    assert too_high(qrels, []) is None


def test_a_measure_that_fails_loses_no_other() -> None:
    qrels, run = {"q": {"d": 5}}, {"q": {"d": 1.0}}
    names = ["ERR@3", "P@1", "nDCG(dcg='exp-log2')@3", "RR"]
    found, left, failures = without_failing(names, lambda wanted: aggregate(run, qrels, wanted))
    assert (found, left) == ({"P@1": 1.0, "RR": 1.0}, ("P@1", "RR"))
    assert [error.measure for error in failures] == ["ERR@3", "nDCG(dcg='exp-log2')@3"]
    with pytest.raises(MeasureError, match="above 4"):
        without_failing(["ERR@3"], lambda wanted: aggregate(run, qrels, wanted))


def test_an_evaluator_that_fails_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_measure("ERR@4") is not None  # tried while perl is there
    monkeypatch.setenv("PATH", "/nonexistent")
    found, left, failures = without_failing(
        ["P@1", "ERR@4"], lambda wanted: aggregate({"q": {"d": 1.0}}, {"q": {"d": 1}}, wanted)
    )
    assert (found, left) == ({"P@1": 1.0}, ("P@1",))
    assert str(failures[0]).startswith("ERR@4 cannot be computed here: FileNotFoundError")


def test_a_measure_does_not_depend_on_what_else_is_asked_for() -> None:
    """In one call of the library nDCG gets the value of nDCG with other gains, by the seed of Python's hashes."""
    names = ["nDCG@10", "nDCG(gains={2: 3, 3: 100})@10"]
    code = f"""
from blockrank.evaluate import aggregate
run, qrels = {{"q": {{"a": 3.0, "c": 2.0, "b": 1.0}}}}, {{"q": {{"a": 1, "b": 3, "c": 0}}}}
print(*aggregate(run, qrels, {names}).values())
"""
    for seed in ("0", "1"):  # right and wrong, where they share a call
        told = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert [float(value) for value in told.split()] == pytest.approx([0.6885, 0.5068], abs=1e-4)


def test_a_query_without_judgements_counts_zero() -> None:
    assert per_query({"q": {"d": 1.0}}, {"q": {}, "r": {"d": 1}}, ["P@1"]) == {"q": {"P@1": 0.0}, "r": {"P@1": 0.0}}


def test_a_relevance_that_would_take_all_memory_is_refused() -> None:
    with pytest.raises(InputError, match=r"the relevance 1000000000 of the doc_id 'd' .* above 1000000"):
        aggregate({"q": {"d": 1.0}}, {"q": {"d": 10**9}}, ["P@1"])


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from blockrank.evaluate.measures import _ir_measures

    monkeypatch.setitem(sys.modules, "ir_measures", None)
    _ir_measures.cache_clear()
    with pytest.raises(MissingExtraError, match=r"blockrank\[eval\]"):
        aggregate({}, {"q": {"d": 1}}, ["P@1"])


def test_measuring_imports_no_torch() -> None:
    code = (
        "import sys; from blockrank.evaluate import aggregate, compare, evaluate, text_table;"
        "aggregate({'q': {'d': 1.0}}, {'q': {'d': 1}}, ['nDCG@10', 'RR@10', 'Judged@10']);"
        "print(*{'torch', 'transformers', 'matplotlib', 'pandas'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


# Comparisons


def exact_p(differences: np.ndarray) -> float:
    """Two-sided p over all sign patterns, the smaller tail twice."""
    means = [np.mean(differences * signs) for signs in itertools.product((1, -1), repeat=len(differences))]
    observed, slack = differences.mean(), 1e-9
    tails = [np.mean(np.array(means) >= observed - slack), np.mean(np.array(means) <= observed + slack)]
    return float(min(1.0, 2 * min(tails)))


@given(st.lists(st.sampled_from([-0.5, -0.3, -0.25, 0.0, 0.1, 0.25, 0.7, 1.0]), min_size=1, max_size=8))
def test_few_queries_are_tested_exactly(differences: list[float]) -> None:
    values = np.array(differences)
    assert randomisation_p(values) == pytest.approx(exact_p(values))
    assert randomisation_p(values) == pytest.approx(randomisation_p(-values))


def test_sums_that_differ_by_rounding_alone_tie() -> None:
    assert randomisation_p(np.array([-0.25, 0.0, 0.1, 0.1, 0.1, 0.1, 0.1, -0.25])) == 1.0  # the mean is zero
    assert randomisation_p(np.array([-0.5, *[0.1] * 6])) == 1.0  # no pattern is nearer to zero


def test_many_queries_are_tested_as_scipy_does() -> None:
    source = np.random.default_rng(1)
    a, b = source.random(40), source.random(40)
    direct = permutation_test(
        (a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), permutation_type="samples", vectorized=True,
        n_resamples=10_000, rng=np.random.default_rng(0),
    )  # fmt: skip
    assert randomisation_p(a - b) == direct.pvalue
    assert randomisation_p(a - b) == randomisation_p(a - b)
    assert randomisation_p(a - b, resamples=1) == 1.0  # what was observed and one drawn pattern
    assert randomisation_p(a - b + 1) == pytest.approx(2 / 10_001)  # never zero


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_correction_keeps_the_order_and_only_raises(p: list[float]) -> None:
    corrected = holm(p)
    assert all(raw <= found <= 1 for raw, found in zip(p, corrected, strict=True))
    assert sorted(range(len(p)), key=lambda i: (p[i], i)) == sorted(
        range(len(p)), key=lambda i: (corrected[i], p[i], i)
    )


def test_every_pair_is_compared_with_those_before_it() -> None:
    systems = {
        "first": {"1": 0.0, "2": 0.5, "3": 0.5},
        "x": {"3": 0.5, "2": 1.0, "1": 0.25},
        "y": {"1": 0.0, "2": 0.25, "3": 1.0},
    }
    found = compare(systems, "nDCG@10")
    assert [(item.a, item.b) for item in found] == [("x", "first"), ("y", "first"), ("y", "x")]
    assert [(item.wins, item.losses, item.ties) for item in found] == [(2, 0, 1), (1, 1, 1), (1, 2, 0)]
    assert found[0].difference == pytest.approx(0.25)
    assert found[0].p == pytest.approx(exact_p(np.array([0.25, 0.5, 0.0])))
    assert [item.corrected_p for item in found] == holm([item.p for item in found])
    assert compare({"alone": {"1": 1.0}}, "P@1") == ()
    with pytest.raises(InputError, match="different queries"):
        compare({"a": {"1": 0.0}, "b": {"2": 0.0}}, "P@1")


# Results


def system(name: str, values: dict[str, float], latency: float | None = None) -> SystemResult:
    rows = {query_id: {"nDCG@10": value, "P@1": round(value)} for query_id, value in values.items()}
    means = {measure: sum(row[measure] for row in rows.values()) / len(rows) for measure in ("nDCG@10", "P@1")}
    return SystemResult(name, 100, means, rows, latency, 200, 3, 0)


@pytest.fixture
def result() -> EvaluationResult:
    first = system("bm25", {f"q{i}": 0.1 for i in range(20)})
    better = system("mini", {f"q{i}": 0.3 + i / 100 for i in range(20)}, 12.5)
    compared = {item.name: {q: row["nDCG@10"] for q, row in item.per_query.items()} for item in (first, better)}
    ceilings = {100: {"nDCG@10": 0.9, "P@1": 1.0}}
    one = CollectionResult("one", 20, "bm25", (first, better), ceilings, compare(compared, "nDCG@10"))
    two = replace(one, name="two", systems=(first, replace(better, measures={"nDCG@10": 0.5, "P@1": 0.0})))
    return EvaluationResult(("nDCG@10", "P@1"), (one, two), {"notes": ["one: {2} of 20 have no candidates."]})


def test_results_survive_json(result: EvaluationResult) -> None:
    assert EvaluationResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert isinstance(result.collections[0].comparisons[0], Comparison)


def test_means_over_collections(result: EvaluationResult) -> None:
    assert result.means() == {
        "bm25": pytest.approx({"nDCG@10": 0.1, "P@1": 0.0}),
        "mini": pytest.approx({"nDCG@10": (0.395 + 0.5) / 2, "P@1": 0.0}),
    }
    one, two = result.collections
    partly = replace(result, collections=(one, replace(two, first_stage="given", systems=two.systems[:1])))
    assert list(partly.means()) == ["first stage"]


def test_per_query_table(result: EvaluationResult) -> None:
    rows = list(csv.DictReader(io.StringIO(result.collections[0].per_query_csv())))
    assert len(rows) == 40
    assert rows[1] == {"query_id": "q0", "system": "mini", "nDCG@10": "0.3", "P@1": "0"}


def test_tables_show_what_matters(result: EvaluationResult) -> None:
    lines = text_table(result).splitlines()
    assert lines[0] == "one: 20 queries, first stage bm25"
    assert lines[1].split() == ["system", "nDCG@10", "P@1", "ms/query", "cut", "documents"]
    assert lines[3].split() == ["mini", "0.3950*", "0.0000", "12.5", "3", "of", "200"]
    assert lines[4].split() == ["ceiling@100", "0.9000", "1.0000"]
    assert lines[6].startswith(
        "mini against bm25 on nDCG@10: +0.2950 (corrected p 0.0002); 20 queries better, 0 worse, 0 equal."
    )
    columns = {line.index(value) for line, value in zip(lines[2:5], ("0.1000", "0.3950", "0.9000"), strict=True)}
    assert len(columns) == 1
    assert lines[-1] == "note: one: {2} of 20 have no candidates."
    assert "mean of 2 collections" in lines
    marked = text_table(result, markdown=True)
    assert "| mini | 0.3950\\* | 0.0000 | 12.5 | 3 of 200 |" in marked
