"""How training requests and their statistics look in a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from blockrank.cli.console import aligned, preview
from blockrank.data import TrainingRequest
from blockrank.mine import RequestStatistics, Spread

_SHOWN = 8  # candidates of an example


def statistics_lines(found: RequestStatistics) -> list[str]:
    """Statistics as aligned lines: a name, a value, and what to make of it."""
    rows = [
        ("requests", f"{found.requests}", f"{found.repeated_queries} repeat a query" if found.repeated_queries else ""),
        ("candidates", _spread(found.candidates), f"{found.distinct_documents} texts in {found.documents} places"),
        ("positives", _spread(found.positives), _judged(found)),
    ]
    if found.groups:
        rows.append(("groups", f"{found.groups}", ""))
    if found.origins:
        total = sum(found.origins.values())
        ordered = sorted(found.origins.items(), key=lambda item: -item[1])
        rows.append(("origins", ", ".join(f"{name} {count / total:.1%}" for name, count in ordered), ""))
    if found.unjudged < found.requests:
        titled = f"positives {found.titled_positives:.1%}, negatives {found.titled_negatives:.1%}"
        rows.append(("titled", titled, ""))
    if found.same_as_positive:
        rows.append(("equal texts", f"{found.same_as_positive} negatives have the text of a positive", ""))
    if found.taught:
        agrees = "" if found.teacher_agrees is None else f"its best is a positive in {found.teacher_agrees:.1%}"
        rows.append(("teacher", f"{found.taught} requests", agrees))
    rows += [
        (f"query {found.unit}", _spread(found.query_length), f"of {found.sampled} requests"),
        (f"document {found.unit}", _spread(found.document_length), "title and text"),
    ]
    if found.unjudged < found.requests:
        first = "not computed without blockrank[search]" if found.bm25_first is None else f"{found.bm25_first:.1%}"
        rows.append(("BM25 is right", first, f"a positive first among its candidates; by chance {found.chance:.1%}"))
    return aligned(rows)


def _judged(found: RequestStatistics) -> str:
    """Where positives stand, and how many requests have none."""
    if found.unjudged == found.requests:
        return "nothing is judged"
    unjudged = f"; requests without any: {found.unjudged}" if found.unjudged else ""
    return f"mean place {found.positive_place:.2f} (0.50 tells nothing){unjudged}"


def _spread(found: Spread) -> str:
    """One number where all are equal, else mean, median, 95 % and most."""
    if found.mean == found.most:
        return f"{found.most:g}"
    return f"mean {found.mean:.1f}, median {found.median:.0f}, 95 % {found.p95:.0f}, most {found.most:.0f}"


def example_lines(item: TrainingRequest) -> Iterator[str]:
    """A request: its query, and its candidates in order, the positives marked, with origin and teacher's score."""
    group = f"  (group {preview(item.group, 40)})" if item.group else ""
    yield f"{preview(item.query_id, 40)}  {preview(item.query)}{group}"
    documents = item.request.candidates
    shown = [index for index in range(len(documents)) if index < _SHOWN or index in item.positives]
    rows = []
    for index in shown:
        score = "" if item.teacher is None else f"{item.teacher[index]:.3f}"
        origin = item.origins[index] if item.origins else ""
        mark = "+" if index in item.positives else ""
        title = f"[{preview(documents[index].title, 30)}] " if documents[index].title else ""
        rows.append((mark, f"{index}", origin, score, title + preview(documents[index].text, 90)))
    yield from (f"  {line}" for line in aligned(rows, right=(1, 3)))
    if more := len(documents) - len(shown):
        yield f"  and {more} more"
