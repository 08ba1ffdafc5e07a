"""The strategy seam: a ranker that asks another one, for few candidates at once or more than once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from random import Random
from typing import Any, ClassVar

from blockrank.configfile import check_fields
from blockrank.errors import InputError
from blockrank.layout import plan_batches
from blockrank.types import (
    Cut,
    Document,
    KeyCache,
    RankedDocument,
    RankerFacts,
    Ranking,
    RankRequest,
    RequestRanker,
    ScoreKind,
    ServedRanker,
    SteppedRanker,
)
from blockrank.types.progress import CountProgress
from blockrank.types.requests import one_by_one

_REQUESTS = 64  # under way at once: what they ask for next shares forwards
_CHARS_PER_TOKEN = 4  # for an estimate where the asked ranker counts no tokens


@dataclass(frozen=True, slots=True)
class Ask:
    """What a strategy wants ranked next, all of it at once. ranker: by whom; the strategy's own if left out."""

    requests: Sequence[RankRequest]
    ranker: RequestRanker | None = None


Steps = Generator[Ask, list[Ranking], Ranking]
Entry = tuple[int, RankedDocument]  # of a ranking of a part, with its document's index in the request
_Rank = Callable[[RequestRanker, list[tuple[int, RankRequest]]], list[Ranking]]  # of requests asked for, by place


@dataclass(frozen=True, slots=True)
class StrategyTokens:
    """What is known of a request before a strategy ranks it: a `Tokenised`. limit: on its documents, for it alone."""

    length: int
    cuts: tuple[Cut, ...] = ()
    query_cut: int = 0
    limit: int | None = None


@dataclass
class Strategy(SteppedRanker[StrategyTokens, Ranking]):
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

        `part` makes a request of some of its candidates, `placed` tells which document of the request an entry of such
        a part's ranking is, and `merged` makes a ranking of these entries.
        """

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        """Rank a stream of requests lazily, in order. Many are under way at once, and what they ask for is asked
        together."""
        stream = iter(requests)
        while window := list(islice(stream, _REQUESTS)):
            yield from self._rank_together(window, _rank_many)

    def tokenise(
        self,
        request: RankRequest,
        max_segment_tokens: int | None = None,
        between: Callable[[], None] | None = None,
    ) -> StrategyTokens:
        """See `SteppedRanker.tokenise`. The length counts each document once, in a prompt of its own: how often it
        will be read is known afterwards, see `Ranking.read_tokens`."""
        if isinstance(self.ranker, Strategy):
            return self.ranker.tokenise(request, max_segment_tokens, between)
        if not isinstance(self.ranker, SteppedRanker):
            length = sum(len(document.content) for document in request.candidates) // _CHARS_PER_TOKEN
            return StrategyTokens(length, limit=max_segment_tokens)
        length, query_cut, cuts = 0, 0, list[Cut]()
        for index, pair in one_by_one(request):
            found = self.ranker.tokenise(pair, max_segment_tokens, between)
            length, query_cut = length + found.length, max(query_cut, found.query_cut)
            cuts += [replace(cut, index=index) for cut in found.cuts if cut.index]
        return StrategyTokens(length, tuple(cuts), query_cut, max_segment_tokens)

    def score(
        self,
        requests: Sequence[RankRequest],
        tokenised: Sequence[StrategyTokens],
        between: Callable[[], None] | None = None,
    ) -> list[Ranking]:
        """See `SteppedRanker.score`: this is the ranking itself."""
        return self._rank_together(requests, partial(_rank_in_steps, [item.limit for item in tokenised], between))

    def ranking(self, request: RankRequest, tokenised: StrategyTokens, scored: Ranking) -> Ranking:
        """See `SteppedRanker.ranking`."""
        del request, tokenised
        return scored

    def on_each_device(self) -> Sequence[Strategy]:
        """See `SteppedRanker.on_each_device`: over each of the rankers that it asks, on that device."""
        asked = {item.name: getattr(self, item.name) for item in fields(self)}
        each = {name: ranker.on_each_device() for name, ranker in asked.items() if isinstance(ranker, SteppedRanker)}
        devices = zip(*each.values(), strict=False)  # as many as all of them are on
        return [replace(self, **dict(zip(each, rankers, strict=True))) for rankers in devices] or [self]

    @property
    def facts(self) -> RankerFacts:
        """See `SteppedRanker.facts`: those of the ranker that is asked."""
        return self.ranker.facts if isinstance(self.ranker, SteppedRanker) else RankerFacts()

    def reuse(self, max_bytes: int) -> KeyCache | None:
        """See `SteppedRanker.reuse`: what the ranker that is asked keeps."""
        return self.ranker.reuse(max_bytes) if isinstance(self.ranker, SteppedRanker) else None

    def _rank_together(self, requests: Sequence[RankRequest], rank: _Rank) -> list[Ranking]:
        """The rankings of requests that are under way at once."""
        ways = {place: _Way(self.steps(request)) for place, request in enumerate(requests)}
        found: dict[int, Ranking] = {}
        while len(found) < len(ways):
            asked: dict[int, Ask] = {}
            for place in sorted(ways.keys() - found.keys()):
                wanted = ways[place].go_on()
                if isinstance(wanted, Ask):
                    asked[place] = wanted
                else:
                    found[place] = wanted
            for place, rankings in self._answers(asked, rank).items():
                ways[place].take(rankings)
        return [found[place] for place in range(len(requests))]

    def _answers(self, asked: dict[int, Ask], rank: _Rank) -> dict[int, list[Ranking]]:
        """The rankings that each request has asked for: one call of each ranker for all of them."""
        answers: dict[int, list[Ranking]] = {}
        rankers = {id(ranker): ranker for ranker in (ask.ranker or self.ranker for ask in asked.values())}
        for ranker in rankers.values():
            those = {place: ask for place, ask in asked.items() if (ask.ranker or self.ranker) is ranker}
            rankings = iter(rank(ranker, [(place, one) for place, ask in those.items() for one in ask.requests]))
            answers |= {place: list(islice(rankings, len(ask.requests))) for place, ask in those.items()}
        return answers

    def remember(self, documents: Sequence[Document], max_bytes: int, progress: CountProgress | None = None) -> bool:
        """See `RequestRanker.remember`: each ranker that is asked has an equal part of the memory, and reports progress
        in its turn. Returns whether any of them keeps something."""
        rankers = self._asked()
        kept = [ranker.remember(documents, max_bytes // len(rankers), progress) for ranker in rankers]
        return any(kept)

    def forget(self) -> None:
        """Drop what `remember` keeps."""
        for ranker in self._asked():
            ranker.forget()

    def _asked(self) -> list[RequestRanker]:
        """The rankers under it that are no strategies, each once: two strategies under it may ask the same."""
        values = [getattr(self, item.name) for item in fields(self)]
        rankers = [value for value in values if isinstance(value, RequestRanker)]
        leaves = [leaf for item in rankers for leaf in (item._asked() if isinstance(item, Strategy) else [item])]
        return list({id(leaf): leaf for leaf in leaves}.values())

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


class _Way:
    """A request under way: its steps, the answers to what it has asked for, and what these took."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._answers: list[Ranking] | None = None
        self._calls = self._read_tokens = self._query_cut = self._repaired = 0

    def go_on(self) -> Ask | Ranking:
        """What it asks for next, or its ranking at the end."""
        try:
            return next(self._steps) if self._answers is None else self._steps.send(self._answers)
        except StopIteration as end:
            ranking: Ranking = end.value
            query_cut = max(ranking.query_cut_tokens, self._query_cut)  # the most that it lost anywhere
            found = replace(ranking, query_cut_tokens=query_cut, calls=self._calls, read_tokens=self._read_tokens)
            return _with_repaired(found, self._repaired)

    def take(self, answers: list[Ranking]) -> None:
        """Take the rankings of what it has asked for."""
        self._answers = answers
        self._calls += sum(ranking.calls for ranking in answers)
        self._read_tokens += sum(ranking.read_tokens for ranking in answers)
        self._repaired += sum(ranking.repaired for ranking in answers)
        self._query_cut = max(self._query_cut, *(ranking.query_cut_tokens for ranking in answers), 0)


def _rank_many(ranker: RequestRanker, asked: list[tuple[int, RankRequest]]) -> list[Ranking]:
    return ranker.rank_many([request for _, request in asked])


def _rank_in_steps(
    limits: Sequence[int | None],
    between: Callable[[], None] | None,
    ranker: RequestRanker,
    asked: list[tuple[int, RankRequest]],
) -> list[Ranking]:
    """Rank as `rank_many` does, with a limit on the documents of each request, and `between` between the forwards."""
    requests, limited = [request for _, request in asked], [limits[place] for place, _ in asked]
    if not isinstance(ranker, SteppedRanker):
        if ranker.reads_tokens and any(limit is not None for limit in limited):
            raise InputError(f"max_segment_tokens cannot be set for a request: {type(ranker).__name__} takes no limit.")
        return ranker.rank_many(requests)
    return [*_in_forwards(ranker, requests, limited, between)]


def _in_forwards(
    ranker: ServedRanker, requests: list[RankRequest], limits: list[int | None], between: Callable[[], None] | None
) -> Iterator[Ranking]:
    """The steps of a ranker, for as many requests to a forward as is best on its device."""
    tokenised = [ranker.tokenise(request, limit, between) for request, limit in zip(requests, limits, strict=True)]
    for batch in plan_batches([item.length for item in tokenised], ranker.facts.forward_tokens):
        if between is not None:
            between()
        scored = ranker.score(requests[batch], tokenised[batch], between)
        yield from map(ranker.ranking, requests[batch], tokenised[batch], scored)


def part(request: RankRequest, indices: Sequence[int]) -> RankRequest:
    """A request for some of the candidates, which have a readable character, in the order given; all are ranked."""
    return replace(request, documents=[request.candidates[index] for index in indices], top_k=None)


def placed(request: RankRequest, indices: Sequence[int], ranking: Ranking) -> list[Entry]:
    """The entries of the ranking of a part, best first, each with its document's index in the request.

    indices: those that the part was made of; each comes once, whatever ranked them. One that the ranking holds twice
    counts where it is first; those that it leaves out come last, with its lowest score and no token read.
    """
    found: dict[int, RankedDocument] = {}
    for entry in ranking:
        if 0 <= entry.index < len(indices):
            found.setdefault(indices[entry.index], entry)
    lowest = min((entry.score for entry in ranking), default=0.0)
    for place, index in enumerate(indices):
        found.setdefault(index, RankedDocument(0, lowest, place, request.candidates[index]))
    return list(found.items())


def randomness(request: RankRequest, seed: int) -> Random:
    """A source of random numbers that is always the same for a seed and a query, whatever was ranked before it.

    Not for its id: a server gives the same query another one each time.
    """
    return Random(f"{seed} {request.query}")  # noqa: S311  # it shuffles, and keeps no secret


def merged(
    request: RankRequest,
    order: Iterable[Entry],
    *,
    rest: Iterable[Entry] = (),
    scores: Mapping[int, float] | None = None,
    kind: ScoreKind = "order",
) -> Ranking:
    """The ranking of a request from entries of rankings of its parts, best first, each with its index in the request.

    Scores are minus the rank: those of different prompts do not compare. rest: candidates that the ranker was not asked
    about, which follow. scores, kind: by index, where they do compare; these decide the order then, and candidates
    without one are `Ranking.unscored`. Tokens, cuts and evidence stay what they were in the entry. Candidates that are
    left out, or of which it read no token, come last. Raises `InputError` where one is there twice.
    """
    found, others = list(order), list(rest)
    if len({index for index, _ in found + others}) < len(found + others):
        raise InputError(f"query_id {request.query_id!r}: the merged order holds a document twice.")
    are_counted = any(entry.tokens for _, entry in found)  # a ranker that reads no tokens counts none
    read = [(index, entry) for index, entry in found if entry.tokens or not are_counted] + others
    indices, entries = [index for index, _ in read], [entry for _, entry in read]
    return Ranking.from_scores(
        request,
        [-float(rank) if scores is None else scores.get(index, 0.0) for rank, index in enumerate(indices, start=1)],
        [entry.tokens for entry in entries],
        [entry.cut_tokens for entry in entries],
        evidence=[entry.evidence for entry in entries],
        read=indices,
        estimated=[entry.cut_is_estimate for entry in entries],
        kind=kind,
        unscored=[] if scores is None else [index for index in indices if index not in scores],
    )
