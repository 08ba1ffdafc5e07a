"""What every ranker offers; and what one offers whose steps can be told apart, so that it can be served."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from blockrank.types.documents import Document, DocumentLike, check_id
from blockrank.types.progress import CountProgress
from blockrank.types.rankings import Ranking
from blockrank.types.requests import RankRequest


class RequestRanker(ABC):
    """What every ranker offers: `rank` and `rank_many` over its own `rank_iter`."""

    @abstractmethod
    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        """Rank a stream of requests lazily, in order."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything that decides the scores, ready for JSON: rankers of equal identity rank alike.

        Work that is resumed goes on only under an equal one, and results are kept apart by it. A ranker over another
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
        """Rank groups of requests lazily, in order; what a group gets depends on that group alone."""
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
    """What a document lost to the limit: its index in the request, and how many tokens, maybe estimated."""

    index: int
    tokens: int
    is_estimate: bool = False


class Tokenised(Protocol):
    """A request that is ready to be scored, as far as others than its ranker look at it."""

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
    """What a ranker keeps of documents that it has read, as a server watches it."""

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
    """A ranker whose steps can be told apart: what `blockrank.serve` puts behind HTTP.

    `tokenise` and `ranking` are called in any thread, also at the same time; `score` in one thread per device. `Ready`
    is what `tokenise` makes of a request, `Scores` what `score` finds for it; nobody else looks into these.
    """

    @abstractmethod
    def tokenise(
        self,
        request: RankRequest,
        max_segment_tokens: int | None = None,
        between: Callable[[], None] | None = None,
    ) -> Ready:
        """Make a request ready to be scored. Raises `InputError` where it cannot be.

        max_segment_tokens: a limit on documents for this request alone; it acts where it is below the ranker's own.
        between: called now and then; what it raises ends the work.
        """

    @abstractmethod
    def score(
        self,
        requests: Sequence[RankRequest],
        tokenised: Sequence[Ready],
        between: Callable[[], None] | None = None,
    ) -> list[Scores]:
        """Score requests together, each as it would be alone; raises `CapacityError` where memory does not suffice.

        between: called between the parts of the work, if it has several; what it raises ends the work.
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
        """Keep what was computed of documents for later requests, in so much memory; None where nothing is kept."""
        del max_bytes
        return None


ServedRanker = SteppedRanker[Any, Any]  # for those to whom it is all the same what its steps hand on
