"""Requests with a teacher's scores as lists for a bi-encoder: each text is held once, and encoded once per batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from blockrank.data import TrainingRequest, json_objects, named, training_request
from blockrank.types import InputError

Features = dict[str, Any]  # inputs of a sentence-transformers model's forward
_CHUNK = 64  # documents padded to a common length
_PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}  # as `encode_query`, `encode_document`


@dataclass(frozen=True, slots=True)
class ScoredList:
    """A query with its C documents, rows of a pool of texts, and the teacher's score of each."""

    query: str
    rows_C: NDArray[np.int32]
    teacher_C: NDArray[np.float32]


class ScoredLists(Dataset[ScoredList]):
    """Lists over a pool of texts. texts: the documents' (title and text), each once.

    single: how many requests were left out because they had one document only.
    """

    def __init__(self, lists: Sequence[ScoredList], texts: Sequence[str], single: int = 0) -> None:
        self.lists, self.texts, self.single = lists, texts, single

    def __len__(self) -> int:
        return len(self.lists)

    def __getitem__(self, index: int) -> ScoredList:
        return self.lists[index]


def scored_lists(items: Iterable[TrainingRequest], source: str = "requests") -> ScoredLists:
    """The lists of requests with a teacher's scores; positives are not looked at. source: their name in messages.

    Raises `InputError` on a request without scores, and where no request has two documents.
    """
    places: dict[str, int] = {}
    lists: list[ScoredList] = []
    single = 0
    for item in items:
        if item.teacher is None:
            raise InputError(f"{source}: the query_id {item.query_id!r} has no teacher's scores.")
        if len(item.teacher) < 2:
            single += 1
            continue
        rows = [places.setdefault(document.content, len(places)) for document in item.request.candidates]
        teacher_C = np.array(item.teacher, dtype=np.float32)
        lists.append(ScoredList(item.query, np.array(rows, dtype=np.int32), teacher_C))
    if not lists:
        raise InputError(f"{source}: no request has two documents: there is no order to learn.")
    return ScoredLists(lists, list(places), single)


def read_lists(path: str | Path) -> ScoredLists:
    """`scored_lists` of a file of training requests. Raises `InputError` naming the file, and the line if one line is
    at fault."""

    def items() -> Iterator[TrainingRequest]:
        for line, value in json_objects(path):
            with named(f"{path}:{line}"):
                item = training_request(value, str(line), judged=False)
                if item.teacher is None:
                    raise InputError("there is no teacher; `blockrank data teach` stores a score for each document.")
            yield item

    return scored_lists(items(), str(path))


@dataclass(frozen=True, slots=True)
class ListCollator:
    """Makes a batch of B lists: features of the queries, features of the batch's distinct documents in chunks of
    similar length, `rows_BM`: the rows of each list's documents in the concatenated chunks (-1 where it has fewer than
    M), and `teacher_BM`."""

    model: Any
    texts: Sequence[str]

    def __call__(self, lists: Sequence[ScoredList]) -> dict[str, Any]:
        """The batch of some lists."""
        distinct = np.unique(np.concatenate([item.rows_C for item in lists])).tolist()
        distinct.sort(key=lambda row: len(self.texts[row]))
        places = {row: place for place, row in enumerate(distinct)}
        most = max(len(item.rows_C) for item in lists)
        rows_BM = torch.full((len(lists), most), -1)
        teacher_BM = torch.zeros((len(lists), most))
        for at, item in enumerate(lists):
            rows_BM[at, : len(item.rows_C)] = torch.tensor([places[row] for row in item.rows_C.tolist()])
            teacher_BM[at, : len(item.rows_C)] = torch.from_numpy(item.teacher_C)
        chunks = [distinct[start : start + _CHUNK] for start in range(0, len(distinct), _CHUNK)]
        return {
            "queries": features(self.model, [item.query for item in lists], "query"),
            "documents": [features(self.model, [self.texts[row] for row in chunk], "document") for chunk in chunks],
            "rows_BM": rows_BM,
            "teacher_BM": teacher_BM,
        }


def features(model: Any, texts: Sequence[str], task: str) -> Features:
    """Inputs of the model's forward, with the prompt that the model defines for a task: `query` or `document`."""
    prompt = next((model.prompts[name] for name in _PROMPTS[task] if name in model.prompts), None)
    found: Features = model.preprocess(list(texts), prompt=prompt, task=task)
    return found


def vectors(forward: Any, made: Features, task: str) -> Tensor:
    """Vectors (N, D) of texts, with gradients."""
    found: Tensor = forward(made, task=task)["sentence_embedding"]
    return found


def list_logits(forward: Any, batch: dict[str, Any], temperature: float, *, cosine: bool) -> Tensor:
    """Similarities over the temperature, (B, M); -inf where a list has no document."""
    queries_BD = vectors(forward, batch["queries"], "query")
    documents_CD = torch.cat([vectors(forward, chunk, "document") for chunk in batch["documents"]])
    if cosine:
        queries_BD, documents_CD = F.normalize(queries_BD, dim=1), F.normalize(documents_CD, dim=1)
    rows_BM = batch["rows_BM"]
    logits_BM = (queries_BD[:, None] * documents_CD[rows_BM.clamp_min(0)]).sum(2) / temperature
    return logits_BM.masked_fill(rows_BM < 0, -torch.inf)
