#!/usr/bin/env bash
# trectools 0.0.50: means are divided by the number of queries in the run, judged or not.
#
# Seen:     a run of 4 queries of which 1 is judged (relevant document at rank 2) gets MRR 0.125, P@2 0.125 and nDCG
#           0.158; trec_eval's code (pytrec_eval) gets 0.5, 0.5 and 0.631. A run that leaves out judged queries gets
#           the mean of those that it has. All with trec_eval=True.
# Expected: the docstrings promise "the same as trec_eval" for trec_eval=True. trec_eval averages over queries that
#           are both judged and in the run (or over all judged ones with -c), never over queries without judgements.
# Touches:  TREC Deep Learning 2019 runs hold 200 queries and 43 of them were judged: every mean comes out at 43/200
#           of its value. Rankings of systems survive this, comparisons with published figures do not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet trectools==0.0.50 pytrec_eval-terrier==0.5.11 numpy==2.4.6 pandas==3.1.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
from pathlib import Path

import pytrec_eval
from trectools import TrecEval, TrecQrel, TrecRun

ranked = {"a": 3.0, "b": 2.0, "c": 1.0}
run = {f"q{i}": ranked for i in range(1, 5)}
lines = [f"{query} Q0 {doc} {rank} {ranked[doc]} t\n" for query in run for rank, doc in enumerate(ranked, start=1)]
Path("run.txt").write_text("".join(lines))
Path("qrels.txt").write_text("q1 0 b 1\nq1 0 c 0\n")

measured = TrecEval(TrecRun("run.txt"), TrecQrel("qrels.txt"))
seen = {
    "recip_rank": measured.get_reciprocal_rank(trec_eval=True),
    "P_2": measured.get_precision(depth=2, trec_eval=True),
    "ndcg": measured.get_ndcg(trec_eval=True),
}
reference = pytrec_eval.RelevanceEvaluator({"q1": {"b": 1, "c": 0}}, {"recip_rank", "P.2", "ndcg"}).evaluate(run)
print("queries that trec_eval counts:", list(reference))
quarter = True
for name, value in seen.items():
    mean = sum(values[name] for values in reference.values()) / len(reference)
    print(f"{name}: trectools {value:.3f}, trec_eval {mean:.3f}")
    quarter &= abs(value - mean / 4) < 1e-9
if list(reference) != ["q1"] or not quarter:
    raise SystemExit("changed: expected a quarter of trec_eval's values")
PYTHON
