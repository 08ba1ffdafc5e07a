#!/usr/bin/env bash
# ranx 0.3.21: evaluate() pairs plain dictionaries by their place, not by their query id.
#
# Seen:     with qrels written q1, q2 and a run written q2, q1, the judgements of q1 are applied to the answers of q2.
#           A perfect run gets MRR 0.0. The same dictionaries wrapped in Qrels and Run get 1.0, and one wrapped with
#           one plain is wrong as well. No warning: the only check compares the two sets of ids, and those are equal.
# Expected: the type hints of evaluate() list plain dictionaries as an input beside Qrels and Run, and its message
#           about query ids that do not match says that the ids are what joins them. So the order must not matter.
# Touches:  everyone whose run comes from a server, threads or a sharded job, where queries finish in any order.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet ranx==0.3.21 numpy==2.4.6 numba==0.68.1 pandas==3.1.1
"$work/venv/bin/python" -W ignore - <<'PYTHON'
from ranx import Qrels, Run, evaluate

qrels = {"q1": {"a": 1}, "q2": {"b": 1}}
same_order = {"q1": {"a": 2.0, "x": 1.0}, "q2": {"b": 2.0, "x": 1.0}}
other_order = {"q2": same_order["q2"], "q1": same_order["q1"]}
seen = {
    "plain, queries in the same order": float(evaluate(qrels, same_order, "mrr")),
    "plain, queries in another order": float(evaluate(qrels, other_order, "mrr")),
    "Qrels with a plain run": float(evaluate(Qrels(qrels), other_order, "mrr")),
    "Qrels and Run": float(evaluate(Qrels(qrels), Run(other_order), "mrr")),
}
for name, value in seen.items():
    print(f"MRR {value:.1f}  {name}")
if list(seen.values()) != [1.0, 0.0, 0.0, 1.0]:
    raise SystemExit("changed: expected 1.0, 0.0, 0.0, 1.0")
PYTHON
