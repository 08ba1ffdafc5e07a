"""Teachers: models that score the candidates of training requests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

from blockrank.data import TrainingRequest
from blockrank.mine.denoise import DropRule
from blockrank.mine.encoder import CachingEncoder
from blockrank.retrieve.encoder import load_sentence_model
from blockrank.types import ModelError, RankRequest, RequestRanker

_WINDOW = 64  # requests scored together


class Teacher(Protocol):
    """Gives every candidate a score; higher is better. are_logs: whether scores are logarithms of shares."""

    name: str
    are_logs: bool

    def scores(self, requests: Sequence[RankRequest]) -> list[list[float]]:
        """A finite score for each candidate of each request, in the request's order."""


class RankerTeacher:
    """A model that blockrank ranks with: the score of a document is the logarithm of its share, as for the teacher
    `model` in training.

    Other kinds of scores are stored as `Ranking.logits` gives them: the logarithm of a probability, a logit or a
    relative score as it is, and minus the logarithm of the rank for an order. cut: how many documents and queries were
    cut to the model's limits so far.
    """

    def __init__(self, ranker: RequestRanker, name: str) -> None:
        self._ranker, self.name, self.cut = ranker, name, 0
        self.are_logs = True  # until rankings report another kind

    def scores(self, requests: Sequence[RankRequest]) -> list[list[float]]:
        """Scores as logits. A share that float32 rounds to zero counts as the smallest float32.

        Raises `InputError` where scores are not of the kind that the ranker declares, `ModelError` where a document got
        no score: an invented one would be taught.
        """
        found = []
        whole = [replace(request, top_k=None, evidence=False) for request in requests]
        for ranking in self._ranker.rank_many(whole):
            if ranking.unscored:
                raise ModelError(
                    f"query_id {ranking.query_id!r}: {self.name} gave no score to {len(ranking.unscored)} of "
                    f"{len(ranking)} documents, and a teacher scores them all."
                )
            self.cut += (ranking.query_cut_tokens > 0) + sum(entry.cut_tokens > 0 for entry in ranking)
            self.are_logs = ranking.kind not in ("logit", "relative")
            pairs = sorted(zip((entry.index for entry in ranking), ranking.logits(), strict=True))
            found.append([score for _, score in pairs])
        return found


class CrossEncoderTeacher:
    """A `CrossEncoder` of sentence-transformers with one output.

    Raises `MissingExtraError` without the extra `dense`, `ModelError` where it cannot be loaded or has more outputs.
    """

    are_logs = False

    def __init__(self, name_or_folder: str, *, device: str | None = None, batch_size: int = 32) -> None:
        self.name, self._batch_size = name_or_folder, batch_size
        self._model: Any = load_sentence_model("CrossEncoder", name_or_folder, device)
        if self._model.num_labels != 1:
            raise ModelError(f"{name_or_folder} has {self._model.num_labels} outputs; a teacher needs one.")

    def scores(self, requests: Sequence[RankRequest]) -> list[list[float]]:
        """The model's output for query and document, after its own activation."""
        pairs = [(request.query, document.content) for request in requests for document in request.candidates]
        flat = iter(self._model.predict(pairs, batch_size=self._batch_size, show_progress_bar=False).tolist())
        return [list(islice(flat, len(request.candidates))) for request in requests]


class EncoderTeacher:
    """A bi-encoder: the similarity of query and document."""

    are_logs = False

    def __init__(self, encoder: CachingEncoder) -> None:
        self._encoder, self.name = encoder, encoder.name

    def scores(self, requests: Sequence[RankRequest]) -> list[list[float]]:
        """Dot products of the vectors: cosines for cosine models."""
        queries_ND = self._encoder.queries([request.query for request in requests])
        texts = [document.content for request in requests for document in request.candidates]
        documents_CD, at, found = self._encoder.documents(texts), 0, []
        for request, query_D in zip(requests, queries_ND, strict=True):
            count = len(request.candidates)
            found.append((documents_CD[at : at + count] @ query_D).tolist())
            at += count
        return found


def teach(items: Iterable[TrainingRequest], teacher: Teacher) -> Iterator[TrainingRequest]:
    """The same requests with the teacher's scores in place of any they had, a few at a time.

    Raises `ModelError` where a score is not finite.
    """
    stream = iter(items)
    while window := list(islice(stream, _WINDOW)):
        scores = teacher.scores([item.request for item in window])
        for item, found in zip(window, scores, strict=True):
            if not all(math.isfinite(score) for score in found):
                raise ModelError(f"{teacher.name}: its scores for the query_id {item.query_id!r} are not finite.")
            yield replace(item, teacher=tuple(found))


def drop(item: TrainingRequest, rule: DropRule, *, are_logs: bool) -> TrainingRequest:
    """A request with teacher scores without the negatives that a rule drops; the others keep their order."""
    assert item.teacher is not None, "a teacher has scored the request"
    dropped = set(rule.too_good(item.teacher, item.positives, are_logs=are_logs))
    return item.kept([index for index in range(len(item.teacher)) if index not in dropped])
