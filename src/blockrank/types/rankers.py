"""The interface of every ranker, and that of a ranker with separate steps, which can be served."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from blockrank.types.documents import Document, DocumentLike, check_id
from blockrank.types.progress import CountProgress
from blockrank.types.rankings import Ranking
from blockrank.types.requests import RankRequest


class RequestRanker(ABC):
    """What every ranker offers: `rank` and `rank_many` over its own `rank_iter`.

    reads_tokens: whether a limit on the tokens of a document could change its rankings.
    """

    reads_tokens: ClassVar[bool] = True

    @abstractmethod
    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        """Rank a stream of requests lazily, in order."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything that decides the scores, JSON-ready: rankers with equal identities rank alike.

        Work is resumed only under an equal identity, and results are stored separately by it. A ranker over another
        gives `{"ranker": its name, its own settings ..., "of": inner.identity()}`.
        """

    def rank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        top_k: int | None = None,
        query_id: str | int = "0",
        *,
        evidence: bool = False,
    ) -> Ranking:
        """Rank the documents of one query; arguments as in `RankRequest`.

        Raises `InputError` on input that cannot be ranked.
        """
        return self.rank_many([RankRequest(query, documents, check_id(query_id, "query_id"), top_k, evidence)])[0]

    def rank_many(self, requests: Iterable[RankRequest]) -> list[Ranking]:
        """Rank many requests, in order; each result equals that of its request alone."""
        return list(self.rank_iter(requests))

    def rank_groups(self, groups: Iterable[Sequence[RankRequest]]) -> Iterator[list[Ranking]]:
        """Rank groups of requests lazily, in order; the rankings of a group depend on that group alone."""
        return map(self.rank_many, groups)

    def remember(self, documents: Sequence[Document], max_bytes: int, progress: CountProgress | None = None) -> bool:
        """Encode documents now, in so much memory, and reuse that in every later call, until `forget`.

        progress: called with how many are encoded, and all of them. Returns False, and does nothing, where nothing can
        be kept, as if nothing else is said.
        """
        del documents, max_bytes, progress
        return False

    def forget(self) -> None:  # noqa: B027  # what keeps nothing has nothing to drop
        """Drop what `remember` keeps."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Tokens that a document lost to the limit: its index in the request, and how many, maybe estimated."""

    index: int
    tokens: int
    is_estimate: bool = False


class Tokenised(Protocol):
    """A request that is ready to be scored: the attributes that code outside its ranker uses."""

    @property
    def length(self) -> int:
        """Tokens that scoring it reads."""

    @property
    def cuts(self) -> Sequence[Cut]:
        """The documents that lost tokens."""

    @property
    def query_cut(self) -> int:
        """Tokens that the query lost."""


class KeyCache(Protocol):
    """A ranker's cache of the documents that it has read, as a server monitors it."""

    @property
    def used_bytes(self) -> int:
        """Memory that it takes."""

    @property
    def hits(self) -> int:
        """Documents that were found in it."""

    @property
    def misses(self) -> int:
        """Documents that were not."""


@dataclass(frozen=True, slots=True)
class RankerFacts:
    """What a server plans with and shows.

    device: where scores are computed. forward_tokens: how many tokens of requests are best scored together.
    max_segment_tokens, max_query_tokens: limits of a document and of the query; None where there is none.
    """

    device: str = "cpu"
    forward_tokens: int = 32_768
    max_segment_tokens: int | None = None
    max_query_tokens: int | None = None


Ready = TypeVar("Ready", bound=Tokenised)
Scores = TypeVar("Scores")


class SteppedRanker(RequestRanker, Generic[Ready, Scores]):
    """A ranker whose steps can be called separately: what `blockrank.serve` puts behind HTTP.

    `tokenise` and `ranking` are called in any thread, also at the same time; `score` in one thread per device. `Ready`
    is what `tokenise` makes of a request, `Scores` what `score` finds for it; no other code reads their contents.
    """

    @abstractmethod
    def tokenise(
        self,
        request: RankRequest,
        max_segment_tokens: int | None = None,
        between: Callable[[], None] | None = None,
    ) -> Ready:
        """Make a request ready to be scored. Raises `InputError` where it cannot be.

        max_segment_tokens: a limit on documents for this request alone, if lower than the ranker's own. between: called
        from time to time; an exception from it ends the work.
        """

    @abstractmethod
    def score(
        self,
        requests: Sequence[RankRequest],
        tokenised: Sequence[Ready],
        between: Callable[[], None] | None = None,
    ) -> list[Scores]:
        """Score requests together, each as it would be alone; raises `CapacityError` where memory does not suffice.

        between: called between the parts of the work, if it has several; an exception from it ends the work.
        """

    @abstractmethod
    def ranking(self, request: RankRequest, tokenised: Ready, scored: Scores) -> Ranking:
        """The ranking of a request from its scores. Raises `ModelError` where they are none."""

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        """Rank a stream of requests lazily, in order: step after step, one request after the other."""
        for request in requests:
            tokenised = self.tokenise(request)
            yield self.ranking(request, tokenised, self.score([request], [tokenised])[0])

    def on_each_device(self) -> Sequence[SteppedRanker[Ready, Scores]]:
        """A ranker for each device, each to score in a thread of its own."""
        return (self,)

    @property
    def facts(self) -> RankerFacts:
        """What a server plans with and shows."""
        return RankerFacts()

    def reuse(self, max_bytes: int) -> KeyCache | None:
        """Cache what is computed for documents, for later requests, in at most `max_bytes`; None where nothing is
        cached."""
        del max_bytes
        return None


ServedRanker = SteppedRanker[Any, Any]  # for code that does not depend on the types passed between its steps
