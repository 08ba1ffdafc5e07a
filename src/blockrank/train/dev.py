"""The dev set of a run: requests with judgements, ranked by the model in training like any other request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerCallback

from blockrank.data import Qrels, Run, as_request, json_objects, open_collection, positives_of
from blockrank.evaluate.first_stage import FirstStage
from blockrank.evaluate.measures import aggregate, parse_measure
from blockrank.ranker import Ranker
from blockrank.text.characters import is_readable
from blockrank.train.config import DevConfig
from blockrank.types import InputError, RankRequest


@dataclass(frozen=True)
class DevSet:
    """requests: one for each judged query. qrels: the judgements, also of documents that are no candidates. measure:
    what is computed. A query without candidates gets an empty ranking."""

    requests: Sequence[RankRequest]
    qrels: Qrels
    measure: str

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, index: int) -> RankRequest:
        return self.requests[index]

    def run(self, ranker: Ranker, part: slice = slice(None)) -> Run:
        """Scores of a part of the requests."""
        rankings = ranker.rank_iter(self.requests[part])
        return {item.query_id: {str(entry.doc_id): entry.score for entry in item} for item in rankings}

    def score(self, run: Run) -> float:
        """The measure, over all judged queries."""
        return aggregate(run, self.qrels, [self.measure])[self.measure]


def open_dev_set(config: DevConfig) -> DevSet:
    """The dev set of a configuration.

    Raises `InputError` where a file is missing or broken or the measure unknown, `MissingExtraError` without the
    packages that it needs.
    """
    parse_measure(config.measure)
    if Path(config.requests).is_dir():
        return _from_folder(config)
    qrels: Qrels = {}
    requests: list[RankRequest] = []
    for line, value in json_objects(config.requests):
        request, positives = _judged(value, str(len(requests)), f"{config.requests}:{line}")
        if request.query_id in qrels:
            raise InputError(f"{config.requests}:{line}: the query_id {request.query_id!r} was there before.")
        qrels[request.query_id] = {str(request.candidates[index].doc_id): 1 for index in positives}
        requests.append(_first(request, config.candidates))
    if not requests:
        raise InputError(f"{config.requests} holds no request.")
    return DevSet(requests, qrels, config.measure)


def _judged(value: Any, default_id: str, where: str) -> tuple[RankRequest, tuple[int, ...]]:
    try:
        request = as_request(value, default_id)
        positives = positives_of(value, request)
    except InputError as error:
        raise InputError(f"{where}: not a dev request: {error}") from None
    if not positives:
        raise InputError(f"{where}: a dev request needs positives.")
    return request, positives


def _first(request: RankRequest, count: int) -> RankRequest:
    return RankRequest(request.query, request.candidates[:count], request.query_id)


def _from_folder(config: DevConfig) -> DevSet:
    """The judged queries of a BEIR folder with the first candidates of their first stage."""
    collection = open_collection(Path(config.requests), split=config.split)
    queries = {q: text for q, text in collection.queries.items() if q in collection.qrels and is_readable(text)}
    run = FirstStage(config.run).search(collection, queries, config.candidates)
    chosen = {query_id: list(islice(run.get(query_id, {}), config.candidates)) for query_id in queries}
    documents = collection.corpus.read(dict.fromkeys(_flat(chosen.values())))
    requests = []
    for query_id, doc_ids in chosen.items():
        if found := [documents[doc_id] for doc_id in doc_ids if is_readable(documents[doc_id].content)]:
            requests.append(RankRequest(queries[query_id], found, query_id))
    return DevSet(requests, {query_id: collection.qrels[query_id] for query_id in queries}, config.measure)


def _flat(lists: Iterable[Sequence[str]]) -> Iterable[str]:
    return (item for part in lists for item in part)


class LastEvaluation(TrainerCallback):  # type: ignore[misc]
    """Evaluates the last step too, whatever the interval, and saves the evaluated weights."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for an evaluation."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
            control.should_save |= args.save_strategy == "steps"
