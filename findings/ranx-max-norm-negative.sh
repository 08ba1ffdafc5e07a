#!/usr/bin/env bash
# ranx 0.3.21: norm="max" multiplies scores by a thousand million where all of a query's scores are negative.
#
# Seen:     logits -0.1, -2, -4 become -1e8, -2e9, -4e9, because the divisor is the larger of the maximum and 1e-9.
#           Fused with a second run, that run no longer counts at all, however it is weighted (here 0.001 to 0.999).
# Expected: a normalisation is there to bring runs to a comparable scale before their scores are added. A negative
#           maximum would have to be refused, or handled as min-max does.
# Touches:  fusion with a reranker: logits of cross-encoders and log-probabilities are negative for most queries.
#           Queries whose best logit is above 0 are scaled as meant, so the two kinds are mixed in one average.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet ranx==0.3.21 numpy==2.4.6 numba==0.68.1 pandas==3.1.1
"$work/venv/bin/python" -W ignore - <<'PYTHON'
from ranx import Run, fuse

logits = Run({"q": {"a": -0.1, "b": -2.0, "c": -4.0}})
bm25 = Run({"q": {"c": 20.0, "b": 10.0, "a": 1.0}})
weights = [0.001, 0.999]
options = {"method": "wsum", "params": {"weights": weights}}
seen = {norm: fuse([logits, bm25], norm=norm, **options)["q"] for norm in ("max", "min-max")}
for norm, scores in seen.items():
    print(f"{norm}, weights {weights}: {scores}")
if not (list(seen["max"]) == ["a", "b", "c"] and seen["max"]["c"] < -1e6 and list(seen["min-max"]) == ["c", "b", "a"]):
    raise SystemExit("changed: expected the logits alone to decide under max, and BM25 under min-max")
PYTHON
