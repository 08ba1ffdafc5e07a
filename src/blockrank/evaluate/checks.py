"""What can be known before anything is ranked: whether measures, ids, judgements, queries and documents will do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

from blockrank.data import Collection
from blockrank.evaluate.measures import too_high
from blockrank.evaluate.plan import Plan
from blockrank.evaluate.work import Work
from blockrank.types import Document, InputError, RankRequest, RequestRanker
from blockrank.types.requests import Check

_ANY_QUERY, _ANY_DOCUMENT = "query", Document("document")  # that no ranker refuses


def check_measures(collections: Sequence[Collection], plan: Plan) -> None:
    """Raise `InputError` where a measure cannot be computed for the judgements."""
    for collection in collections:
        error = too_high(collection.qrels, plan.measures)
        if error is not None and error.judgement is not None:
            raise InputError(f"{collection.judgement_place(*error.judgement)}: {error}")


def check_works(works: Sequence[Work], plan: Plan, checks: Mapping[str, Check | None]) -> None:
    """Raise `InputError` where the corpus lacks a candidate, or a reranker would refuse a query or a document.

    checks: by the rerankers' labels; None where what one refuses is known only once it is loaded.
    """
    for work in works:
        unranked = {
            reranker.label: any(not work.is_ranked(system) for system in plan.systems(reranker))
            for reranker in plan.rerankers
            if reranker.label in checks
        }
        everything = list(chain.from_iterable(work.shards))
        documents = work.documents(everything, max(plan.depths)) if any(unranked.values()) else {}
        most = max((_candidates(work, query_id, max(plan.depths), documents) for query_id in everything), default=0)
        for reranker in plan.rerankers:
            if reranker.label in checks:
                check = checks[reranker.label] or _accept
                check_documents(work, check, documents if unranked[reranker.label] else {}, most, reranker.label)
                query_ids = everything if unranked[reranker.label] else _cut(work, plan.systems(reranker))
                check_queries(work, check, query_ids, next(iter(documents.values()), _ANY_DOCUMENT))


def check_of(ranker: RequestRanker) -> Check | None:
    """What a loaded ranker refuses; None where that cannot be known."""
    from blockrank.ranker import Ranker
    from blockrank.scorers.checking import RequestCheck

    if not isinstance(ranker, Ranker) or ranker.model.tokenizer is None:
        return None
    return RequestCheck(ranker.model.tokenizer, ranker.spec, ranker.scorer)


def _accept(request: RankRequest) -> None:
    """Stand in for what is not known: that a request can be made is what is left to check."""


def check_queries(work: Work, check: Check, query_ids: Sequence[str], document: Document) -> None:
    """Raise `InputError`, with its place, on a query that is refused. document: one that is not."""
    for query_id in query_ids:
        try:
            check(RankRequest(work.queries[query_id], [document], query_id))
        except InputError as error:
            raise InputError(f"{work.collection.query_place(query_id)}: {error} (query_id {query_id!r})") from None


def check_documents(work: Work, check: Check, documents: Mapping[str, Document], most: int, label: str) -> None:
    """Raise `InputError` on a document that is refused, with its place, and where a reranker refuses so many
    documents at once. most: how many the largest request has; label: the reranker's."""
    for group in _groups(documents.values(), most):
        try:
            check(RankRequest(_ANY_QUERY, group))
        except InputError as error:
            for document in group:
                _check_document(work, check, document)
            raise InputError(f"{label}: {error}") from None


def _check_document(work: Work, check: Check, document: Document) -> None:
    try:
        check(RankRequest(_ANY_QUERY, [document]))
    except InputError as error:
        place = work.collection.document_place(str(document.doc_id))
        raise InputError(f"{place}: {error} (doc_id {document.doc_id!r})") from None


def _candidates(work: Work, query_id: str, depth: int, documents: Mapping[str, Document]) -> int:
    """How many documents the request of a query has."""
    return sum(doc_id in documents for doc_id in work.doc_ids(query_id, depth))


def _groups(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    stream = iter(documents)
    return iter(lambda: list(islice(stream, size)), [])


def _cut(work: Work, systems: Mapping[str, int]) -> list[str]:
    """The queries that a finished system lost the end of."""
    outcomes = chain.from_iterable(work.journal(system).outcomes() for system in systems)
    return list(dict.fromkeys(outcome.query_id for outcome in outcomes if outcome.query_cut))
