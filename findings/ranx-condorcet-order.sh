#!/usr/bin/env bash
# ranx 0.3.21: Condorcet fusion gives another ranking in every process, and puts beaten documents above their winner.
#
# Seen:     run A ranks d0 to d4, run B ranks e0 to e4. d0 is above d1 to d4 in A, and B holds none of them, so d0
#           wins every one of those contests. Depending on PYTHONHASHSEED (random unless set) d0 is still listed below
#           some of them, and its reciprocal rank as the relevant document varies from process to process. A document
#           that both runs lack is counted as a vote for the second one, a draw as a win for the first: no order fits
#           all comparisons, and the sort starts from an unordered set.
# Expected: the same input gives the same ranking, and a document that beats another in all runs that hold either is
#           above it, as in Condorcet-fuse (Montague and Aslam 2002), which the documentation cites.
# Touches:  fusion of runs with little overlap (BM25 with dense retrieval). A figure made this way cannot be made
#           again.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet ranx==0.3.21 numpy==2.4.6 numba==0.68.1 pandas==3.1.1
cat > "$work/fuse.py" <<'PYTHON'
from ranx import Run, fuse

runs = [Run({"q": {f"{letter}{place}": 10.0 - place for place in range(5)}}) for letter in "de"]
print(" ".join(fuse(runs, norm=None, method="condorcet")["q"]))
PYTHON
for seed in 1 2 3 4 5 6 7 8; do
    PYTHONHASHSEED=$seed "$work/venv/bin/python" -W ignore "$work/fuse.py"
done | tee "$work/orders"
"$work/venv/bin/python" - "$work/orders" <<'PYTHON'
import sys

orders = [line.split() for line in open(sys.argv[1])]
places = sorted({order.index("d0") + 1 for order in orders})
beaten = sum(any(order.index("d0") > order.index(f"d{other}") for other in range(1, 5)) for order in orders)
print(f"{len({tuple(order) for order in orders})} orders in {len(orders)} processes; d0 at the places {places};")
print(f"in {beaten} of them below a document that it beats")
if len(places) < 2 or not beaten:
    raise SystemExit("changed: expected several orders, some with d0 below a document that it beats")
PYTHON
