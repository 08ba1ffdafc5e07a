#!/usr/bin/env bash
# baguetter 0.1.1: fusion by median rank puts the worst document first.
#
# Seen:     two rankers agree on a, b, c. Fuser(algorithm="median_rank") answers c, b, a. The four others tried here
#           answer a, b, c. The median place is kept as the score, and scores are sorted from the highest down.
# Expected: the document with the best (lowest) median place first (median rank aggregation, Fagin, Kumar, Sivakumar
#           2003). Rankings that agree have to come out as they went in.
# Touches:  hybrid search: no error, plausible scores between 0 and 1, and the answers are the tail of the candidate
#           lists. (The installation names what fusion imports: the whole set of dependencies brings a deep learning
#           stack.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet numpy==2.4.6 numba==0.68.1 scipy==1.17.1 faiss-cpu==1.15.1 \
    usearch==2.26.6 fsspec==2026.9.0 huggingface_hub==2.4.0 python-dotenv==1.2.4 nltk==3.10.4 krovetzstemmer==0.8 \
    pystemmer==3.1.0 unidecode==1.4.0
"$work/venv/bin/python" -m pip install --quiet --no-deps baguetter==0.1.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from baguetter.fuser.fuser import Fuser
from baguetter.indices.base import SearchResults


def ranked(scores: dict[str, float]) -> SearchResults:
    return SearchResults(keys=list(scores), scores=np.array(list(scores.values())), normalized=False)


orders = {}
for algorithm in ("reciprocal_rank", "isr", "borda_count", "z_score", "median_rank"):
    lists = [ranked({"a": 20.0, "b": 12.0, "c": 1.0}), ranked({"a": 0.9, "b": 0.5, "c": 0.1})]
    orders[algorithm] = "".join(Fuser(algorithm=algorithm).merge(lists).keys)
    print(f"{algorithm}: {orders[algorithm]}")
if orders.pop("median_rank") != "cba" or set(orders.values()) != {"abc"}:
    raise SystemExit("changed: expected cba for median_rank and abc for the others")
PYTHON
