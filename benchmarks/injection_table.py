"""Records of `injection.py` as Markdown: clean quality by collection, then each model with collections pooled."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MEASURE = "nDCG@10"
_Z = 1.959964  # of a 95 % interval
_HEAD = (
    "attack", "place", "first [95 %]", "placebo", "top 3", "placebo", "places up", "placebo", MEASURE, "others moved",
)  # fmt: skip


def read_records(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Records of `injection.py run`."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    share, z2 = hits / of, _Z * _Z / of
    centre = (share + z2 / 2) / (1 + z2)
    half = _Z * math.sqrt(share * (1 - share) / of + z2 / (4 * of)) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def _pooled(rows: Sequence[dict[str, Any]], counts: Sequence[int]) -> dict[str, Any]:
    """Counts added up, means over requests weighted by them, nDCG as the mean over collections."""
    found: dict[str, Any] = {"requests": sum(counts), MEASURE: statistics.mean(row[MEASURE] for row in rows)}
    for name in ("first", "top 3", "requests with others moved", "cut"):
        found[name] = sum(row[name] for row in rows)
    for name in ("places up", "others moved"):
        found[name] = sum(row[name] * count for row, count in zip(rows, counts, strict=True)) / sum(counts)
    return found


def pooled(collections: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The attacks on one model, all its collections together."""
    counts = [item["requests"] for item in collections]
    found = []
    for rows in zip(*(item["attacks"] for item in collections), strict=True):
        first = rows[0]
        assert all((row["attack"], row["position"]) == (first["attack"], first["position"]) for row in rows)
        placebo = _pooled([row["placebo"] for row in rows], counts)
        row = _pooled(rows, counts)
        interval = [round(value, 4) for value in wilson(row["first"], row["requests"])]
        found.append(
            {"attack": first["attack"], "position": first["position"], **row, "interval": interval, "placebo": placebo}
        )
    return found


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _line(row: dict[str, Any]) -> str:
    placebo, count = row["placebo"], row["requests"]
    low, high = row["interval"]
    cells = [
        row["attack"],
        row["position"],
        f"{_percent(row['first'] / count)} [{_percent(low)}, {_percent(high)}]",
        _percent(placebo["first"] / count),
        _percent(row["top 3"] / count),
        _percent(placebo["top 3"] / count),
        f"{row['places up']:+.1f}",
        f"{placebo['places up']:+.1f}",
        f"{row[MEASURE]:.3f}",
        f"{row['others moved']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _by_subject(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Collections of each model and pattern, in the order of the records."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        for row in record["rows"]:
            found.setdefault(f"{row['model']}, {row['pattern']}", []).append(row)
    return found


def clean(subjects: dict[str, list[dict[str, Any]]]) -> list[str]:
    """nDCG@10 without an attack, by collection."""
    names = list(dict.fromkeys(row["collection"] for rows in subjects.values() for row in rows))
    counts = {row["collection"]: row["requests"] for rows in subjects.values() for row in rows}
    heads = [f"{name} ({counts[name]})" for name in names]
    lines = [f"| clean {MEASURE} (requests) | {' | '.join(heads)} | mean |", f"|{'---|' * (len(names) + 2)}"]
    for subject, rows in subjects.items():
        values = {row["collection"]: row[MEASURE] for row in rows}
        cells = [f"{values[name]:.3f}" if name in values else "" for name in names]
        lines.append(f"| {subject} | {' | '.join(cells)} | {statistics.mean(values.values()):.3f} |")
    return lines


def table(records: Sequence[dict[str, Any]]) -> list[str]:
    """All tables as lines of Markdown."""
    subjects = _by_subject(records)
    lines = clean(subjects)
    for subject, collections in subjects.items():
        lines += ["", f"**{subject}**", "", f"| {' | '.join(_HEAD)} |", f"|{'---|' * len(_HEAD)}"]
        lines += [_line(row) for row in pooled(collections)]
    return lines
