"""Results as tables of text, for a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from blockrank.evaluate.compare import Comparison
from blockrank.evaluate.results import SIGNIFICANT, CollectionResult, EvaluationResult, SystemResult

_LEGEND = (
    f"* differs from the first stage (p < {SIGNIFICANT}: paired randomisation test on {{measure}}, corrected by Holm).",
    "ceiling@N: the first N candidates in the best possible order. Below N the first stage's order is kept.",
)
_UNMEASURED = "-"
_ALWAYS, _ORDER = ("ms/query", "cut documents"), "order tau"
_ORDER_LEGEND = (
    f"{_ORDER}: Kendall's tau between rankings of the same candidates in shuffled orders; 1 where it does not matter."
)


def text_table(result: EvaluationResult, *, markdown: bool = False) -> str:
    """Systems by measures for each collection, with ceilings and what each system took; then means of collections."""
    parts = [_collection(found, result.measures, markdown) for found in result.collections]
    if len(result.collections) > 1:
        rows = [["system", *result.measures]]
        rows += [[name, *_values(values, result.measures)] for name, values in result.means().items()]
        parts.append(_titled(f"mean of {len(result.collections)} collections", rows, markdown))
    shuffled = any(system.order_tau is not None for found in result.collections for system in found.systems)
    legend = [line.format(measure=result.measures[0]) for line in _LEGEND] + [_ORDER_LEGEND] * shuffled
    lines = [f"{'- ' if markdown else ''}{line}" for line in legend]
    lines += [f"{'- ' if markdown else 'note: '}{line}" for line in result.environment.get("notes", ())]
    return "\n\n".join([*parts, "\n".join(lines)])


def _collection(found: CollectionResult, measures: Sequence[str], markdown: bool) -> str:
    costs = _costs(found.systems[1:])
    rows = [["system", f"{measures[0]} ", *measures[1:], *costs]]  # room for the mark
    for place, system in enumerate(found.systems):
        cells = [cells[place - 1] if place else "" for cells in costs.values()]
        rows.append([system.name, *_measured(found, system, measures), *cells])
    for depth, values in sorted(found.ceilings.items()):
        rows.append([f"ceiling@{depth}", *_values(values, measures, " "), *[""] * len(costs)])
    table = _titled(f"{found.name}: {found.queries} queries, first stage {found.first_stage}", rows, markdown)
    against = [c for c in found.comparisons if c.b == found.first_stage]
    return "\n".join([table, *(["", *(("- " if markdown else "") + _sentence(c) for c in against)] if against else [])])


def _sentence(found: Comparison) -> str:
    better = f"{found.wins} {'query' if found.wins == 1 else 'queries'} better"
    return (
        f"{found.a} against {found.b} on {found.measure}: {found.difference:+.4f} "
        f"(corrected p {found.corrected_p:.4f}); {better}, {found.losses} worse, {found.ties} equal."
    )


def _measured(found: CollectionResult, system: SystemResult, measures: Sequence[str]) -> list[str]:
    comparison = found.against_first_stage(system.name)
    mark = "*" if comparison is not None and comparison.corrected_p < SIGNIFICANT else " "
    return _values(system.measures, measures, mark)


def _costs(systems: Sequence[SystemResult]) -> dict[str, list[str]]:
    """Name and cells of each column beside the measures; later ones in which no reranker has anything are left out."""
    columns = {
        "ms/query": [_number(system.latency_ms, int((system.latency_ms or 0) < 100)) for system in systems],
        "cut documents": [f"{system.cut_documents} of {system.documents}" for system in systems],
        "tokens/query": [_number(system.read_tokens, 0) for system in systems],
        "calls/query": [_number(system.calls, 1) for system in systems],
        "repaired": [str(system.repaired) for system in systems if any(each.repaired for each in systems)],
        _ORDER: [_number(system.order_tau, 3) for system in systems],
    }
    return {name: cells for name, cells in columns.items() if name in _ALWAYS or set(cells) - {_UNMEASURED}}


def _number(value: float | None, decimals: int) -> str:
    return _UNMEASURED if value is None else f"{value:.{decimals}f}"


def _values(values: Mapping[str, float], measures: Sequence[str], mark: str = "") -> list[str]:
    """Numbers of a row; the mark belongs to the first measure."""
    first, *others = (f"{values[measure]:.4f}" for measure in measures)
    return [first + mark, *others]


def _titled(title: str, rows: Sequence[Sequence[str]], markdown: bool) -> str:
    return "\n".join([f"**{title}**", "", *_markdown(rows)] if markdown else [title, *_plain(rows)])


def _plain(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns two spaces apart, all but the first flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = [[cell.strip().replace("|", "\\|").replace("*", "\\*") for cell in row] for row in rows]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *body)]
