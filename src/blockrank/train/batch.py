"""From a stream of examples to packed batches: a deterministic order, and collation into the common layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from blockrank.layout import Ints, PackedLayout, TokenisedRequest, pack
from blockrank.spec import RankSpec
from blockrank.train.sets import Example, ExampleSource
from blockrank.types import InputError


class ExampleStream(Dataset[Example]):
    """`length` examples drawn from weighted sources, a pure function of seed and index.

    Each pass over a source takes its queries in random order; sources alternate at random in proportion to weight times
    size. Item i never depends on the items before it, so a resumed run sees the same items as an uninterrupted one.
    """

    def __init__(
        self, sources: Sequence[ExampleSource], length: int, seed: int = 0, weights: dict[str, float] | None = None
    ) -> None:
        sizes = np.array([len(source) for source in sources], dtype=np.float64)
        if not len(sizes) or not sizes.sum():
            raise InputError("there is nothing to train on: the sources hold no query.")
        if unknown := sorted(set(weights or {}) - {source.name for source in sources}):
            raise InputError(f"data.weights names {unknown[0]!r}, which is no source.")
        mass = sizes * np.array([(weights or {}).get(source.name, 1.0) for source in sources])
        if not mass.any():
            raise InputError("data.weights gives every source a share of 0: there is nothing to learn from.")
        generator = np.random.default_rng(seed)
        self._sources, self._seed = sources, seed
        self._source_I = generator.choice(len(sources), size=length, p=mass / mass.sum())
        self._row_I = np.zeros(length, dtype=np.int64)
        for index, source in enumerate(sources):
            at = np.flatnonzero(self._source_I == index)
            passes = -(-len(at) // max(len(source), 1))
            order = [generator.permutation(len(source)) for _ in range(passes)]
            self._row_I[at] = np.concatenate(order)[: len(at)] if order else []

    def __len__(self) -> int:
        return len(self._row_I)

    def __getitem__(self, index: int) -> Example:
        return self.example(index)

    def example(self, index: int, candidates: int | None = None) -> Example:
        """The request at `index`, with `candidates` documents if given."""
        generator = np.random.default_rng((self._seed, index))
        return self._sources[int(self._source_I[index])].example(int(self._row_I[index]), generator, candidates)


@dataclass(frozen=True, slots=True)
class Batch:
    """A packed training step. positives_BM, present_BM: as in `losses`, M the largest candidate list; teachers: score
    tables (B, M) of the teachers that every request of the batch has; label_A, context_A: answer tokens for the LM loss
    and the stream positions that predict them; rank_A: for each answer token, the rank from 1 of its id in the answer,
    0 where it belongs to no id."""

    layout: PackedLayout
    positives_BM: Tensor
    present_BM: Tensor
    teachers: dict[str, Tensor]
    label_A: Tensor
    context_A: Tensor
    rank_A: Tensor


def collate(examples: Sequence[Example], spec: RankSpec) -> Batch:
    """Pack examples into one stream; nothing is padded but the small tables of labels."""
    prompts = [part for example in examples for part in example.prompts.parts]
    layout = pack(prompts, spec)
    counts = np.array([len(example.positives_C) for example in examples])
    present = np.arange(counts.max()) < counts[:, None]
    positives = np.zeros(present.shape, dtype=bool)
    positives[present] = np.concatenate([example.positives_C for example in examples])
    context, ranks = _answers(prompts, layout)
    return Batch(
        layout,
        torch.from_numpy(positives),
        torch.from_numpy(present),
        _teacher_tables(examples, present),
        torch.from_numpy(layout.ids_T[context + 1]),
        torch.from_numpy(context),
        torch.from_numpy(ranks),
    )


def _teacher_tables(examples: Sequence[Example], present: NDArray[np.bool_]) -> dict[str, Tensor]:
    names = set.intersection(*(set(example.teachers) for example in examples))
    tables = {}
    for name in sorted(names):
        table = np.zeros(present.shape, dtype=np.float32)
        table[present] = np.concatenate([example.teachers[name] for example in examples])
        tables[name] = torch.from_numpy(table)
    return tables


def _answers(prompts: Sequence[TokenisedRequest], layout: PackedLayout) -> tuple[Ints, Ints]:
    """Positions whose next token is part of an answer (the opening and everything after it), and the ranks of those
    next tokens."""
    context, ranks = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for prompt, segment in zip(prompts, layout.query_segment_B, strict=True):
        query = prompt.segments[-1]
        count = len(query.ids) - query.signal_end
        if count:
            start = int(layout.starts_S[segment])
            context.append(np.arange(start + query.signal_end - 2, start + len(query.ids) - 1))
            of_ids = query.ranks_A if query.ranks_A is not None else np.zeros(count, dtype=np.int64)
            ranks += [np.zeros(1, dtype=np.int64), of_ids]
    return np.concatenate(context), np.concatenate(ranks)
