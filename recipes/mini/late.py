"""A bigger encoder as a late-interaction teacher: its token states, read as the embedded model reads its own.

    python recipes/mini/late.py dev --encoders FOLDER ... --collections DIR [--queries 100]
    python recipes/mini/late.py score --encoder FOLDER --tokenizer FOLDER --sets IN_DIR --out OUT_DIR

A document's score is the mean over query tokens of the log-sum-exp of `scale` times the cosines with the document's
tokens, less `power` times the logarithm of its length (LOG.md, the untrained read-out). Every document is encoded once.

`dev` prints nDCG@10 of every encoder, of its mean states, and of the best sums of them with BM25 (each standardised
within a query), over folders in BEIR layout with `runs/bm25s_top100.trec`. `score` writes `positive_scores` and
`negative_scores` beside the rows they belong to, as `teacher.py` does for a cross-encoder.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save_file
from teacher import Pool, listed_rows, open_pools, scored_tensors
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from blockrank.data import open_collection, read_run
from blockrank.evaluate.measures import per_query

logger = logging.getLogger("late")

RUN = Path("runs") / "bm25s_top100.trec"
ELEMENTS = 1 << 28  # of token states gathered at a time

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class States:
    """Unit token states (R, D) of texts, one after the other, where each starts (n + 1,), and mean states (n, D)."""

    rows: Tensor
    starts: Tensor
    means: Tensor


class Encoder:
    """A BERT-like encoder: `[CLS] text [SEP]` to token states. map: its ids of another vocabulary's tokens."""

    def __init__(self, folder: Path, device: torch.device, tokenizer: Any = None) -> None:
        self.name = folder.name
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        self._model = AutoModel.from_pretrained(folder, dtype=dtype).to(device).eval()
        self._device = device
        words = tokenizer.convert_ids_to_tokens(range(len(tokenizer))) if tokenizer else None
        self._map = np.array(self.tokenizer.convert_tokens_to_ids(words)) if words else None

    def tokens(self, texts: Sequence[str], most: int) -> list[Array]:
        """Ids of texts, at most so many of each, without the frame."""
        found = self.tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=most).input_ids
        return [np.array(ids, dtype=np.int64) for ids in found]

    @torch.inference_mode()
    def states(self, texts: Sequence[Array], budget: int = 131_072) -> States:
        """States of all texts, given as ids of the mapped vocabulary where there is one."""
        width = self._model.config.hidden_size
        first, last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        framed = [np.r_[first, ids if self._map is None else self._map[ids], last] for ids in texts]
        lengths = np.array([len(ids) for ids in framed])
        starts = np.r_[0, np.cumsum(lengths)]
        rows = torch.empty(int(starts[-1]), width, dtype=self._model.dtype, device=self._device)
        means = torch.empty(len(framed), width, device=self._device)
        order, at = np.argsort(-lengths, kind="stable"), 0
        while at < len(order):
            batch = order[at : at + max(1, budget // int(lengths[order[at]]))]
            longest = int(lengths[batch[0]])
            ids = np.full((len(batch), longest), self.tokenizer.pad_token_id, dtype=np.int64)
            for place, index in enumerate(batch):
                ids[place, : lengths[index]] = framed[index]
            mask = torch.from_numpy(np.arange(longest) < lengths[batch][:, None]).to(self._device)
            hidden = self._model(
                input_ids=torch.from_numpy(ids).to(self._device), attention_mask=mask.long()
            ).last_hidden_state.float()
            hidden = hidden.masked_fill(~mask[:, :, None], 0.0)
            means[torch.from_numpy(batch).to(self._device)] = F.normalize(hidden.sum(1), dim=-1)
            flat = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in batch])
            rows[torch.from_numpy(flat).to(self._device)] = F.normalize(hidden[mask], dim=-1).to(rows.dtype)
            at += len(batch)
        return States(rows, torch.from_numpy(starts).to(self._device), means)


@torch.inference_mode()
def interaction(
    queries: States, documents: States, pairs: Sequence[Array], scales: Sequence[float], powers: Sequence[float]
) -> Array:
    """Scores (pairs, scales x powers) of the documents listed for each query, one query after the other."""
    columns = []
    lengths = (documents.starts[1:] - documents.starts[:-1]).float()
    for query, listed in enumerate(pairs):
        own = queries.rows[queries.starts[query] : queries.starts[query + 1]]
        index = torch.from_numpy(np.asarray(listed)).to(own.device)
        sizes = lengths[index].long()
        longest = int(sizes.max())
        parts = []
        step = max(1, ELEMENTS // (longest * own.shape[1]))
        for begin in range(0, len(index), step):
            chunk, size = index[begin : begin + step], sizes[begin : begin + step]
            place = torch.arange(longest, device=own.device)
            real = place < size[:, None]
            rows = documents.rows[torch.where(real, documents.starts[chunk][:, None] + place, 0)]
            cosines = torch.einsum("qd,ckd->cqk", own, rows).float().masked_fill(~real[:, None], -torch.inf)
            values = [(scale * cosines).logsumexp(2).mean(1) for scale in scales]
            parts.append(torch.stack([v - p * size.float().log() for v in values for p in powers], 1))
        columns.append(torch.cat(parts))
    return torch.cat(columns).cpu().numpy()


# Training sets


def score(options: argparse.Namespace) -> None:
    """Write copies of the sets with scores."""
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    encoder = Encoder(options.encoder, options.device, tokenizer)
    options.out.mkdir(parents=True, exist_ok=True)
    for pool in open_pools(options.sets, tokenizer, None):
        began = time.perf_counter()
        listed = listed_rows(pool, options.seed)
        documents = encoder.states([ids[: options.max_document] for ids in pool.documents])
        encoded = time.perf_counter()
        values = [_late_scores(encoder, pool, documents, rows, options) for rows in listed]
        save_file(scored_tensors(pool, listed, values), options.out / f"{pool.name}.safetensors")
        logger.info(
            "%s: %d documents encoded in %.1f s, %d queries in %.1f s",
            *(pool.name, len(pool.documents), encoded - began, len(pool.queries), time.perf_counter() - encoded),
        )


def _late_scores(
    encoder: Encoder, pool: Pool, documents: States, rows: Sequence[Array], options: argparse.Namespace
) -> Array:
    """Scores of every row of every query."""
    queries = encoder.states(pool.queries)
    return interaction(queries, documents, rows, [options.scale], [options.power])[:, 0].astype(np.float32)


# Development collections


@dataclass(frozen=True)
class Judged:
    """The candidates of a collection's queries: ids, rows in `texts`, and BM25's scores."""

    name: str
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    doc_ids: list[list[str]]
    rows: list[Array]
    texts: list[str]
    lexical: Array

    def run(self, scores: Array) -> dict[str, dict[str, float]]:
        """A run of scores, one a candidate."""
        parts = np.split(scores.astype(np.float64), np.cumsum([len(ids) for ids in self.doc_ids])[:-1])
        named = zip(self.queries, self.doc_ids, parts, strict=True)
        return {query_id: dict(zip(ids, part.tolist(), strict=True)) for query_id, ids, part in named}

    def quality(self, scores: Array) -> float:
        """Mean nDCG@10."""
        return statistics.mean(row["nDCG@10"] for row in per_query(self.run(scores), self.qrels, ["nDCG@10"]).values())

    def standardised(self, scores: Array) -> Array:
        """Zero mean and unit variance within a query."""
        parts = np.split(scores, np.cumsum([len(ids) for ids in self.doc_ids])[:-1])
        return np.concatenate([(part - part.mean()) / max(float(part.std()), 1e-6) for part in parts])


def open_judged(folder: Path, most: int) -> Judged:
    """The first queries of a collection and their candidates."""
    collection, run = open_collection(folder), read_run(folder / RUN)
    chosen = [query_id for query_id in collection.qrels if query_id in run][:most]
    doc_ids = [list(run[query_id]) for query_id in chosen]
    places = {doc_id: row for row, doc_id in enumerate(dict.fromkeys(itertools.chain(*doc_ids)))}
    texts = [document.content for document in collection.corpus.read(places).values()]
    return Judged(
        folder.name,
        {query_id: collection.queries[query_id] for query_id in chosen},
        {query_id: collection.qrels[query_id] for query_id in chosen},
        doc_ids,
        [np.array([places[doc_id] for doc_id in ids]) for ids in doc_ids],
        texts,
        np.array([run[query_id][doc_id] for query_id, ids in zip(chosen, doc_ids, strict=True) for doc_id in ids]),
    )


def dev(options: argparse.Namespace) -> None:
    """Print what encoders and sums of them are worth."""
    judged = [open_judged(folder, options.queries) for folder in sorted(options.collections.iterdir())]
    tables: dict[str, list[Array]] = {"BM25": [item.lexical for item in judged]}
    for folder in options.encoders:
        encoder = Encoder(folder, options.device)
        for item in judged:
            documents = encoder.states(encoder.tokens(item.texts, 254))
            queries = encoder.states(encoder.tokens(list(item.queries.values()), 254))
            found = interaction(queries, documents, item.rows, options.scales, options.powers)
            for column, (scale, power) in enumerate(itertools.product(options.scales, options.powers)):
                tables.setdefault(f"{encoder.name} {scale:g} {power:g}", []).append(found[:, column])
            cosines = [(documents.means[torch.from_numpy(rows).to(options.device)] @ query).cpu().numpy()
                       for rows, query in zip(item.rows, queries.means, strict=True)]  # fmt: skip
            tables.setdefault(f"{encoder.name} mean", []).append(np.concatenate(cosines))
    sys.stdout.write(f"{'':28}{''.join(f'{item.name[:10]:>12}' for item in judged)}{'mean':>12}\n")
    for name, columns in tables.items():
        _print(name, [item.quality(column) for item, column in zip(judged, columns, strict=True)])
    best = {"BM25": tables["BM25"]}
    for folder in options.encoders:
        own = {name: t for name, t in tables.items() if name.startswith(f"{folder.name} ") and "mean" not in name}
        best[folder.name] = max(own.values(), key=lambda t: _mean(judged, t))
        best[f"{folder.name} mean"] = tables[f"{folder.name} mean"]
    _sums(judged, best)


def _mean(judged: Sequence[Judged], columns: Sequence[Array]) -> float:
    return statistics.mean(item.quality(column) for item, column in zip(judged, columns, strict=True))


def _print(name: str, values: Sequence[float]) -> None:
    sys.stdout.write(f"{name:28}{''.join(f'{value:12.4f}' for value in [*values, statistics.mean(values)])}\n")


def _sums(judged: Sequence[Judged], tables: dict[str, list[Array]]) -> None:
    """The ten best sums of standardised scores, found by moving one weight at a time."""
    parts = {
        name: [item.standardised(column) for item, column in zip(judged, columns, strict=True)]
        for name, columns in tables.items()
    }

    def value(weights: dict[str, float]) -> float:
        sums = [sum(weights[name] * parts[name][i] for name in parts) for i in range(len(judged))]
        return _mean(judged, sums)

    weights = dict.fromkeys(parts, 0.3)
    best = value(weights)
    for _ in range(3):
        for name in parts:
            for weight in (0.0, 0.1, 0.2, 0.4, 0.7, 1.0):
                tried = {**weights, name: weight}
                if any(tried.values()) and (found := value(tried)) > best + 1e-5:
                    best, weights = found, tried
        sys.stdout.write(f"sum {best:.4f} {weights}\n")


def main() -> None:
    """Score training sets, or say what encoders are worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    scored, measured = verbs.add_parser("score"), verbs.add_parser("dev")
    for part in (scored, measured):
        part.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    scored.add_argument("--encoder", type=Path, required=True)
    scored.add_argument("--tokenizer", type=Path, required=True, help="folder of the sets' tokenizer")
    scored.add_argument("--sets", type=Path, required=True, help="folder of sets with vectors")
    scored.add_argument("--out", type=Path, required=True)
    scored.add_argument("--scale", type=float, default=20.0)
    scored.add_argument("--power", type=float, default=0.5)
    scored.add_argument("--max-document", type=int, default=128)
    scored.add_argument("--seed", type=int, default=0)
    measured.add_argument("--encoders", type=Path, nargs="+", required=True)
    measured.add_argument("--collections", type=Path, required=True)
    measured.add_argument("--queries", type=int, default=100)
    measured.add_argument("--scales", type=float, nargs="*", default=[15.0, 20.0, 30.0, 45.0])
    measured.add_argument("--powers", type=float, nargs="*", default=[0.5, 0.75, 1.0])
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    {"score": score, "dev": dev}[options.verb](options)


if __name__ == "__main__":
    main()
