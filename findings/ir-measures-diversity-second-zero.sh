#!/usr/bin/env bash
# ir_measures 0.4.3 with pyndeval 0.0.8: of two settings of a diversity measure in one call, one is always 0.
#
# Seen:     alone, alpha_nDCG@10 is 0.815 and alpha_nDCG(rel=2)@10 is 0.631. Asked for together, one of the two keeps
#           its value and the other is 0.0. So are StRecall@10 (alone 1.0) and NRBP(alpha=0.3) (alone 0.406) in one
#           call. Each setting is a pass of its own over the run, and the run is an iterator that the first pass uses
#           up.
# Expected: the values that each has alone. 0.0 is also what a run without any relevant document gets.
# Touches:  diversity tables with several measures, and sweeps over alpha or the relevance level: a column of zeros.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet ir_measures==0.4.3 pyndeval==0.0.8 \
    pytrec_eval-terrier==0.5.11 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import ir_measures
from ir_measures import NRBP, Qrel, ScoredDoc, StRecall, alpha_nDCG

qrels = [Qrel("q1", "a", 1, "1"), Qrel("q1", "b", 2, "2"), Qrel("q2", "a", 2, "1"), Qrel("q2", "a", 1, "2")]
run = [ScoredDoc("q1", "a", 3.0), ScoredDoc("q1", "b", 2.0), ScoredDoc("q2", "b", 3.0), ScoredDoc("q2", "a", 2.0)]
right = True
for pair in ([alpha_nDCG @ 10, alpha_nDCG(rel=2) @ 10], [StRecall @ 10, NRBP(alpha=0.3)]):
    alone = [ir_measures.calc_aggregate([measure], qrels, run)[measure] for measure in pair]
    values = ir_measures.calc_aggregate(pair, qrels, run)
    together = [values[measure] for measure in pair]
    print(*(f"{measure}: alone {a:.3f}, together {t:.3f};" for measure, a, t in zip(pair, alone, together)))
    lost = [a != t for a, t in zip(alone, together)]
    right &= min(alone) > 0 and sum(lost) == 1 and min(together) == 0
if not right:
    raise SystemExit("changed: expected one value of each pair lost (0), and none alone")
PYTHON
