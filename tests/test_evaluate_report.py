"""The page of an evaluation: whole for every kind of result, the same each time, and true to its numbers."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from test_report_page import Checker, check_offline

from blockrank.evaluate import plots
from blockrank.evaluate.compare import compare
from blockrank.evaluate.report import report_html, write_report
from blockrank.evaluate.results import CollectionResult, EvaluationResult, SystemResult
from blockrank.types import InputError

MEASURES = ("nDCG@10", "RR@10", "P@1", "R@100", "Judged@10")
ENVIRONMENT: dict[str, Any] = {
    "date": "2026-01-31 12:00 UTC",
    "command": "blockrank evaluate scifact --model mini",
    "versions": {"blockrank": "0.2", "torch": "2.11", "bm25s": None},
    "machine": {"platform": "Linux", "processor": "x86_64", "cores": 2},
    "settings": {"systems": {"mini@10": {"depth": 10, "spec": {"layer": 5, "causal": False}}}, "seed": 0},
    "notes": ["3 queries of lisa have no candidates: they count as 0."],
}


def system(name: str, depth: int, values: np.ndarray, latency: float | None = None, cut: int = 0) -> SystemResult:
    """A system whose measures are all derived from one value a query."""
    per_query = {
        f"q{place}": dict(zip(MEASURES, (value, value**0.8, float(value > 0.6), 0.9, 0.8), strict=True))
        for place, value in enumerate(values.tolist())
    }
    means = {measure: float(np.mean([row[measure] for row in per_query.values()])) for measure in MEASURES}
    return SystemResult(name, depth, means, per_query, latency, 100 * len(values), cut, cut // 9)


def collection(
    name: str,
    queries: int = 60,
    seed: int = 0,
    labels: Sequence[str] = ("mini", "large"),
    depths: Sequence[int] = (10, 50, 100),
    latency: float | None = 12.5,
    **changed: Any,
) -> CollectionResult:
    """Random values; later labels are better and slower, more candidates help and cost. `changed`: other fields."""
    random = np.random.default_rng(seed)
    first = random.beta(1.2, 1.0, queries)
    systems = [system("bm25", 100, first)]
    for place, label in enumerate(labels):
        for depth in depths:
            shift = random.normal(0.02 * (place + 1) * math.log10(depth), 0.15, queries)
            values = np.where(random.random(queries) < 0.2, first, np.clip(first + shift, 0, 1))
            shown = label if len(depths) == 1 else f"{label}@{depth}"
            time = None if latency is None else latency * depth * 4**place
            systems.append(system(shown, depth, values, time, cut=7 * place * depth))
    ceilings = {depth: dict.fromkeys(MEASURES, 0.7 + 0.06 * math.log10(depth)) for depth in depths}
    if "comparisons" not in changed:
        values = {found.name: {query: row["nDCG@10"] for query, row in found.per_query.items()} for found in systems}
        changed["comparisons"] = compare(values, "nDCG@10", resamples=2000)
    return CollectionResult(name, queries, "bm25", tuple(systems), **{"ceilings": ceilings} | changed)


def result(*collections: CollectionResult, **environment: Any) -> EvaluationResult:
    return EvaluationResult(MEASURES, collections, environment or ENVIRONMENT)


def pictures(page: Checker) -> list[str]:
    """The SVG pictures of a page, each checked to be XML without a value that is not finite."""
    found = []
    for image in page.found("img"):
        assert image["alt"]
        svg = base64.b64decode((image["src"] or "").partition("base64,")[2]).decode("utf-8")
        ElementTree.fromstring(svg)
        assert "nan" not in svg.lower()
        assert "inf" not in svg.lower()
        found.append(svg)
    return found


def read(evaluation: EvaluationResult) -> Checker:
    page = Checker(report_html(evaluation))
    check_offline(page)
    return page


@pytest.fixture(scope="module")
def full() -> EvaluationResult:
    return result(collection("scifact", 300, 1), collection("lisa", 35, 2))


def test_page_shows_what_was_measured(full: EvaluationResult) -> None:
    page = read(full)
    assert len(pictures(page)) == 1 + 3 * 2  # the overview; depths, latencies and differences of each collection
    shown = page.text
    for found in full.collections:
        assert found.name in shown
        for each in found.systems:
            assert each.name in shown
            assert f"{each.measures['nDCG@10']:.3f}" in shown
        for ceiling in found.ceilings.values():
            assert f"{ceiling['nDCG@10']:.3f}" in shown
    assert "700 (2.3 %)" in shown  # documents cut: of 30,000 that large@100 read on scifact
    for recorded in (
        "2026-01-31 12:00 UTC",
        "blockrank evaluate scifact --model mini",
        "torch 2.11",
        "no candidates",
        "spec.layer: 5",
    ):
        assert recorded in shown


def test_marks_are_the_significant_differences(full: EvaluationResult) -> None:
    scifact = full.collections[0]
    compared = {found.a: found for found in scifact.comparisons if found.b == "bm25"}
    assert {found.corrected_p < 0.05 for found in compared.values()} == {True, False}, "the example shows both"
    table = report_html(result(scifact)).split("<table>")[1].split("</table>")[0]
    for name, found in compared.items():
        row = table.split(f'<th scope="row">{name}</th>')[1].split("</tr>")[0]
        assert ("▲" in row) == (found.corrected_p < 0.05 and found.difference > 0)
        assert ("▼" in row) == (found.corrected_p < 0.05 and found.difference < 0)


def test_no_mark_is_said() -> None:
    """Two queries cannot show a difference."""
    shown = read(result(collection("c", 2, labels=("mini",), depths=(100,)))).text
    assert "No system is shown to differ from bm25 on nDCG@10: p, corrected for 1 comparison, is 0.05 or more." in shown


def test_extremes_are_the_greatest_changes() -> None:
    found = collection("c", 40, labels=("mini",), depths=(100,))
    first, second = (each.per_query for each in found.systems)
    change = {query: second[query]["nDCG@10"] - first[query]["nDCG@10"] for query in first}
    lost, won = report_html(result(found)).split("Queries that lose most")[1].split("Queries that win most")
    for part, query in ((lost, min(change, key=change.__getitem__)), (won, max(change, key=change.__getitem__))):
        top = part.split("<tbody>")[1].split("</tr>")[0]
        assert f">{query}<" in top
        assert f"{abs(change[query]):.3f}" in top


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ({"queries": 1, "depths": (10, 50)}, 3),
        ({"labels": ("mini",), "depths": (100,)}, 1),  # one point needs no figure of quality against latency
        ({"labels": ("mini", "large"), "depths": (100,)}, 2),
        ({"depths": (10, 50), "latency": None}, 2),
        ({"depths": (10, 50), "latency": 0.0}, 2),
        ({"labels": (), "ceilings": {}}, 0),
        ({"labels": [f"m{place}" for place in range(8)], "depths": (100,), "comparisons": ()}, 2),
        ({"labels": ("mini",), "depths": tuple(range(5, 100, 5)), "comparisons": ()}, 3),
        ({"depths": (10, 50), "comparisons": (), "ceilings": {}}, 3),
    ],
    ids=str,
)
def test_every_kind_of_result_has_its_page(kind: dict[str, Any], count: int) -> None:
    found = collection("c", **{"queries": 20} | kind)
    assert len(pictures(read(result(found)))) == count


@pytest.mark.parametrize("kind", [{"labels": ()}, {"labels": ("mini",), "depths": (100,), "ceilings": {}}], ids=str)
def test_every_kind_of_result_has_its_overview(kind: dict[str, Any]) -> None:
    page = read(result(collection("a", 9, **kind), collection("b", 9, **kind)))
    assert len(pictures(page)) == 1 + 2 * len(kind["labels"])
    assert "Over all collections" in page.text


def test_nothing_measured_is_not_drawn() -> None:
    """A mean that is not a number leaves a dash in the table and no trace in the pictures."""
    found = collection("c", 20)
    broken = dataclasses.replace(
        found.systems[1],
        measures=dict.fromkeys(MEASURES, math.nan),
        per_query={query: dict.fromkeys(MEASURES, math.nan) for query in found.systems[1].per_query},
        latency_ms=math.inf,
    )
    systems = (found.systems[0], broken, *found.systems[2:])
    page = read(result(dataclasses.replace(found, systems=systems), dataclasses.replace(found, name="d")))
    pictures(page)
    assert "nan" not in page.text.lower()


def test_what_users_name_is_escaped() -> None:
    name = '<b>&"'
    found = collection(name, 12, labels=(name, "_x\x01", "$a\\b$"), depths=(10, 50))
    page = read(
        result(
            found,
            dataclasses.replace(found, name="</title>"),
            notes=["<i>"],
            command=f"run {name}",
            settings={name: name},
        )
    )
    drawn = "".join(pictures(page))
    assert not page.found("b") + page.found("i")
    assert "&lt;b&gt;" in drawn
    assert "$a\\b$" in drawn
    assert "_x" in drawn


def test_same_result_same_bytes(tmp_path: Path) -> None:
    small = result(collection("c", 9, depths=(10, 50)))
    for name in ("a.html", "b.html"):
        write_report(small, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == report_html(EvaluationResult.from_dict(small.to_dict()))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    place = tmp_path / "missing" / "report.html"
    with pytest.raises(InputError, match=r"report\.html"):
        write_report(result(collection("c", 5)), place)
    assert not list(tmp_path.iterdir())


def test_lines_follow_labels_and_depths() -> None:
    values = np.array([0.5, 0.6])
    systems = [
        system("bm25", 100, values),
        system("a@50", 50, values),
        system("a@10", 10, values),
        system("b@7", 100, values),
    ]
    found = dataclasses.replace(collection("c", 2), systems=tuple(systems))
    assert {label: [each.depth for each in each_] for label, each_ in plots.lines(found).items()} == {
        "a": [10, 50],
        "b@7": [100],
    }
    assert plots.deepest(found)["a"].name == "a@50"


def test_systems_that_lack_a_collection_have_no_mean() -> None:
    page = read(result(collection("a", 9, labels=("mini", "large")), collection("b", 9, labels=("mini",))))
    assert "Not on every collection, and therefore without a mean: large@10, large@100, large@50." in page.text


def test_systems_with_the_same_short_name_both_stand_in_the_legend() -> None:
    labels = [f"{'a' * 40}{place}{'z' * 40}" for place in range(2)]
    found = collection("c", 9, labels=labels, depths=(10, 50))
    drawn = plots.depths(found, "nDCG@10", plots.looks(result(found)))
    assert drawn is not None
    assert drawn.decode().count("aaa…zzz") == 2


def test_what_systems_took_has_columns_where_it_is_known() -> None:
    found = collection("c", 9, labels=("mini",), depths=(10, 50))
    shown = read(result(found)).text
    assert not {"order τ", "repaired", "calls"} & set(shown.replace(" and ", "\n").splitlines())
    first, short, deep = found.systems
    deep = dataclasses.replace(deep, calls=9.0, read_tokens=12345.6, repaired=3, order_tau=0.8125)
    page = read(result(dataclasses.replace(found, systems=(first, short, deep))))
    for cell in ("12,346", "9.0", "0.812", "order τ", "repaired", "Kendall's tau"):
        assert cell in page.text
    stored = SystemResult.from_dict(deep.to_dict())
    assert stored == deep
    old = {
        key: value
        for key, value in deep.to_dict().items()
        if key not in ("calls", "read_tokens", "repaired", "order_tau")
    }
    assert SystemResult.from_dict(old).calls is None
