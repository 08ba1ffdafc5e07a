"""Encode training sets with a bi-encoder and mine dense hard negatives in each set's own pool.

    python recipes/mini/embed.py --model FOLDER --sets IN_DIR --out OUT_DIR [--device cuda]

Reads the files that ``prepare.py`` wrote and writes copies with three tensors added (C documents, N queries, D width):

- ``document_vectors`` float16 (C, D) and ``query_vectors`` float16 (N, D): mean over all tokens, unit length
- ``dense`` int32 (N, 16): the nearest documents by cosine that no row with the same query has as a positive,
  nearest first, padded with -1; all -1 where the set allows only its own negatives (metadata ``mining: own``)
"""

from __future__ import annotations

import argparse
import itertools
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import BertModel

logger = logging.getLogger("embed")

CLS, SEP, PAD = 101, 102, 0  # [CLS], [SEP], [PAD] in the vocabulary of BERT uncased
NEGATIVES = 16  # dense negatives of a query
SCORES = 1 << 28  # cosines held at a time

Array = npt.NDArray[Any]


def load_set(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """The tensors and the metadata of one training set."""
    with safe_open(str(path), framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def load_model(folder: Path, device: torch.device) -> BertModel:
    """The encoder: half precision on a GPU, float32 elsewhere."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    model: BertModel = BertModel.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", add_pooling_layer=False
    )
    torch.nn.Module.to(model, device)
    return model  # in evaluation mode already


def collate(
    tokens: torch.Tensor, first: torch.Tensor, lengths: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """``[CLS] text [SEP] [PAD]...`` of B texts as ids (B, width) and what is no padding (B, width), by indexing only.

    ``tokens``: the flat tokens. ``first``, ``lengths`` (B,): where each text starts in them, and its length.
    """
    column = torch.arange(width, device=tokens.device)[None, :]
    index = (first[:, None] + column - 1).clamp_(0, len(tokens) - 1)
    last = lengths[:, None] + 1
    ids = torch.where(column < last, tokens[index].long(), SEP)
    ids = torch.where(column > last, PAD, ids)
    ids[:, 0] = CLS
    return ids, column <= last


def plan_batches(lengths: npt.NDArray[np.int64], budget: int) -> list[npt.NDArray[np.int64]]:
    """Text indices, longest first, in batches of at most ``budget`` tokens, padding and specials counted in."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        count = max(1, budget // int(lengths[order[start]] + 2))
        batches.append(order[start : start + count])
        start += count
    return batches


@torch.inference_mode()
def encode(model: BertModel, tokens: Array, starts: npt.NDArray[np.int64], budget: int) -> torch.Tensor:
    """Unit vectors (texts, D), in float32 and on the model's device, of texts given as flat tokens and starts."""
    device = model.device
    lengths = np.diff(starts)
    flat = torch.from_numpy(tokens.astype(np.int32)).to(device)
    first_all = torch.from_numpy(starts[:-1]).to(device)
    lengths_all = torch.from_numpy(lengths).to(device)
    vectors = torch.empty(len(lengths), model.config.hidden_size, device=device)
    for batch in plan_batches(lengths, budget):
        width, narrow = int(lengths[batch[0]]) + 2, int(lengths[batch[-1]]) + 2
        rows = torch.from_numpy(batch).to(device)
        ids, mask = collate(flat, first_all[rows], lengths_all[rows], width)
        # Without padding no mask: the faster attention kernels take none.
        hidden = model(input_ids=ids, attention_mask=mask.long() if narrow < width else None).last_hidden_state
        weights = mask[:, :, None].float()
        pooled = (hidden.float() * weights).sum(1) / weights.sum(1)
        vectors[rows] = torch.nn.functional.normalize(pooled, dim=-1)
    return vectors


def gather_ragged(starts: npt.NDArray[np.int64], rows: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For ragged rows: (position in ``rows``, index into the flat values) of every value of those rows."""
    counts = np.diff(starts)[rows]
    owner = np.repeat(np.arange(len(rows)), counts)
    offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return owner, starts[:-1][rows][owner] + offset


def same_queries(tokens: Array, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A number (N,) for each query that equal queries share."""
    flat, bounds = tokens.tobytes(), (starts * tokens.itemsize).tolist()
    numbers: dict[bytes, int] = {}
    spans = itertools.pairwise(bounds)
    return np.array([numbers.setdefault(flat[start:end], len(numbers)) for start, end in spans], dtype=np.int64)


def excluded_documents(tensors: dict[str, Array]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(starts (N + 1,), documents): for each query the distinct positives of every row with that query."""
    queries = same_queries(tensors["query_tokens"], tensors["query_starts"])
    count = int(queries.max()) + 1
    owner = np.repeat(queries, np.diff(tensors["positive_starts"]))
    pairs = np.unique(np.stack([owner, tensors["positives"].astype(np.int64)]), axis=1)
    by_query = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(pairs[0], minlength=count), out=by_query[1:])
    row, index = gather_ragged(by_query, queries)
    starts = np.zeros(len(queries) + 1, dtype=np.int64)
    np.cumsum(np.bincount(row, minlength=len(queries)), out=starts[1:])
    return starts, pairs[1][index]


@torch.inference_mode()
def mine(documents: torch.Tensor, queries: torch.Tensor, tensors: dict[str, Array]) -> npt.NDArray[np.int32]:
    """The nearest documents (N, 16) of each query that are not excluded, nearest first, padded with -1."""
    starts, excluded = excluded_documents(tensors)
    dtype = torch.float16 if documents.is_cuda else torch.float32
    documents, queries = documents.to(dtype), queries.to(dtype)
    depth = min(NEGATIVES, len(documents))
    dense = np.full((len(queries), NEGATIVES), -1, dtype=np.int32)
    step = max(1, SCORES // len(documents))
    for begin in range(0, len(queries), step):
        end = min(begin + step, len(queries))
        scores = queries[begin:end] @ documents.T
        row, index = gather_ragged(starts, np.arange(begin, end))
        here = torch.from_numpy(np.stack([row, excluded[index]])).to(scores.device)
        scores[here[0], here[1]] = -torch.inf
        top = scores.topk(depth, dim=-1)
        nearest = torch.where(top.values.isinf(), -1, top.indices)
        dense[begin:end, :depth] = nearest.int().cpu().numpy()
    return dense


def embed(path: Path, model: BertModel, out: Path, budget: int) -> int:
    """Write the copy of one training set with vectors and dense negatives; returns the tokens encoded."""
    tensors, metadata = load_set(path)
    began = time.perf_counter()
    documents = encode(model, tensors["document_tokens"], tensors["document_starts"], budget)
    queries = encode(model, tensors["query_tokens"], tensors["query_starts"], budget)
    tensors["document_vectors"] = documents.half().cpu().numpy()
    tensors["query_vectors"] = queries.half().cpu().numpy()
    encoded = time.perf_counter()
    if metadata.get("mining") == "own":
        tensors["dense"] = np.full((len(queries), NEGATIVES), -1, dtype=np.int32)
    else:
        tensors["dense"] = mine(documents, queries, tensors)
    mined = time.perf_counter()
    save_file(tensors, out / path.name, metadata=metadata)
    tokens = len(tensors["document_tokens"]) + len(tensors["query_tokens"])
    logger.info(
        "%s: %d documents, %d queries, %d tokens; encoded %.1f s, mined %.1f s, written %.1f s",
        *(path.stem, len(documents), len(queries), tokens),
        *(encoded - began, mined - encoded, time.perf_counter() - mined),
    )
    return tokens


def main() -> None:
    """Embed every training set of a folder, small files first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--sets", type=Path, required=True, help="folder of training sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for the copies")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--budget", type=int, default=131_072, help="tokens in a batch")
    parser.add_argument("--limit", type=int, default=None, help="only so many files, the smallest (for a test)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = load_model(arguments.model, torch.device(arguments.device))
    paths = sorted(arguments.sets.glob("*.safetensors"), key=lambda path: path.stat().st_size)[: arguments.limit]
    began = time.perf_counter()
    tokens = sum(embed(path, model, arguments.out, arguments.budget) for path in paths)
    logger.info("%d sets, %d tokens, %.1f s", len(paths), tokens, time.perf_counter() - began)


if __name__ == "__main__":
    main()
