"""Statistics of a file of training requests: counts over all of it, lengths and BM25 over a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from blockrank.data import TrainingRequest
from blockrank.mine.pool import document_key, text_key
from blockrank.retrieve import Bm25Index
from blockrank.types import Document, MissingExtraError

Measure = Callable[[str], int]  # length of a text
SAMPLE = 1000


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, median, 95th percentile and largest of some numbers."""

    mean: float
    median: float
    p95: float
    most: float

    @classmethod
    def of(cls, values: Sequence[int]) -> Spread:
        """The spread of at least one number."""
        return cls(
            float(np.mean(values)), float(np.median(values)), float(np.percentile(values, 95)), float(max(values))
        )


@dataclass(frozen=True, slots=True)
class RequestStatistics:
    """Statistics of training requests.

    repeated_queries: requests whose query occurred before, ignoring case and white space. unjudged: requests without
    positives, which are left out of all statistics of positives. documents, distinct_documents:
    candidates in all, and by their texts. same_as_positive: negatives with the text of a positive of their request.
    positive_place: mean place of the positives among the candidates, from 0 to 1; at 0.5 places reveal nothing.
    origins: candidates by origin. titled_positives, titled_negatives: shares with a title, by which a model could tell
    them apart. taught: requests with teacher scores; teacher_agrees: share of those whose best document is a positive,
    None if none has positives.

    Of a sample of at most `SAMPLE` requests: query_length and document_length in `unit`; bm25_first: share in which
    BM25 puts a positive before every negative (None without the extra), chance: the same for a random order.
    """

    requests: int
    repeated_queries: int
    unjudged: int
    groups: int
    documents: int
    distinct_documents: int
    candidates: Spread
    positives: Spread
    same_as_positive: int
    positive_place: float
    origins: dict[str, int]
    titled_positives: float
    titled_negatives: float
    taught: int
    teacher_agrees: float | None
    sampled: int
    unit: str
    query_length: Spread
    document_length: Spread
    bm25_first: float | None
    chance: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


class StatisticsCollector:
    """Takes training requests one at a time. Memory holds a key for each query and text, and a sample of the
    requests."""

    def __init__(self, seed: int = 0, sample: int = SAMPLE) -> None:
        self._generator, self._most = np.random.default_rng(seed), sample
        self._sample: list[TrainingRequest] = []
        self._queries: set[int] = set()
        self._texts: set[int] = set()
        self._groups: set[str] = set()
        self._sizes: list[int] = []
        self._positives: list[int] = []
        self._origins: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._places = 0.0

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, item: TrainingRequest) -> None:
        """Take one request."""
        documents, positives = item.request.candidates, set(item.positives)
        keys = [document_key(document) for document in documents]
        self._queries.add(text_key(item.query))
        self._texts.update(keys)
        self._groups.add(item.group)
        self._sizes.append(len(documents))
        self._positives.append(len(positives))
        self._origins.update(item.origins)
        of_positives = {keys[index] for index in positives}
        for index, document in enumerate(documents):
            kind = "positives" if index in positives else "negatives"
            self._counts[f"titled {kind}"] += bool(document.title)
            self._counts["same"] += kind == "negatives" and keys[index] in of_positives
        self._counts["judged"] += bool(positives)
        self._places += sum(positives) / max(len(positives), 1) / max(len(documents) - 1, 1)
        if item.teacher is not None:
            self._counts["taught"] += 1
            self._counts["taught judged"] += bool(positives)
            self._counts["agrees"] += int(np.argmax(item.teacher)) in positives
        self._keep(item)

    def _keep(self, item: TrainingRequest) -> None:
        """Reservoir sampling: each request is in the sample with equal probability."""
        if len(self._sample) < self._most:
            self._sample.append(item)
        elif (place := int(self._generator.integers(len(self._sizes)))) < self._most:
            self._sample[place] = item

    def result(self, measure: Measure | None = None, unit: str = "words") -> RequestStatistics:
        """The statistics of at least one request. measure: length of a text, by default in words; unit: its name."""
        measure = measure or count_words
        total, positives, counts = sum(self._sizes), sum(self._positives), self._counts
        sampled, judged = self._sample, [item for item in self._sample if item.positives]
        texts = [document.content for item in sampled for document in item.request.candidates]
        return RequestStatistics(
            requests=len(self._sizes),
            repeated_queries=len(self._sizes) - len(self._queries),
            unjudged=len(self._sizes) - counts["judged"],
            groups=len(self._groups - {""}),
            documents=total,
            distinct_documents=len(self._texts),
            candidates=Spread.of(self._sizes),
            positives=Spread.of(self._positives),
            same_as_positive=counts["same"],
            positive_place=self._places / max(counts["judged"], 1),
            origins=dict(self._origins),
            titled_positives=counts["titled positives"] / max(positives, 1),
            titled_negatives=counts["titled negatives"] / max(total - positives, 1),
            taught=counts["taught"],
            teacher_agrees=counts["agrees"] / counts["taught judged"] if counts["taught judged"] else None,
            sampled=len(sampled),
            unit=unit,
            query_length=Spread.of([measure(item.query) for item in sampled]),
            document_length=Spread.of([measure(text) for text in texts]),
            bm25_first=bm25_first(judged) if judged else None,
            chance=sum(len(item.positives) / len(item.request.candidates) for item in judged) / max(len(judged), 1),
        )


def count_words(text: str) -> int:
    """Words between white space."""
    return len(text.split())


def bm25_first(items: Sequence[TrainingRequest]) -> float | None:
    """Share of requests in which a positive has a higher BM25 score than every negative, None without the extra.

    Document frequencies are computed over all candidates of all `items`.
    """
    places: dict[str, int] = {}
    for item in items:
        for document in item.request.candidates:
            places.setdefault(document.content, len(places))
    try:
        index = Bm25Index.build(Document(text, str(place)) for text, place in places.items())
    except MissingExtraError:
        return None
    first = 0
    for item in items:
        scores = dict(index.positions(item.query, len(places)))
        found = [scores.get(places[document.content], 0.0) for document in item.request.candidates]
        others = [score for at, score in enumerate(found) if at not in item.positives]
        first += max(found[at] for at in item.positives) > max(others, default=0.0)
    return first / len(items)
