"""Training data: pre-tokenised training sets and JSONL requests, both yielding the same examples.

A training set is one safetensors file: a pool of documents and queries over it, already tokenised (bodies only, no
frame), with positives and mined negatives as rows of the pool (CSR), and optionally teacher vectors:

    document_tokens, document_starts    query_tokens, query_starts
    positives, positive_starts          negatives, negative_starts      dense (N, D), -1 where there is none
    document_vectors (C, V), query_vectors (N, V): unit vectors whose product is the teacher's score
    positive_scores, negative_scores: a teacher's scores beside the rows of `positives` and `negatives`
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from blockrank.data import json_objects, named, training_request
from blockrank.layout import Ints, PromptTokenizer, Segment, TokenisedRequest
from blockrank.layout.prompt import Kind
from blockrank.mine import DropRule
from blockrank.retrieve.bm25 import K1, B
from blockrank.scorers import SCORERS, Prompts, PromptWriter
from blockrank.spec import RankSpec
from blockrank.train.config import DataConfig, LossConfig
from blockrank.train.sampling import sample_candidates
from blockrank.types import InputError, RankRequest

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Example:
    """One training request. prompts: as its scorer makes them; positives_C: which candidates are relevant, in the order
    of `prompts.indices`; teachers: scores (C,) in that order, by teacher's name."""

    prompts: Prompts
    positives_C: NDArray[np.bool_]
    teachers: dict[str, Floats] = field(default_factory=dict)


class ExampleSource(Protocol):
    """A source of training examples."""

    name: str

    def __len__(self) -> int: ...

    def example(self, row: int, generator: np.random.Generator, candidates: int | None = None) -> Example:
        """The request of one training query; its candidates are drawn with `generator`, `candidates` of them if
        given."""


class Framer:
    """Puts stored bodies into the frames of a template where tokens of frame and body never merge.

    That is so only where every body is enclosed by control tokens or by the ends of its piece, as in the BERT
    templates.
    """

    def __init__(self, tokenizer: PromptTokenizer, spec: RankSpec) -> None:
        self._spec = spec
        # A one-letter text is tokenised to find the frames; the letter's token marks the place of a body.
        parts = tokenizer.tokenise_request(RankRequest("a", ["a"]), spec).segments
        plain = tokenizer.encode("a")
        if len(plain) != 1 or any("{id}" in piece for piece in spec.prompt.document):
            raise InputError("pre-tokenised training sets need a template without document numbers.")
        self._frames = {part.kind: self._split(part.ids, int(plain[0])) for part in parts}
        sample = tokenizer.tokenise_request(RankRequest("two words", ["three more words"]), spec)
        bodies = {"document": tokenizer.encode("three more words"), "query": tokenizer.encode("two words")}
        for part in sample.segments[1:]:
            if list(self.segment(part.kind, bodies[part.kind]).ids) != list(part.ids):
                raise InputError("this template merges frame and body tokens; train it from JSONL requests instead.")
        prompts = SCORERS.make(spec.scorer).prompts(RankRequest("a", ["a", "a"]), PromptWriter(tokenizer, spec))
        if len(prompts.parts) > 1:
            raise InputError(
                f"pre-tokenised training sets need all documents in one prompt, and {spec.scorer!r} writes several."
            )

    @staticmethod
    def _split(ids: Ints, mark: int) -> list[Ints]:
        at = [int(i) for i in np.flatnonzero(ids == mark)]
        return [ids[a:b] for a, b in zip([0, *(i + 1 for i in at)], [*at, len(ids)], strict=True)]

    def segment(self, kind: Kind, body: Ints) -> Segment:
        """Frame a body; the query's body fills every gap of its segment."""
        frames = self._frames[kind]
        parts = [frames[0]]
        for frame in frames[1:]:
            parts += [body, frame]
        ids = np.concatenate(parts).astype(np.int64)
        return Segment(kind, ids, len(body), signal_end=len(ids) if kind == "query" else 0)

    def request(self, query: Ints, documents: Sequence[Ints]) -> TokenisedRequest:
        """All segments of a request from bodies."""
        instruction = self.segment("instruction", query)
        return TokenisedRequest(
            (instruction, *(self.segment("document", body) for body in documents), self.segment("query", query))
        )


class TrainingSet:
    """One file of the form above."""

    def __init__(self, path: str | Path, framer: Framer, config: DataConfig) -> None:
        self.name, self._framer, self._config = Path(path).stem, framer, config
        self._rule = None if config.drop_above is None else DropRule(config.drop_above)
        try:
            self._data = load_file(path)
        except Exception as error:
            raise InputError(f"{path} is not a training set: {error}.") from error
        wanted = {"document_tokens", "document_starts", "query_tokens", "query_starts", "positives", "positive_starts"}
        if lacking := sorted(wanted - set(self._data)):
            raise InputError(f"{path} is not a training set: it lacks {lacking[0]!r}.")
        self._pool = len(self._data["document_starts"]) - 1
        self._lexicon = Lexicon(self._data["document_tokens"], self._data["document_starts"])

    def __len__(self) -> int:
        return len(self._data["query_starts"]) - 1

    def example(self, row: int, generator: np.random.Generator, candidates: int | None = None) -> Example:
        """Draw the candidates of a query, `candidates` or `data.candidates` of them, and frame them."""
        positives, hard = self._slice("positive", "positives", row), self._hard(row)
        config, barred = self._config, None
        if self._rule is not None and "document_vectors" in self._data:
            listed = np.concatenate([positives, hard])
            barred = listed[self._rule.too_good(self._teacher(row, listed).tolist(), range(len(positives)))]
        given, count = self._given(row), candidates or config.candidates
        # Where a teacher scored the listed rows, no other row has a score: all candidates come from them.
        pool, wanted = (0, count) if given else (self._pool, config.hard)
        rows, labels = sample_candidates(generator, positives, hard, pool, count, wanted, config.max_positives, barred)
        bodies = [self._slice("document", "document_tokens", i)[: config.max_document_tokens] for i in rows]
        query = self._slice("query", "query_tokens", row)
        teachers = {"lexical": self._lexicon.scores(query, bodies)}
        if "document_vectors" in self._data:
            teachers["vectors"] = self._teacher(row, rows)
        if given:
            teachers["given"] = np.array([given[int(i)] for i in rows], dtype=np.float32)
        return Example(Prompts((self._framer.request(query, bodies),)), labels, teachers)

    def _slice(self, owner: str, values: str, row: int) -> Ints:
        starts = self._data[f"{owner}_starts"]
        values_R: Ints = self._data[values][starts[row] : starts[row + 1]].astype(np.int64)
        return values_R

    def _given(self, row: int) -> dict[int, float]:
        """Stored scores of a query's listed rows, by row; empty where the set holds none."""
        if "positive_scores" not in self._data:
            return {}
        parts = (("positive", "positives"), ("negative", "negatives"))
        rows = np.concatenate([self._slice(owner, values, row) for owner, values in parts])
        scores = np.concatenate([self._scores(owner, row) for owner, _ in parts])
        return dict(zip(rows.tolist(), scores.tolist(), strict=True))

    def _scores(self, owner: str, row: int) -> Floats:
        starts = self._data[f"{owner}_starts"]
        scores_R: Floats = self._data[f"{owner}_scores"][starts[row] : starts[row + 1]].astype(np.float32)
        return scores_R

    def _hard(self, row: int) -> Ints:
        """Mined negatives of a query; one found by several miners occurs several times."""
        hard = self._slice("negative", "negatives", row) if "negatives" in self._data else np.zeros(0, dtype=np.int64)
        if self._config.dense and "dense" in self._data:
            dense = self._data["dense"][row].astype(np.int64)
            hard = np.concatenate([hard, dense[dense >= 0]])
        return hard

    def _teacher(self, row: int, rows: Ints) -> Floats:
        vectors = self._data["document_vectors"][rows].astype(np.float32)
        scores: Floats = vectors @ self._data["query_vectors"][row].astype(np.float32)
        return scores


class Lexicon:
    """The lexical teacher: BM25 over a model's tokens, with the frequencies of a pool.

    It needs no index and no extra: it scores a request's candidates after cutting. Scores are `K1 + 1` times those of
    `Bm25Index`, whose library leaves this factor out.
    """

    def __init__(self, tokens: NDArray[Any], starts: Ints) -> None:
        flat, size = tokens.astype(np.int64), int(tokens.max(initial=0)) + 1
        documents = len(starts) - 1
        owner = np.repeat(np.arange(documents), np.diff(starts))
        frequency = np.bincount(np.unique(owner * size + flat) % size, minlength=size)
        self._idf = np.log1p((documents - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)
        self._mean_length = max(float(len(flat)) / max(documents, 1), 1.0)

    def scores(self, query: Ints, bodies: Sequence[Ints]) -> Floats:
        """BM25 of each body for the query's distinct tokens, (C,)."""
        terms = np.unique(query)
        terms = terms[terms < len(self._idf)]
        scores = np.zeros(len(bodies), dtype=np.float32)
        for index, body in enumerate(bodies):
            count = (body[:, None] == terms).sum(0)
            norm = K1 * (1 - B + B * len(body) / self._mean_length)
            scores[index] = (self._idf[terms] * count * (K1 + 1) / (count + norm)).sum()
        return scores


class RequestFile:
    """JSONL of training requests: `{"query", "documents": [...], "positives": [indices], "teacher": [scores]?}`."""

    def __init__(
        self,
        path: str | Path,
        tokenizer: PromptTokenizer,
        spec: RankSpec,
        config: DataConfig,
        loss: LossConfig | None = None,
    ) -> None:
        """`loss` says how answers are written. Raises `InputError` on a broken file or line, and on a line without the
        teacher scores that an answer by relevance needs."""
        self.name = Path(str(path).removesuffix(".gz")).stem
        self._tokenizer, self._spec, self._config = tokenizer, spec, config
        self._scorer = SCORERS.make(spec.scorer)
        self._loss = loss or LossConfig()
        by_relevance = bool(spec.prompt.answer) and self._loss.answer_order == "relevance"
        self._rows = [_checked_row(value, f"{path}:{line}", by_relevance) for line, value in json_objects(path)]
        if not self._rows:
            raise InputError(f"{path} holds no request.")

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, row: int, generator: np.random.Generator, candidates: int | None = None) -> Example:
        """Draw candidates from the request's own documents and tokenise them, the answer included."""
        raw, config = self._rows[row], self._config
        count = candidates or config.candidates
        positives = np.array(raw["positives"], dtype=np.int64)
        hard = np.setdiff1d(np.arange(len(raw["documents"])), positives)
        rows, labels = sample_candidates(
            generator, positives, hard, len(raw["documents"]), count, count, config.max_positives
        )
        request = RankRequest(raw["query"], [raw["documents"][i] for i in rows])
        teachers = {"given": np.array(raw["teacher"], dtype=np.float32)[rows]} if "teacher" in raw else {}
        answer = answer_of(labels, teachers.get("given"), self._loss) if self._spec.prompt.answer else None
        prompts = self._scorer.prompts(request, PromptWriter(self._tokenizer, self._spec, answer=answer))
        if silent := sorted(set(range(len(rows))) - set(prompts.indices)):
            place = f"documents[{rows[silent[0]]}] of the query {raw['query']!r}"
            raise InputError(f"{self.name}: {place} yields no token of this tokenizer; leave it out.")
        own = list(prompts.indices)  # a scorer may write documents in an order of its own
        return Example(prompts, labels[own], {name: scores_C[own] for name, scores_C in teachers.items()})


def answer_of(positives_C: NDArray[np.bool_], scores_C: Floats | None, loss: LossConfig) -> tuple[int, ...]:
    """The candidates listed in an answer, in its order; see `LossConfig.answer_order`.

    scores_C: the teacher's. Equal scores: positives first, then the order of the request.
    """
    if loss.answer_order == "candidates":
        return tuple(np.flatnonzero(positives_C).tolist())
    assert scores_C is not None, "lines were checked for teacher scores"
    order = np.lexsort((~positives_C, -scores_C))
    listed = order[positives_C[order]] if loss.answer_length is None else order[: loss.answer_length]
    return tuple(listed.tolist())


def _checked_row(value: Mapping[str, Any], where: str, needs_teacher: bool = False) -> dict[str, Any]:
    """One line with its documents and positives checked, or `InputError` naming file and line."""
    if needs_teacher and "teacher" not in value:
        raise InputError(f"{where}: loss.answer_order is 'relevance', which needs teacher, a score for each document.")
    with named(where):
        item = training_request(value, "0")
    return {**value, "documents": list(item.request.candidates), "positives": list(item.positives)}


def open_sources(
    config: DataConfig, tokenizer: PromptTokenizer, spec: RankSpec, loss: LossConfig | None = None
) -> list[ExampleSource]:
    """All sources a configuration names, globs expanded, in sorted order. loss: how answers are written."""
    paths = [path for pattern in config.sets for path in sorted(glob.glob(pattern)) or [pattern]]
    sources: list[ExampleSource] = []
    framer: Framer | None = None
    for path in paths:
        if path.removesuffix(".gz").endswith(".jsonl"):
            sources.append(RequestFile(path, tokenizer, spec, config, loss))
        else:
            framer = framer or Framer(tokenizer, spec)
            sources.append(TrainingSet(path, framer, config))
    return sources
