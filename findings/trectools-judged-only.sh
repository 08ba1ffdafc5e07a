#!/usr/bin/env bash
# trectools 0.0.50: removeUnjudged=True is ignored by reciprocal rank and R-precision.
#
# Seen:     with the two best documents unjudged and the third relevant, get_reciprocal_rank(removeUnjudged=True)
#           gives 1/3, as without it, and get_rprec(removeUnjudged=True) 0; get_precision(depth=1,
#           removeUnjudged=True) drops them and gives 1. Whatever trec_eval says: the filtered run is made, and the
#           unfiltered one is used.
# Expected: the docstring: "set to True if you want to remove the unjudged documents before calculating this metric".
#           Both would be 1.
# Touches:  condensed-list evaluation (Sakai 2007), the usual answer to judgements that were pooled from other
#           systems: a new retriever or reranker looks as bad as with full lists, and one measure contradicts the
#           other.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet trectools==0.0.50 numpy==2.4.6 pandas==3.1.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
from pathlib import Path

from trectools import TrecEval, TrecQrel, TrecRun

Path("run.txt").write_text("".join(f"q1 Q0 {doc} {rank} {9 - rank} t\n" for rank, doc in enumerate("xyab", start=1)))
Path("qrels.txt").write_text("q1 0 a 1\nq1 0 b 0\n")
measured = TrecEval(TrecRun("run.txt"), TrecQrel("qrels.txt"))
judged = {"removeUnjudged": True}
seen = {
    "reciprocal rank": measured.get_reciprocal_rank(),
    "reciprocal rank, judged only": measured.get_reciprocal_rank(**judged),
    "reciprocal rank, judged only, trec_eval=False": measured.get_reciprocal_rank(trec_eval=False, **judged),
    "R-precision, judged only": measured.get_rprec(**judged),
    "R-precision, judged only, trec_eval=False": measured.get_rprec(trec_eval=False, **judged),
    "P@1, judged only": measured.get_precision(depth=1, **judged),
}
for name, value in seen.items():
    print(f"{value:.3f}  {name}")
if [round(float(value), 3) for value in seen.values()] != [0.333, 0.333, 0.333, 0.0, 0.0, 1.0]:
    raise SystemExit("changed: expected 1/3 three times, 0 twice, and 1")
PYTHON
