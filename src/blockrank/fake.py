"""`FakeRanker`: the public double for users' own tests. No model, no torch, the same types and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from blockrank.text.words import document_words, query_words, spans_of_words
from blockrank.types import Document, Evidence, InputError, Ranking, RankRequest, RequestRanker


def word_overlap(query: str, text: str) -> float:
    """Share of the query's distinct words that the text holds, in [0, 1]."""
    wanted, found = set(query_words(query)), set(document_words(text))
    return len(wanted & found) / len(wanted) if wanted else 0.0


def shared_words(query: str, document: Document) -> tuple[Evidence, ...]:
    """The words of a document that the query holds too, each with an equal share."""
    found = spans_of_words(document.content, set(query_words(query)).__contains__)
    return tuple(Evidence(*document.locate(*span), 1 / len(found)) for span in found)


class FakeRanker(RequestRanker):
    """Ranks by a plain function of query and text, word overlap unless told otherwise; scores sum to one.

    Accepts and refuses exactly what `Ranker` does, so that code under test meets the real types. Evidence, where a
    request asks for it, is the words shared with the query. `calls` records the requests that were ranked.
    """

    def __init__(self, score: Callable[[str, str], float] = word_overlap) -> None:
        self._score = score
        self.calls: list[RankRequest] = []

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        """Rank a stream of requests lazily, in order."""
        for request in requests:
            self.calls.append(request)
            documents = [request.candidates[index] for index in request.readable]
            raw = [float(self._score(request.query, document.content)) for document in documents]
            if min(raw) < 0:
                raise InputError("the score function of a FakeRanker must not be negative.")
            total = sum(raw)
            shares = [value / total for value in raw] if total else [1 / len(raw)] * len(raw)
            evidence = [shared_words(request.query, document) for document in documents]
            yield Ranking.from_scores(request, shares, evidence=evidence if request.evidence else None)
