#!/usr/bin/env bash
# baguetter 0.1.1: reciprocal rank fusion, the default, divides by rank + score: the surer second place loses.
#
# Seen:     b is second in one list, close behind the first; d is second in another, far behind. d is put above b. And
#           in two lists that agree on a before b, a and b come out level. The sum is over 1 / (place from 0 + score
#           scaled to 0..1), where the method has a constant in place of the score.
# Expected: 1 / (k + rank) with a constant k (Cormack, Clarke, Buettcher 2009): b and d are level, a is above b. A
#           method that is chosen because it does not look at scores must not be moved by them, least of all
#           downwards.
# Touches:  hybrid search with the default settings, and comparisons that take it for reciprocal rank fusion. (The
#           installation names what fusion imports: the whole set of dependencies brings a deep learning stack.)
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


def fused(*lists: dict[str, float]) -> dict[str, float]:
    results = [SearchResults(keys=list(x), scores=np.array(list(x.values())), normalized=False) for x in lists]
    merged = Fuser().merge(results)
    return {key: round(float(score), 3) for key, score in zip(merged.keys, merged.scores)}


close_and_far = fused({"a": 10.0, "b": 9.9, "c": 1.0}, {"c": 10.0, "d": 1.1, "e": 1.0})
agreed = fused({"a": 10.0, "b": 1.0}, {"a": 10.0, "b": 1.0})
print("b close second, d far second:", close_and_far)
print("a before b in both lists:", agreed)
if not (close_and_far["d"] > close_and_far["b"] and agreed["a"] == agreed["b"]):
    raise SystemExit("changed: expected d above b, and a level with b")
PYTHON
