"""Training requests: what `blockrank train` reads from JSON lines, and what `blockrank data` writes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blockrank.data.files import Source, json_objects, named, source_name
from blockrank.data.jsonl import as_request, json_text, positives_of
from blockrank.types import InputError, RankRequest
from blockrank.types.documents import check_readable, check_unique_ids, written_document


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """A request with what is known of its C candidates.

    positives: indices of the relevant ones; none where nothing is judged. teacher: a score for each candidate, or None.
    origins: where each candidate came from (`positive`, `bm25`, ...), or empty. group: requests of one group belong
    together, such as those of one page; empty where that is not known.
    """

    request: RankRequest
    positives: tuple[int, ...]
    teacher: tuple[float, ...] | None = None
    origins: tuple[str, ...] = ()
    group: str = ""

    @property
    def query(self) -> str:
        """The query's text."""
        return self.request.query

    @property
    def query_id(self) -> str:
        """The query's id."""
        return self.request.query_id

    def kept(self, indices: Sequence[int]) -> TrainingRequest:
        """The request of these candidates alone, in this order. All that is known of them comes along."""
        places = {index: place for place, index in enumerate(indices)}
        documents = self.request.candidates
        return TrainingRequest(
            replace(self.request, documents=[documents[index] for index in indices]),
            tuple(places[index] for index in self.positives if index in places),
            tuple(self.teacher[index] for index in indices) if self.teacher is not None else None,
            tuple(self.origins[index] for index in indices) if self.origins else (),
            self.group,
        )


def training_request(value: Mapping[str, Any], default_id: str, *, judged: bool = True) -> TrainingRequest:
    """The training request of one line. Raises `InputError`, without a place.

    judged: a request without positives is refused.
    """
    with named("not a training request"):
        request = as_request(value, default_id)
        check_readable(request.candidates)
        check_unique_ids(request.candidates)
        positives, count = positives_of(value, request), len(request.candidates)
    if judged and not positives:
        raise InputError(f"positives must list indices of documents (0..{count - 1}), at least one, each once.")
    origins = value.get("origins") or []
    if not isinstance(origins, list) or not all(isinstance(name, str) for name in origins):
        raise InputError("origins must list a name for each document.")
    if origins and len(origins) != count:
        raise InputError(f"origins has {len(origins)} names for {count} documents.")
    group = value.get("group")
    group = "" if group is None else str(group)
    return TrainingRequest(request, positives, _teacher(value, count), tuple(origins), group)


def _teacher(value: Mapping[str, Any], count: int) -> tuple[float, ...] | None:
    if "teacher" not in value:
        return None
    scores = value["teacher"]
    if not isinstance(scores, list) or not all(type(item) in (int, float) and math.isfinite(item) for item in scores):
        raise InputError("teacher must list a finite number for each document.")
    if len(scores) != count:
        raise InputError(f"teacher has {len(scores)} scores for {count} documents.")
    return tuple(scores)


def read_training_requests(source: Source, *, judged: bool = True) -> Iterator[TrainingRequest]:
    """Training requests of a JSON lines file, one at a time.

    Each line is as `read_requests` takes it, with `positives` (indices) or `answer_ids` (doc_ids) and optionally
    `teacher`, `origins` and `group`. judged: a request without positives is refused. Raises `InputError` on a broken
    line or a source without requests.
    """
    return (item for _, item in placed_training_requests(source, judged=judged))


def placed_training_requests(source: Source, *, judged: bool = True) -> Iterator[tuple[str, TrainingRequest]]:
    """The same requests, each after its place, `FILE:LINE`. Raises as `read_training_requests` does."""
    name, index = source_name(source), 0
    for number, value in json_objects(source):
        with named(where := f"{name}:{number}"):
            found = training_request(value, str(index), judged=judged)
        index += 1
        yield where, found
    if not index:
        raise InputError(f"{name}: there are no requests in it.")


def training_line(item: TrainingRequest) -> str:
    """One training request as a line of JSON, without a line end, that `read_training_requests` reads back as equal.

    Raises `InputError` on metadata that JSON cannot carry.
    """
    line: dict[str, Any] = {"query_id": item.query_id, "query": item.query}
    if item.group:
        line["group"] = item.group
    line["documents"] = [written_document(document) for document in item.request.candidates]
    line["positives"] = list(item.positives)
    if item.origins:
        line["origins"] = list(item.origins)
    if item.teacher is not None:
        line["teacher"] = list(item.teacher)
    return json_text(line)
