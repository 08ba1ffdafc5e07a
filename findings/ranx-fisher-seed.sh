#!/usr/bin/env bash
# ranx 0.3.21: compare(stat_test="fisher", random_seed=42) gives another p-value at each call.
#
# Seen:     six calls in one process with equal arguments give several p-values (0.13 to 0.19 at the default of 1,000
#           permutations), with one thread as with two. The seed is set before, and outside of, the parallel loop that
#           draws the permutations.
# Expected: random_seed is an argument of compare(), 42 by default; equal seeds are there to give equal p-values.
# Touches:  significance stars in tables. At the edge of a threshold a system is significant in one run of the script
#           and not in the next, and nobody can make the published p-value again.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet ranx==0.3.21 numpy==2.4.6 numba==0.68.1 pandas==3.1.1
NUMBA_NUM_THREADS=2 "$work/venv/bin/python" -W ignore - <<'PYTHON'
from ranx import Qrels, Run, compare

qrels = Qrels({f"q{i:02}": {"a": 1} for i in range(60)})


def ranked(name: str, places: int) -> Run:
    """The relevant document "a" takes each of the first places in turn."""
    orders = {f"q{i:02}": [*"bcdefghij"[: i % places], "a"] for i in range(60)}
    return Run({q: {doc: 10.0 - rank for rank, doc in enumerate(order)} for q, order in orders.items()}, name=name)


def p_value() -> float:
    report = compare(qrels, [ranked("A", 5), ranked("B", 7)], ["mrr"], stat_test="fisher", random_seed=42)
    return float(report.comparisons[frozenset(["A", "B"])]["mrr"]["p_value"])


values = [p_value() for _ in range(6)]
print("p-values of six equal calls:", values)
if len(set(values)) == 1:
    raise SystemExit("changed: expected p-values that differ")
PYTHON
