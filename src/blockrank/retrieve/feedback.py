"""Relevance feedback: the ranker's preferences are distilled into the query's vector, and retrieval runs again.

At inference the vector of a query q is moved so that the retriever's distribution over the candidates comes nearer to
the ranker's (FIRST, arXiv 2406.15657, section 3.3, after ReFIT, arXiv 2305.11744):

    L(q) = KL(p || softmax(V q / temperature)) + pull / (2 temperature²) |q - q0|²
    p    = softmax(ranker's scores / ranker_temperature)

V holds the candidates' vectors, q0 is the query's own. L is convex, and its gradient has a closed form, so that plain
gradient descent without autograd suffices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blockrank.data import Corpus, Run
from blockrank.retrieve.dense import DenseIndex
from blockrank.retrieve.encoder import Floats
from blockrank.types import InputError, Ranking, RankRequest, RequestRanker
from blockrank.types.progress import CountProgress

_LEAST = float(np.finfo(np.float64).tiny)  # so that a share of zero has a logarithm
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Feedback:
    """How far the vector of a query follows the ranker.

    depth: candidates that the ranker reads and that the query's vector is fitted to. steps: of gradient descent; with 0
    the second retrieval equals the first. rate: step size, as a share of the largest that provably never raises the
    objective.
    temperature: of the retriever's scores, in their own unit. ranker_temperature: of the ranker's scores as logits.
    pull: weight of the penalty on the distance from the query's own vector; with 0 only the number of steps limits it.

    Raises `InputError` on a value out of range.
    """

    depth: int = 100
    steps: int = 100
    rate: float = 1.0
    temperature: float = 0.05
    ranker_temperature: float = 1.0
    pull: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("depth", 1), ("steps", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise InputError(f"{name} must be an integer of at least {least}, not {value!r}.")
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if not math.isfinite(value) or value < 0 or (value == 0 and field.name != "pull"):
                raise InputError(f"{field.name} must be a positive finite number, not {value!r}.")
        if self.rate > 1:
            raise InputError(f"rate must be at most 1, not {self.rate!r}: longer steps may raise the objective.")


def refine(query_D: ArrayLike, vectors_CD: ArrayLike, scores_C: ArrayLike, feedback: Feedback) -> Floats:
    """The query's vector moved towards the ranker's preference, (D,).

    vectors_CD: of the candidates. scores_C: the ranker's as logits, of which a softmax is taken: for shares, their
    logarithms. With no steps the result is `query_D` unchanged. The norm of the result has no meaning.

    Raises `InputError` where shapes do not fit or a number is not finite.
    """
    q0_D, v_CD, scores = (np.asarray(value, dtype=np.float64) for value in (query_D, vectors_CD, scores_C))
    if (
        q0_D.ndim != 1
        or v_CD.ndim != 2
        or v_CD.shape != (len(scores), len(q0_D))
        or scores.ndim != 1
        or not len(scores)
    ):
        raise InputError(
            f"query, vectors and scores must be of shapes (D,), (C, D) and (C,), not {q0_D.shape}, {v_CD.shape} and "
            f"{scores.shape}."
        )
    if not all(np.isfinite(value).all() for value in (q0_D, v_CD, scores)):
        raise InputError("query, vectors and scores must be finite.")
    p_C = _softmax(scores / feedback.ranker_temperature)
    # Subtracting a vector from all does not change the softmax; centred vectors are shorter and allow longer steps.
    centred_CD = v_CD - v_CD.mean(0)
    step = feedback.rate / (_curvature(centred_CD) + feedback.pull)
    q_D = q0_D
    for _ in range(feedback.steps):
        shares_C = _softmax(centred_CD @ q_D / feedback.temperature)
        # In units of 1/temperature²: gradient of KL, and of the pull.
        gradient_D = feedback.temperature * ((shares_C - p_C) @ centred_CD) + feedback.pull * (q_D - q0_D)
        q_D = q_D - step * gradient_D
    return q_D.astype(np.float32)


def objective(
    query_D: ArrayLike, start_D: ArrayLike, vectors_CD: ArrayLike, scores_C: ArrayLike, feedback: Feedback
) -> float:
    """L of the module docstring at `query_D`, in nats; `start_D` is q0."""
    q_D, q0_D, v_CD, scores = (np.asarray(v, dtype=np.float64) for v in (query_D, start_D, vectors_CD, scores_C))
    p_C = _softmax(scores / feedback.ranker_temperature)
    logits_C = v_CD @ q_D / feedback.temperature
    log_shares_C = logits_C - logits_C.max() - math.log(np.exp(logits_C - logits_C.max()).sum())
    there = p_C > 0
    divergence = float((p_C[there] * (np.log(p_C[there]) - log_shares_C[there])).sum())
    return divergence + feedback.pull / (2 * feedback.temperature**2) * float(((q_D - q0_D) ** 2).sum())


def _softmax(logits_C: Doubles) -> Doubles:
    weights_C = np.exp(logits_C - logits_C.max())
    shares_C: Doubles = weights_C / weights_C.sum()
    return shares_C


def _curvature(centred_CD: Doubles) -> float:
    """A bound of the second derivative of the KL, times temperature²: the covariance of vectors under any shares."""
    return max(float((centred_CD**2).sum(1).max()), _LEAST)


@dataclass(frozen=True, slots=True)
class Round:
    """The steps of feedback for one query.

    first: scores of the first retrieval. ranking: its best `depth`, as the ranker orders them; None where none has
    text. vector_D: the refined vector. second: scores of the second retrieval.
    """

    query_id: str
    first: dict[str, float]
    ranking: Ranking | None
    vector_D: Floats
    second: dict[str, float]


class FeedbackRetriever:
    """Retrieves, ranks the best candidates, refines the query's vector and retrieves again.

        retriever = FeedbackRetriever(DenseIndex.open(corpus, encoder), corpus, Ranker.from_pretrained())
        run = retriever.run({"q1": "who wrote Dracula"}, depth=100)

    The ranker's scores may be of any kind, see `Ranking.logits`: for an order, p is proportional to 1/rank.
    """

    def __init__(
        self, index: DenseIndex, corpus: Corpus, ranker: RequestRanker, feedback: Feedback | None = None
    ) -> None:
        self.index, self.corpus, self.ranker = index, corpus, ranker
        self.feedback = feedback if feedback is not None else Feedback()

    def run(self, queries: Mapping[str, str], depth: int, progress: CountProgress | None = None) -> Run:
        """The second retrieval of every query: query_id -> doc_id -> score, best first, at most `depth`."""
        return {item.query_id: item.second for item in self.rounds(queries, depth, progress)}

    def rounds(self, queries: Mapping[str, str], depth: int, progress: CountProgress | None = None) -> Iterator[Round]:
        """As `run`, with the results of every step, query by query. Raises `InputError` as `Ranker.rank` and
        `DenseIndex`."""
        vectors_QD = self.index.encoder.queries(list(queries.values()))
        found = self.index.nearest(vectors_QD, max(depth, self.feedback.depth))
        wanted = dict.fromkeys(doc_id for scores in found for doc_id in list(scores)[: self.feedback.depth])
        documents = self.corpus.read(wanted)
        requests = (
            RankRequest(text, [documents[doc_id] for doc_id in list(scores)[: self.feedback.depth]], query_id)
            for (query_id, text), scores in zip(queries.items(), found, strict=True)
        )
        rankings = self.ranker.rank_iter(requests)
        for done, (ranking, query_D, scores) in enumerate(zip(rankings, vectors_QD, found, strict=True), start=1):
            refined_D = self.refined(query_D, ranking)
            second = self.index.nearest(refined_D[None], depth)[0]
            yield Round(ranking.query_id, dict(list(scores.items())[:depth]), ranking, refined_D, second)
            if progress:
                progress(done, len(queries))

    def refined(self, query_D: Floats, ranking: Ranking) -> Floats:
        """The vector of a query after feedback from a ranking, (D,)."""
        vectors_CD = self.index.vectors(ranking.doc_ids)
        return refine(query_D, vectors_CD, ranking.logits(least=_LEAST), self.feedback)
