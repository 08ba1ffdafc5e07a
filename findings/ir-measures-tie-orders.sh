#!/usr/bin/env bash
# ir_measures 0.4.3: within one call, RR@10 breaks ties the other way round than RR, P@1 and nDCG@10.
#
# Seen:     two documents with one score, d1 relevant: RR@10 is 1.0 (d1 first), and RR 0.5, P@1 0.0 and Success@1 0.0
#           (d2 first). With d2 relevant all are reversed. RR@10 goes to the MS MARCO script (ids ascending), the
#           others to trec_eval (ids descending).
# Expected: a run is one ranking. A cutoff can only lower a reciprocal rank: RR@10 <= RR, and RR@10 is 1 exactly where
#           P@1 is 1. The documentation names the provider of each measure, not that the providers see different
#           rankings.
# Touches:  rerankers whose scores tie: graded or generated relevance (0 to 3), quantised models, bfloat16 logits.
#           MRR@10 and nDCG@10, the two columns of most tables, then describe different rankings.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet ir_measures==0.4.3 pytrec_eval-terrier==0.5.11 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import ir_measures
from ir_measures import RR, P, Qrel, ScoredDoc, Success

measures = [RR @ 10, RR, P @ 1, Success @ 1]
run = [ScoredDoc("q", "d1", 1.0), ScoredDoc("q", "d2", 1.0)]
seen = {}
for relevant, other in (("d1", "d2"), ("d2", "d1")):
    values = ir_measures.calc_aggregate(measures, [Qrel("q", relevant, 1), Qrel("q", other, 0)], run)
    seen[relevant] = [values[measure] for measure in measures]
    print(f"relevant {relevant}:", *(f"{measure} {values[measure]:.1f}" for measure in measures))
if seen != {"d1": [1.0, 0.5, 0.0, 0.0], "d2": [0.5, 1.0, 1.0, 1.0]}:
    raise SystemExit("changed: expected RR@10 to see the order opposite to the others")
PYTHON
