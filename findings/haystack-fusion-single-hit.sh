#!/usr/bin/env bash
# haystack-ai 3.4.1: distribution-based fusion leaves a list with one hit, or with equal scores, at its raw scores.
#
# Seen:     an embedding retriever gives a 0.92, b 0.90, c 0.10 and BM25 gives one hit, x 7.3. DocumentJoiner in the
#           mode distribution_based_rank_fusion puts x first with 7.3, the others have 0.26 to 0.62. With a second,
#           worse BM25 hit, x gets 0.667 like any other best document. The best of a list with raw scores 0.05 would
#           be last.
# Expected: the method (distribution-based score fusion, cited in the docstring) scales every list by its own mean and
#           deviation so that lists of unlike scales can be compared. A list without spread should get one middle
#           value.
# Touches:  hybrid search: rare words and identifiers give BM25 lists of one hit, which then beats everything (or,
#           with small or negative scores such as logits, nothing), whatever it is worth.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet haystack-ai==3.4.1
HAYSTACK_TELEMETRY_ENABLED=False "$work/venv/bin/python" -W ignore - <<'PYTHON'
from haystack import Document
from haystack.components.joiners import DocumentJoiner


def documents(scores: dict[str, float]) -> list[Document]:
    return [Document(id=name, content=name, score=score) for name, score in scores.items()]


dense = {"a": 0.92, "b": 0.90, "c": 0.10}
lists = {"one hit": {"x": 7.3}, "two hits": {"x": 7.3, "y": 1.0}, "one hit, small score": {"x": 0.05}}
seen = {}
for name, bm25 in lists.items():
    joiner = DocumentJoiner(join_mode="distribution_based_rank_fusion")
    joined = joiner.run(documents=[documents(dense), documents(bm25)])["documents"]
    scores = {document.id: round(document.score, 3) for document in joined}
    seen[name] = (list(scores).index("x") + 1, scores["x"])
    print(f"{name}: {scores}")
if seen != {"one hit": (1, 7.3), "two hits": (1, 0.667), "one hit, small score": (4, 0.05)}:
    raise SystemExit("changed: expected x first with 7.3, first with 0.667, last with 0.05")
PYTHON
