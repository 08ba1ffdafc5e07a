"""The strategy seam: a ranker that asks another one, for few candidates at once or more than once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any, ClassVar

from blockrank.configfile import check_fields
from blockrank.errors import InputError
from blockrank.types import RankedDocument, Ranking, RankRequest, RequestRanker

_REQUESTS = 64  # under way at once: what they ask for next shares forwards


@dataclass(frozen=True, slots=True)
class Ask:
    """What a strategy wants ranked next, all of it at once. ranker: by whom; the strategy's own if left out."""

    requests: Sequence[RankRequest]
    ranker: RequestRanker | None = None


Steps = Generator[Ask, list[Ranking], Ranking]


@dataclass
class Strategy(RequestRanker):
    """Ranks by asking another ranker.

    A subclass is a dataclass: it sets `name`, has its settings as fields, which need defaults, and writes `steps`.
    ranker: the one that is asked; a strategy too, if need be.
    """

    name: ClassVar[str]
    ranker: RequestRanker

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def steps(self, request: RankRequest) -> Steps:
        """The way of one request: yields what is to be ranked, receives the rankings, and returns the request's own.

        `part` makes a request of some of its candidates, `merged` a ranking of entries of the rankings received.
        """

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        """Rank a stream of requests lazily, in order. Many are under way at once, and what they ask for is asked
        together."""
        stream = iter(requests)
        while window := list(islice(stream, _REQUESTS)):
            yield from self._rank_together(window)

    def _rank_together(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        ways = {place: self.steps(request) for place, request in enumerate(requests)}
        found: dict[int, Ranking] = {}
        lost = dict.fromkeys(ways, 0)  # most tokens that a request's query lost anywhere
        repaired = dict.fromkeys(ways, 0)
        answers: dict[int, list[Ranking]] = {}
        while len(found) < len(ways):
            asked: dict[int, Ask] = {}
            for place in sorted(ways.keys() - found.keys()):
                try:
                    asked[place] = ways[place].send(answers[place]) if place in answers else next(ways[place])
                except StopIteration as end:
                    whole = replace(end.value, query_cut_tokens=max(end.value.query_cut_tokens, lost[place]))
                    found[place] = _with_repaired(whole, repaired[place])
            answers = self._answers(asked)
            repaired |= {at: repaired[at] + sum(item.repaired for item in got) for at, got in answers.items()}
            lost |= {at: max(lost[at], *(item.query_cut_tokens for item in got)) for at, got in answers.items()}
        return [found[place] for place in range(len(requests))]

    def _answers(self, asked: dict[int, Ask]) -> dict[int, list[Ranking]]:
        """The rankings that each request has asked for: one call of each ranker for all of them."""
        answers: dict[int, list[Ranking]] = {}
        rankers = {id(ranker): ranker for ranker in (ask.ranker or self.ranker for ask in asked.values())}
        for ranker in rankers.values():
            those = {place: ask for place, ask in asked.items() if (ask.ranker or self.ranker) is ranker}
            rankings = iter(ranker.rank_many([request for ask in those.values() for request in ask.requests]))
            answers |= {place: list(islice(rankings, len(ask.requests))) for place, ask in those.items()}
        return answers

    def identity(self) -> dict[str, Any]:
        """What decides its rankings: its name, its settings, and the identity of each ranker that it asks."""
        settings = {item.name: getattr(self, item.name) for item in fields(self)[1:]}
        named = {key: _identity(value) for key, value in settings.items()}
        return {"ranker": self.name, **named, "of": _identity(self.ranker)}


def _with_repaired(ranking: Ranking, repaired: int) -> Ranking:
    """A ranking that says how many of the model's answers behind it had to be repaired; one that is itself such an
    answer says so already."""
    told = ranking.repaired or not repaired
    sentence = f"answers of the model that could not be taken as they were: {repaired}; the log says more."
    return replace(ranking, repaired=repaired, warnings=ranking.warnings if told else (*ranking.warnings, sentence))


def _identity(value: Any) -> Any:
    return value.identity() if isinstance(value, RequestRanker) else value


def part(request: RankRequest, indices: Sequence[int]) -> RankRequest:
    """A request for some of the candidates, which have a readable character, in the order given; all are ranked."""
    return replace(request, documents=[request.candidates[index] for index in indices], top_k=None)


def merged(request: RankRequest, order: Iterable[tuple[int, RankedDocument]]) -> Ranking:
    """The ranking of a request from entries of rankings of its parts, best first, each with its index in the request.

    Scores are minus the rank: those of different prompts do not compare. Tokens, cuts and evidence stay what they were
    in the entry. Candidates that are left out, or of which no token was read, come last. Raises `InputError` where one
    is there twice.
    """
    found = list(order)
    if len({index for index, _ in found}) < len(found):
        raise InputError(f"query_id {request.query_id!r}: the merged order holds a document twice.")
    are_counted = any(entry.tokens for _, entry in found)  # a ranker that reads no tokens counts none
    read = [(index, entry) for index, entry in found if entry.tokens or not are_counted]
    indices, entries = [index for index, _ in read], [entry for _, entry in read]
    return Ranking.from_scores(
        request,
        [-float(rank) for rank in range(1, len(indices) + 1)],
        [entry.tokens for entry in entries],
        [entry.cut_tokens for entry in entries],
        evidence=[entry.evidence for entry in entries],
        read=indices,
        estimated=[entry.cut_is_estimate for entry in entries],
        kind="order",
    )
