#!/usr/bin/env bash
# ir_measures 0.4.3: nDCG@10 beside nDCG@10 with gains of one's own: one gets the other's value and the other gets 0.
#
# Seen:     alone, plain nDCG@10 is 0.689 and nDCG with gains 3, 100 for grades 2, 3 is 0.507. Asked for together,
#           some processes answer right and others 0.507 for the plain one and 0.0 for the other, depending on
#           PYTHONHASHSEED (random unless set). Plain nDCG "goes into any existing invocation", also into one whose
#           judgements were mapped, where both have one name; measures pass through an unordered set.
# Expected: gains is a documented parameter of nDCG, and several measures in one call are the library's main use. A
#           value must not depend on what else was asked.
# Touches:  tables that report nDCG with linear gains beside a graded variant: right on one day and wrong on the next,
#           in whole columns.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet ir_measures==0.4.3 pytrec_eval-terrier==0.5.11 numpy==2.4.6
cat > "$work/measure.py" <<'PYTHON'
import ir_measures
from ir_measures import Qrel, ScoredDoc, nDCG

qrels = [Qrel("q", "a", 1), Qrel("q", "b", 3), Qrel("q", "c", 0)]
run = [ScoredDoc("q", "a", 3.0), ScoredDoc("q", "c", 2.0), ScoredDoc("q", "b", 1.0)]
plain, graded = nDCG @ 10, nDCG(gains={2: 3, 3: 100}) @ 10
alone = [ir_measures.calc_aggregate([measure], qrels, run)[measure] for measure in (plain, graded)]
both = ir_measures.calc_aggregate([plain, graded], qrels, run)
print(*(f"{value:.3f}" for value in (*alone, both[plain], both[graded])))
PYTHON
for seed in 0 1 2 3 4 5 6 7 8 9; do
    PYTHONHASHSEED=$seed "$work/venv/bin/python" "$work/measure.py"
done | sort | uniq -c | tee "$work/seen"
echo "(count; plain alone, graded alone, plain together, graded together)"
"$work/venv/bin/python" - "$work/seen" <<'PYTHON'
import sys

seen = {" ".join(line.split()[1:]) for line in open(sys.argv[1])}
if seen != {"0.689 0.507 0.689 0.507", "0.689 0.507 0.507 0.000"}:
    raise SystemExit(f"changed: expected both the right pair and 0.507 with 0.000, saw {sorted(seen)}")
PYTHON
