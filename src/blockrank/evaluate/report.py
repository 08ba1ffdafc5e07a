"""An evaluation as one HTML page that explains itself: tables, figures and how to read them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from blockrank.errors import listed
from blockrank.evaluate import plots
from blockrank.evaluate.compare import Comparison
from blockrank.evaluate.results import SIGNIFICANT, CollectionResult, EvaluationResult, SystemResult
from blockrank.keep.files import atomic_file
from blockrank.report.page import (
    Cell,
    Column,
    Html,
    Page,
    code,
    details,
    facts,
    figure,
    items,
    number,
    paragraph,
    table,
)

_EXTREMES = 10  # queries listed among the greatest gains, and among the greatest losses
_OPEN_ROWS = 10  # a longer table of comparisons is folded up
_BETTER, _WORSE = "▲", "▼"
_JUDGED = "Judged"  # says how far the other measures can be trusted; it is no quality, and none is best


def write_report(result: EvaluationResult, path: Path) -> None:
    """Write the page of an evaluation; it appears under its name only when it is whole.

    Raises `InputError` where the place cannot be written, `MissingExtraError` without matplotlib.
    """
    text = report_html(result)
    with atomic_file(path) as stream:
        stream.write(text.encode("utf-8"))


def report_html(result: EvaluationResult) -> str:
    """The page's text: the same for the same result."""
    look = plots.looks(result)
    page = Page(_title(result), _lead(result))
    page.section("What was evaluated", *_environment(result.environment))
    if len(result.collections) > 1:
        page.section("Over all collections", *_over_collections(result, look))
    for collection in result.collections:
        page.section(collection.name, *_collection(collection, result.measures, look))
    page.section("How to read this page", *_guide(result))
    return page.html()


def _title(result: EvaluationResult) -> str:
    labels = list(plots.looks(result)) or list(dict.fromkeys(c.first_stage for c in result.collections))
    return f"Evaluation of {listed(labels, 3)}"


def _lead(result: EvaluationResult) -> str:
    queries = sum(collection.queries for collection in result.collections)
    firsts = listed(list(dict.fromkeys(collection.first_stage for collection in result.collections)), 3)
    where = _counted(len(result.collections), "judged collection", "judged collections")
    asked = _counted(queries, "query", "queries")
    return f"Candidates found by {firsts} on {where} with {asked}, reranked. The main measure is {result.measures[0]}."


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _environment(environment: Mapping[str, Any]) -> Iterator[Html]:
    """What was recorded: notes first, since a reader has to know them; settings, which are many, folded up."""
    notes = environment.get("notes") or ()
    yield items([str(note) for note in ([notes] if isinstance(notes, str) else notes)])
    named = {name: value for name, value in environment.items() if name not in ("notes", "settings")}
    yield facts({name.replace("_", " "): _recorded(name, value) for name, value in named.items() if value})
    settings = {
        f"{section}: {name}": _leaves(value)
        for section, entries in (environment.get("settings") or {}).items()
        for name, value in (entries if isinstance(entries, Mapping) else {"all": entries}).items()
    }
    if settings:
        yield details("All settings that decided the rankings", facts(settings))


def _recorded(name: str, value: Any) -> str:
    """A recorded value; what can be typed again looks like it."""
    if name in ("command", "commit"):
        return code(" ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))
    if isinstance(value, Mapping):  # what is not there, such as a package, was not recorded
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items() if inner is not None)
    return _plain(value)


def _leaves(value: Any, name: str = "") -> str:
    """`key: value; key.inner: value` of nested mappings, without what is not set."""
    if not isinstance(value, Mapping):
        return f"{name}: {_plain(value)}" if name else _plain(value)
    lead = f"{name}." if name else ""
    return "; ".join(_leaves(inner, f"{lead}{key}") for key, inner in value.items() if inner not in (None, "", {}))


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(inner) for inner in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _over_collections(result: EvaluationResult, look: plots.Looks) -> Iterator[Html]:
    """Means over the collections, every collection counting the same, and the overview."""
    means = result.means()
    rows = [[name, *(values.get(measure) for measure in result.measures)] for name, values in means.items()]
    count = len(result.collections)
    caption = f"Means over the {count} collections, each counting the same; the best value in bold."
    yield table(["system", *_measure_columns(result.measures)], rows, caption, last=_mean_ceilings(result))
    everywhere = {system.name for collection in result.collections for system in collection.systems[1:]}
    if missing := sorted(everywhere - set(means)):
        yield paragraph(f"Not on every collection, and therefore without a mean: {', '.join(missing)}.")
    yield figure(
        plots.overview(result, look),
        f"{result.measures[0]} of every system on each of {count} collections, beside the first stage and the ceiling.",
        "Each row is a collection. The open circle is the first stage, the upright stroke the ceiling of its "
        "candidates. A reranker left of the circle made the order worse; one at the stroke could not have "
        "made it better.",
    )


def _mean_ceilings(result: EvaluationResult) -> list[list[Cell]]:
    """A row for every depth that all collections have."""
    common = set.intersection(*(set(collection.ceilings) for collection in result.collections))
    rows: list[list[Cell]] = []
    for depth in sorted(common):
        ceilings = [collection.ceilings[depth] for collection in result.collections]
        means = {measure: sum(c[measure] for c in ceilings) / len(ceilings) for measure in result.measures}
        rows.append([f"ceiling of {depth:,} candidates", *_ceiling_cells(means, result.measures)])
    return rows


def _measure_columns(measures: Sequence[str]) -> list[Column]:
    return [Column(measure, best=None if measure.startswith(_JUDGED) else "high") for measure in measures]


def _collection(collection: CollectionResult, measures: Sequence[str], look: plots.Looks) -> Iterator[Html]:
    main = measures[0]
    yield _systems(collection, measures)
    yield from _marks(collection, main)
    yield from _figures(collection, main, look)
    if collection.comparisons:
        compared = _comparisons(collection)
        summary = f"All {len(collection.comparisons)} comparisons between systems"
        yield compared if len(collection.comparisons) <= _OPEN_ROWS else details(summary, compared)
    for system in plots.deepest(collection).values():
        yield from _extremes(collection, system, main)


def _systems(collection: CollectionResult, measures: Sequence[str]) -> Html:
    """A row for every system, the ceilings set apart below."""
    columns: list[str | Column] = ["system", Column("candidates", 0), *_measure_columns(measures)]
    rows = [_system_row(collection, system, measures) for system in collection.systems]
    caption = f"{_counted(collection.queries, 'query', 'queries')}; means over them, the best value in bold."
    if any(system.latency_ms is not None for system in collection.systems):
        short = any(0 < (system.latency_ms or 0) < 100 for system in collection.systems)
        columns.append(Column("latency, ms", 1 if short else 0, "low"))
        rows = [[*row, system.latency_ms] for row, system in zip(rows, collection.systems, strict=True)]
        caption += " Latency: the median of single requests, ranked alone and with nothing reused."
    rerankers = collection.systems[1:]
    for column, cells in _costs(rerankers):
        columns.append(column)
        rows = [[*row, cell] for row, cell in zip(rows, [None, *cells], strict=True)]
    if any(system.cut_documents or system.cut_queries for system in rerankers):
        columns += [Column("documents cut"), Column("queries cut", 0)]
        # A dash for the first stage, which reads without a limit.
        rows = [
            [*rows[0], None, None],
            *([*row, *_cut(system)] for row, system in zip(rows[1:], rerankers, strict=True)),
        ]
    elif any(system.documents for system in rerankers):
        caption += " No document and no query was cut."
    last: list[list[Cell]] = [
        ["ceiling", depth, *_ceiling_cells(collection.ceilings[depth], measures)]
        for depth in sorted(collection.ceilings)
    ]
    nothing: list[Cell] = [""] * (len(columns) - 2 - len(measures))
    return table(columns, rows, caption, last=[[*row, *nothing] for row in last])


def _costs(systems: Sequence[SystemResult]) -> list[tuple[Column, list[Cell]]]:
    """What the rerankers took for a query and how far they depend on the order; columns without anything are left
    out."""
    repaired: list[Cell] = [system.repaired or None for system in systems]
    columns: list[tuple[Column, list[Cell]]] = [
        (Column("tokens", 0), [system.read_tokens for system in systems]),
        (Column("calls", 1), [system.calls for system in systems]),
        (Column("repaired", 0), repaired),
        (Column("order τ"), [system.order_tau for system in systems]),
    ]
    return [(column, cells) for column, cells in columns if any(cell is not None for cell in cells)]


def _ceiling_cells(ceiling: Mapping[str, float], measures: Sequence[str]) -> list[Cell]:
    """The best order has no share of judged documents worth reading."""
    return [None if measure.startswith(_JUDGED) else ceiling.get(measure) for measure in measures]


def _system_row(collection: CollectionResult, system: SystemResult, measures: Sequence[str]) -> list[Cell]:
    marked = (system.measures[measures[0]], _sign(collection.against_first_stage(system.name)))
    return [system.name, system.depth, marked, *(system.measures[measure] for measure in measures[1:])]


def _cut(system: SystemResult) -> list[Cell]:
    """How many texts did not fit into the model, and which share of the documents that is."""
    if not system.documents:
        return [None, None]
    share = number(100 * system.cut_documents / system.documents, 1)
    return [f"{system.cut_documents:,} ({share} %)", system.cut_queries]


def _sign(found: Comparison | None) -> str:
    """The mark of a significant difference; nothing where it is not, or where nothing was compared."""
    if found is None or not found.corrected_p < SIGNIFICANT:
        return ""
    return _BETTER if found.difference > 0 else _WORSE


def _marks(collection: CollectionResult, main: str) -> Iterator[Html]:
    """What the marks in the table say, or that there is none, where systems were compared."""
    if not collection.comparisons:
        return
    corrected = f"p, corrected for {_counted(len(collection.comparisons), 'comparison', 'comparisons')}"
    first = collection.first_stage
    if any(_sign(collection.against_first_stage(system.name)) for system in collection.systems):
        yield paragraph(f"{_BETTER} above, {_WORSE} below {first} on {main}: {corrected}, is under {SIGNIFICANT}.")
    else:
        yield paragraph(f"No system is shown to differ from {first} on {main}: {corrected}, is {SIGNIFICANT} or more.")


def _figures(collection: CollectionResult, main: str, look: plots.Looks) -> Iterator[Html]:
    first = collection.first_stage
    if picture := plots.depths(collection, main, look):
        yield figure(
            picture,
            f"{main} against the number of candidates on {collection.name}, a line for each reranker.",
            "More candidates hold more relevant documents (the ceiling rises), and more to confuse them with. Where a "
            "line falls, the reranker loses more by the second than it gains by the first.",
        )
    if picture := plots.latencies(collection, main, look):
        yield figure(
            picture,
            f"{main} against latency on {collection.name}, a point for each system.",
            "Up is better, left is faster. A system is worth its time where no other stands above and left of it. "
            "Measured on the machine named at the top; another machine moves the points.",
        )
    if picture := plots.differences(collection, main):
        yield figure(
            picture,
            f"Per query differences in {main} between each reranker and {first} on {collection.name}.",
            f"One bar a query: how far the reranker is above (blue) or below (orange) {first}. The mean difference "
            "is the blue area less the orange one; the shape shows whether many queries gain a little, or a few gain "
            "much.",
        )


def _comparisons(collection: CollectionResult) -> Html:
    header: list[str | Column] = [
        "first − second",
        Column("first"),
        Column("second"),
        Column("difference", signed=True),
        Column("p", 4),
        Column("corrected p", 4),
        Column("wins", 0),
        Column("losses", 0),
        Column("ties", 0),
    ]
    rows: list[list[Cell]] = []
    for c in collection.comparisons:
        marked = (c.difference, _sign(c))
        rows.append(
            [f"{c.a} − {c.b}", c.mean_a, c.mean_b, marked, c.p, c.corrected_p, c.wins, c.losses, c.ties],
        )
    measures = listed(list(dict.fromkeys(c.measure for c in collection.comparisons)), 5)
    return table(
        header,
        rows,
        f"{measures}, two systems at a time over the same queries: paired randomisation test, p corrected by Holm's "
        "method for all comparisons of this table. Wins, losses and ties count queries of the first of the two.",
    )


def _extremes(collection: CollectionResult, system: SystemResult, measure: str) -> Iterator[Html]:
    """The queries that lose and win most; nothing where no query changes."""
    first = collection.systems[0].per_query
    pairs = [(query_id, first[query_id][measure], found[measure]) for query_id, found in system.per_query.items()]
    pairs = [pair for pair in pairs if math.isfinite(pair[2] - pair[1])]
    pairs.sort(key=lambda pair: (pair[2] - pair[1], pair[0]))
    lost = [pair for pair in pairs if pair[2] < pair[1]][:_EXTREMES]
    won = [pair for pair in reversed(pairs) if pair[2] > pair[1]][:_EXTREMES]
    difference = Column("difference", signed=True)
    header: list[str | Column] = ["query", Column(collection.first_stage), Column(system.name), difference]
    tables = [
        table(header, [[*pair, pair[2] - pair[1]] for pair in part], f"Queries that {what} most, {measure}.")
        for what, part in (("lose", lost), ("win", won))
        if part
    ]
    if tables:
        yield details(f"Queries where {system.name} loses and wins most against {collection.first_stage}", *tables)


def _guide(result: EvaluationResult) -> Iterator[Html]:
    """What a reader has to know who sees such a page for the first time."""
    explained: dict[str, str] = {
        "first stage": "The search that found the candidates. A reranker only puts them into another order.",
        "ceiling": "The measures of the same candidates in the best order there is. No reranker can bring back what "
        "the first stage did not find: up to the ceiling it is the reranker's part, beyond it the first stage's.",
    }
    for measure in result.measures:
        if text := _explained(measure):
            explained[measure] = text
    explained |= {
        "p": "How often a difference at least as large would come about if the two systems were equally good and only "
        "chance had given each query's two values to one or the other (paired randomisation test, two-sided).",
        "corrected p": "Many comparisons find differences by chance alone. Holm's correction raises p so that all "
        "comparisons of one collection together stay at the promised rate.",
        f"{_BETTER} and {_WORSE}": f"A corrected p under {SIGNIFICANT}. Were the systems all equally good, chance "
        f"would put such a mark anywhere on a collection in fewer than {number(100 * SIGNIFICANT, 0)} of 100 "
        "evaluations. No mark means that a difference is not shown, not that there is none.",
        "cut": "Texts that did not fit into the model and lost their end: what stood there was not read. Documents are "
        "counted once for every query that they are candidates of, and the percentage is of so many.",
    }
    systems = [system for collection in result.collections for system in collection.systems]
    if any(system.read_tokens is not None for system in systems):
        explained["tokens and calls"] = (
            "What one query took on average: how many tokens of documents the model read, those of a document that it "
            "read twice counted twice, and how many requests it was asked to rank."
        )
    if any(system.repaired for system in systems):
        explained["repaired"] = (
            "How many of the answers that the model wrote, over all queries, could not be taken as they were."
        )
    if any(system.order_tau is not None for system in systems):
        explained["order τ"] = (
            "How far the ranking depends on the order in which candidates are given: the same ones are ranked in three "
            "shuffled orders, and Kendall's tau compares the rankings. 1: the order does not matter; 0: two rankings "
            "agree no more than by chance."
        )
    yield facts(explained)


_MEASURES = {
    "nDCG": "Relevant documents count more the higher they stand in the first {k}, and graded relevance counts by its "
    "grade; 1 is the best order of all judged documents.",
    "RR": "One divided by the rank of the first relevant document; 0 where none is among the first {k}.",
    "P@1": "Whether the first document is relevant.",
    "P": "The share of the first {k} that is relevant.",
    "R": "The share of the relevant documents that is among the first {k}. Reranking {k} or fewer candidates cannot "
    "change it.",
    "AP": "The mean of the precision at the ranks of the relevant documents.",
    "Judged": "The share of the first {k} that anybody judged. An unjudged document counts as not relevant: where this "
    "is low, a system may be better than its other measures say, and where it differs between two systems, so does the "
    "harm. It is a warning, not a quality, and none is best.",
    "Success": "Whether a relevant document is among the first {k}.",
}


def _explained(measure: str) -> str | None:
    """One sentence on a measure, None for one that is not listed here."""
    name, _, cutoff = measure.partition("@")
    text = _MEASURES.get(measure) or _MEASURES.get(name.split("(")[0])
    if text is None:
        return None
    return text.format(k=cutoff) if cutoff else text.replace("the first {k}", "the ranking")
