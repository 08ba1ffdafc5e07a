#!/usr/bin/env bash
# ir_measures 0.4.3: ERR and exponential nDCG come out at half their value, or less, where query ids hold a hyphen.
#
# Seen:     one query, one relevant document at rank 1: nDCG(dcg='exp-log2')@10 is 1.0 for query id "7" and 0.5 for id
#           "PLAIN-2". The script behind these two measures (gdeval, in Perl) keeps what follows the last hyphen; the
#           result for "2" and a zero for the missing "PLAIN-2" are then averaged. Ids a-1 and b-1 become one query,
#           mean 1/3. nDCG@10 in the same call is right.
# Expected: an id of a run or a judgement file is any word without spaces (TREC format), and the measure documentation
#           names no limit. ids that the provider cannot take would have to be refused or numbered.
# Touches:  NFCorpus ("PLAIN-2") and every set whose ids carry a year or a split. It needs a Perl interpreter, as the
#           measure itself does.
set -euo pipefail
command -v perl > /dev/null || { echo "perl is not installed: these measures cannot run" >&2; exit 3; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet ir_measures==0.4.3 pytrec_eval-terrier==0.5.11 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import ir_measures
from ir_measures import ERR, Qrel, ScoredDoc, nDCG

exponential = nDCG(dcg="exp-log2") @ 10
seen = {}
for ids in (["7"], ["PLAIN-2"], ["a-1", "b-1"]):
    qrels, run = [Qrel(i, "d", 1) for i in ids], [ScoredDoc(i, "d", 1.0) for i in ids]
    values = ir_measures.calc_aggregate([exponential, nDCG @ 10, ERR @ 10], qrels, run)
    seen[tuple(ids)] = round(values[exponential], 3), values[nDCG @ 10]
    rows = {metric.query_id for metric in ir_measures.iter_calc([exponential], qrels, run)}
    linear = values[nDCG @ 10]
    print(f"ids {ids}: {exponential} {values[exponential]:.3f}, nDCG@10 {linear:.3f}, rows for {sorted(rows)}")
if seen != {("7",): (1.0, 1.0), ("PLAIN-2",): (0.5, 1.0), ("a-1", "b-1"): (0.333, 1.0)}:
    raise SystemExit("changed: expected 1, 0.5 and 0.333 for the exponential nDCG, and 1 for nDCG@10")
PYTHON
