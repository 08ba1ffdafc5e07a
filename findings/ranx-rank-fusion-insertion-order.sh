#!/usr/bin/env bash
# ranx 0.3.21: rank fusion of a Run filled with add_score() takes the order of the calls for the ranking.
#
# Seen:     two runs hold the same scores (high 0.9, mid 0.5, low 0.1). One came from a dictionary, the other was
#           filled with add_score() worst first. Reciprocal rank fusion puts the worst document level with the best
#           one, and both above the middle one. evaluate() sorts such a run first (MRR 1.0); fuse() does not.
# Expected: a Run is a set of scores, and add_score() is its documented way in, "a (doc_id, score) pair". Reciprocal
#           rank fusion (Cormack, Clarke, Buettcher 2009) is defined on ranks by score: high, mid, low.
# Touches:  hybrid search experiments that collect scores one document at a time. Score fusion of the same runs is
#           right, so it looks as if rank fusion were the weaker method.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet ranx==0.3.21 numpy==2.4.6 numba==0.68.1 pandas==3.1.1
"$work/venv/bin/python" -W ignore - <<'PYTHON'
from ranx import Qrels, Run, evaluate, fuse

scores = {"high": 0.9, "mid": 0.5, "low": 0.1}


def added() -> Run:
    run = Run(name="added")
    for doc_id in ("low", "mid", "high"):
        run.add_score("q", doc_id, scores[doc_id])
    return run


whole = Run({"q": scores}, name="whole")
fused = fuse([added(), whole], method="rrf")["q"]
right = fuse([Run({"q": scores}), whole], method="rrf")["q"]
mrr = float(evaluate(Qrels({"q": {"high": 1}}), added(), "mrr"))
print("added + whole:", fused)
print("whole + whole:", right)
print("MRR of the added run alone:", mrr)
if not (fused["low"] == fused["high"] > fused["mid"] and list(right) == ["high", "mid", "low"] and mrr == 1.0):
    raise SystemExit("changed: expected low level with high, above mid")
PYTHON
