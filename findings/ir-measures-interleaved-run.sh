#!/usr/bin/env bash
# ir_measures 0.4.3 with cwl-eval 1.0.12: RBP falls where the lines of a run are not grouped by query.
#
# Seen:     the same four lines, once grouped by query and once with the two queries taking turns: RBP(rel=1) is 0.18
#           and then 0.10, while AP, P@2 and nDCG@10 of the same calls stay. Each change of query ends a ranking, so
#           one query is measured once for each of its pieces, and the pieces are averaged as if they were queries.
# Expected: in the TREC format the lines of a run come in any order; score and query id decide, as trec_eval does, and
#           as the other measures of the library do.
# Touches:  RBP, INST, BPM and the other measures served by cwl-eval, for runs written by rank, by shard or by
#           threads.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet ir_measures==0.4.3 cwl-eval==1.0.12 \
    pytrec_eval-terrier==0.5.11 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import ir_measures
from ir_measures import AP, P, RBP, Qrel, ScoredDoc, nDCG

qrels = [Qrel("q1", "a", 1), Qrel("q2", "a", 1)]
grouped = [ScoredDoc("q1", "a", 3.0), ScoredDoc("q1", "b", 2.0), ScoredDoc("q2", "b", 3.0), ScoredDoc("q2", "a", 2.0)]
orders = {"grouped": grouped, "taking turns": [grouped[i] for i in (0, 2, 1, 3)]}
rbp = RBP(rel=1)
seen = {}
for name, run in orders.items():
    seen[name] = ir_measures.calc_aggregate([rbp, AP, P @ 2, nDCG @ 10], qrels, run)
    rows = sum(1 for _ in ir_measures.iter_calc([rbp], qrels, run))
    shown = sorted(f"{measure} {value:.3f}" for measure, value in seen[name].items())
    print(f"{name}: {rows} rows for 2 queries;", ", ".join(shown))
values = [round(float(values[rbp]), 3) for values in seen.values()]
others = [{measure: value for measure, value in values.items() if measure != rbp} for values in seen.values()]
if values != [0.18, 0.1] or others[0] != others[1]:
    raise SystemExit("changed: expected RBP 0.18 and 0.10, all else equal")
PYTHON
