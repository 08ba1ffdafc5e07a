"""`FakeRanker`: the public double for users' own tests. No model, no torch, the same types and errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from blockrank.text.words import document_words, query_words, spans_of_words
from blockrank.types import Cut, Document, Evidence, InputError, RankerFacts, Ranking, RankRequest, SteppedRanker

_WORD = re.compile(r"\S+")


def word_overlap(query: str, text: str) -> float:
    """Share of the query's distinct words that the text holds, in [0, 1]."""
    wanted, found = set(query_words(query)), set(document_words(text))
    return len(wanted & found) / len(wanted) if wanted else 0.0


def shared_words(query: str, document: Document) -> tuple[Evidence, ...]:
    """The words of a document that the query holds too, each with an equal share."""
    found = spans_of_words(document.content, set(query_words(query)).__contains__)
    return tuple(Evidence(*document.locate(*span), 1 / len(found)) for span in found)


def _function_name(function: Callable[..., Any]) -> str:
    """Module, name and, of a function in Python, the line, which tells lambdas apart."""
    code = getattr(function, "__code__", None)
    named = function if hasattr(function, "__qualname__") else type(function)
    name = f"{getattr(named, '__module__', None) or 'builtins'}.{named.__qualname__}"
    return name if code is None else f"{name}:{code.co_firstlineno}"


@dataclass(frozen=True, slots=True)
class FakeTokens:
    """A request as words: contents of its readable documents, cut to the limit, and what each has of words."""

    contents: tuple[str, ...]
    words: tuple[int, ...]
    cuts: tuple[Cut, ...] = ()
    length: int = 0
    query_cut: int = 0


class FakeRanker(SteppedRanker[FakeTokens, list[float]]):
    """Ranks by a plain function of query and text, word overlap unless told otherwise; scores sum to one.

    Accepts and refuses exactly what `Ranker` does, so that code under test meets the real types, and can be served in
    its place. A token is a word; where there is a limit, `max_segment_tokens`, documents are cut to it. Evidence, where
    a request asks for it, is the words shared with the query. `calls` records the requests that were ranked.
    """

    def __init__(
        self, score: Callable[[str, str], float] = word_overlap, max_segment_tokens: int | None = None
    ) -> None:
        self._score, self._limit = score, max_segment_tokens
        self.calls: list[RankRequest] = []

    def identity(self) -> dict[str, Any]:
        """See `RequestRanker.identity`: its name, and what it was given; values that a function holds of its
        own are for a subclass to tell."""
        found: dict[str, Any] = {"ranker": type(self).__name__}
        if self._score is not word_overlap:
            found["score"] = _function_name(self._score)
        return found if self._limit is None else found | {"max_segment_tokens": self._limit}

    @property
    def facts(self) -> RankerFacts:
        """See `SteppedRanker.facts`."""
        return RankerFacts(max_segment_tokens=self._limit)

    def tokenise(
        self,
        request: RankRequest,
        max_segment_tokens: int | None = None,
        between: Callable[[], None] | None = None,
    ) -> FakeTokens:
        """See `SteppedRanker.tokenise`."""
        limit = min((item for item in (self._limit, max_segment_tokens) if item is not None), default=None)
        contents, counts, cuts = [], [], []
        for index in request.readable:
            if between is not None:
                between()
            content = request.candidates[index].content
            words = list(_WORD.finditer(content))
            kept = words[:limit]
            if len(kept) < len(words):
                content = content[: kept[-1].end()]
                cuts.append(Cut(index, len(words) - len(kept)))
            contents.append(content)
            counts.append(len(kept))
        length = sum(counts) + len(request.query.split())
        return FakeTokens(tuple(contents), tuple(counts), tuple(cuts), length)

    def score(
        self,
        requests: Sequence[RankRequest],
        tokenised: Sequence[FakeTokens],
        between: Callable[[], None] | None = None,
    ) -> list[list[float]]:
        """See `SteppedRanker.score`."""
        del between  # it has one part
        self.calls += requests
        return [self._shares(*pair) for pair in zip(requests, tokenised, strict=True)]

    def _shares(self, request: RankRequest, tokenised: FakeTokens) -> list[float]:
        raw = [float(self._score(request.query, content)) for content in tokenised.contents]
        if min(raw) < 0:
            raise InputError("the score function of a FakeRanker must not be negative.")
        total = sum(raw)
        return [value / total for value in raw] if total else [1 / len(raw)] * len(raw)

    def ranking(self, request: RankRequest, tokenised: FakeTokens, scored: list[float]) -> Ranking:
        """See `SteppedRanker.ranking`."""
        lost = {cut.index: cut.tokens for cut in tokenised.cuts}
        evidence = None
        if request.evidence:
            evidence = [shared_words(request.query, request.candidates[index]) for index in request.readable]
        cut_tokens = [lost.get(index, 0) for index in request.readable]
        return Ranking.from_scores(request, scored, tokenised.words, cut_tokens, evidence=evidence)
