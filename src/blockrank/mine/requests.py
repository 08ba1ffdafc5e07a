"""Training requests from a judged source: positives, drawn negatives, in random order."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.random import Generator

from blockrank.data import TrainingRequest
from blockrank.mine.denoise import DropRule
from blockrank.mine.encoder import CachingEncoder, nearest
from blockrank.mine.judged import Judged, JudgedQuery
from blockrank.mine.negatives import Finder, Negatives, RequestPlan, bm25_finder, table_finder
from blockrank.mine.teach import Teacher, teach
from blockrank.retrieve import Bm25Index
from blockrank.types import InputError, RankRequest
from blockrank.types.progress import NamedProgress

POSITIVE = "positive"
_SPARE = 0.5  # share of extra negatives to draw if a rule may drop some


class RequestMaker:
    """The training requests of a source, made lazily; the same seed gives the same requests.

    encoder: for the negatives `dense`. rule, teacher: negatives that the rule drops by the teacher's scores are
    replaced by further ones; the scores are kept with the requests. A rule needs a teacher. counts: after iteration,
    `requests`, negatives `scored` and `dropped`, negatives `filled` (in place of a kind that ran out), `short` requests
    (fewer candidates than asked for), queries `left out` (no negative).

    Raises `InputError` where the pool has fewer distinct documents than a request, or a kind of negatives lacks its
    encoder or other input; `MissingExtraError` without the extra.
    """

    def __init__(
        self,
        judged: Judged,
        plan: RequestPlan,
        *,
        encoder: CachingEncoder | None = None,
        teacher: Teacher | None = None,
        rule: DropRule | None = None,
        progress: NamedProgress | None = None,
    ) -> None:
        assert rule is None or teacher is not None, "a rule needs a teacher"
        if (distinct := judged.pool.distinct()) < plan.candidates:
            raise InputError(
                f"{judged.source} has {distinct} distinct documents with text, fewer than the {plan.candidates} "
                "candidates of a request."
            )
        for kind, has_some in (
            ("given", any(query.given for query in judged.queries)),
            ("siblings", any(query.group for query in judged.queries)),
            ("dense", encoder is not None),
        ):
            if kind in plan.negatives and not has_some:
                lacks = {"given": "names no negatives", "siblings": "has no groups"}.get(kind, "no encoder is given")
                subject = "" if kind == "dense" else f"{judged.source} "
                raise InputError(f"negatives asks for {kind}, but {subject}{lacks}.")
        self._judged, self._plan, self._teacher, self._rule = judged, plan, teacher, rule
        self._encoder, self._progress = encoder, progress
        self._preferences: deque[list[int]] = deque()
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[TrainingRequest]:
        """The requests, in the order of the source."""
        self.counts.clear()
        self._preferences.clear()
        queries = drawn_queries(self._judged.queries, self._plan.max_queries, self._plan.seed)
        negatives = Negatives(self._judged, queries, self._plan, self._finders(queries))
        drafts = self._drafts(queries, negatives)
        if self._teacher is not None:
            drafts = teach(drafts, self._teacher)
        for number, draft in enumerate(drafts, start=1):
            item = self._settled(draft)
            if self._progress is not None:
                self._progress("requests", number, len(queries))
            if len(item.positives) == len(item.request.candidates):
                self.counts["left out"] += 1
                continue
            self.counts["requests"] += 1
            self.counts["filled"] = negatives.filled
            self.counts["short"] += len(item.request.candidates) < self._plan.candidates
            yield item

    def _finders(self, queries: Sequence[JudgedQuery]) -> dict[str, Finder]:
        """Finders of documents, deep enough that `depth` are left without positives."""
        plan, finders = self._plan, {}
        never = max(len(query.positives) + len(query.barred) for query in self._judged.queries)
        reach = plan.depth + plan.skip_top + never
        if "bm25" in plan.negatives:
            corpus = self._judged.corpus
            index = Bm25Index.open(corpus) if corpus else Bm25Index.build(self._judged.pool.documents())
            finders["bm25"] = bm25_finder(index, queries, reach)
        if "dense" in plan.negatives:
            assert self._encoder is not None, "checked at the start"
            texts = [query.query for query in queries]
            finders["dense"] = table_finder(nearest(self._encoder, texts, self._judged.pool, reach, self._progress))
        return finders

    def _drafts(self, queries: Sequence[JudgedQuery], negatives: Negatives) -> Iterator[TrainingRequest]:
        """Requests in random order, with spare negatives where a rule may drop some."""
        plan = self._plan
        for row, query in enumerate(queries):
            generator = query_generator(plan.seed, query.query_id)
            positives = self._positives(query, generator)
            needed = plan.candidates - len(positives)
            drawn = negatives.draw(row, (needed, int(needed * _SPARE) if self._rule else 0), generator)
            places = [(place, POSITIVE) for place in positives] + drawn
            order = generator.permutation(len(places)).tolist()
            # The place of each preferred candidate, for `_settled`, which receives drafts in this order.
            self._preferences.append(np.argsort(order).tolist())
            yield self._request(query, [places[index] for index in order])

    def _positives(self, query: JudgedQuery, generator: Generator) -> list[int]:
        """The positives of a request, drawn at random; of several with the same text, the first one drawn."""
        by_text: dict[int, int] = {}
        for place in generator.permutation(query.positives).tolist():
            if key := int(self._judged.pool.keys_C[place]):
                by_text.setdefault(key, place)
        most = min(self._plan.max_positives, self._plan.candidates - 1)
        return list(by_text.values())[:most]

    def _request(self, query: JudgedQuery, places: Sequence[tuple[int, str]]) -> TrainingRequest:
        """A request of documents of the pool, each with its origin."""
        own_form = self._judged.own_form or (lambda document: document)
        documents = [self._judged.pool[place] for place, _ in places]
        documents = [
            own_form(document) if origin == POSITIVE else document
            for document, (_, origin) in zip(documents, places, strict=True)
        ]
        origins = tuple(origin for _, origin in places)
        positives = tuple(index for index, origin in enumerate(origins) if origin == POSITIVE)
        request = RankRequest(query.query, documents, query.query_id)
        return TrainingRequest(request, positives, origins=origins, group=query.group)

    def _settled(self, draft: TrainingRequest) -> TrainingRequest:
        """A draft without the negatives that the rule drops, cut to its size, in the same order."""
        dropped: set[int] = set()
        if self._rule is not None and self._teacher is not None and draft.positives:
            assert draft.teacher is not None, "the teacher has scored it"
            dropped.update(self._rule.too_good(draft.teacher, draft.positives, are_logs=self._teacher.are_logs))
            self.counts["scored"] += len(draft.teacher) - len(draft.positives)
            self.counts["dropped"] += len(dropped)
        preferred = [index for index in self._preferences.popleft() if index not in dropped]
        return draft.kept(sorted(preferred[: self._plan.candidates]))


def drawn_queries(queries: Sequence[JudgedQuery], most: int | None, seed: int) -> Sequence[JudgedQuery]:
    """At most `count` queries, drawn at random, in the order of the source."""
    if most is None or most >= len(queries):
        return queries
    rows = np.random.default_rng(seed).choice(len(queries), most, replace=False)
    return [queries[row] for row in sorted(rows.tolist())]


def query_generator(seed: int, query_id: str) -> Generator:
    """Random generator of one query, independent of all others."""
    digest = hashlib.blake2b(f"{seed} {query_id}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
