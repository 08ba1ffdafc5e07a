"""A bigger encoder as a late-interaction teacher: its token states, read as the embedded model reads its own.

    python recipes/mini/late.py dev --encoders FOLDER ... --collections DIR --out CHOSEN.json [--queries 100]
    python recipes/mini/late.py score --encoders FOLDER ... --chosen CHOSEN.json --tokenizer FOLDER --sets DIR --out DIR

A document's score is the mean over query tokens of the log-sum-exp of `scale` times the cosines with the document's
tokens, less `power` times the logarithm of its length (LOG.md, the untrained read-out). Every document is encoded once.

`dev` prints nDCG@10 of every encoder and of its mean states over folders in BEIR layout (`runs/bm25s_top100.trec`), and
keeps each encoder's best scale and power and the best weights of a sum with BM25, all standardised within a query.
`score` writes that sum, BM25 left out, as `positive_scores` and `negative_scores` beside the rows they belong to, as
`teacher.py` does for a cross-encoder.
"""

from __future__ import annotations

import argparse
import itertools
import json
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
from teacher import listed_rows, open_pools, scored_tensors
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from blockrank.data import open_collection, read_run
from blockrank.evaluate.measures import per_query

logger = logging.getLogger("late")

RUN = Path("runs") / "bm25s_top100.trec"
ELEMENTS, WIDTH = 1 << 28, 768  # numbers in token states gathered at a time; of one state at most

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
    parts, begin = [], 0
    longest = int((documents.starts[1:] - documents.starts[:-1]).max())
    while begin < len(pairs):
        end, most = begin, 0
        while end < len(pairs) and (end - begin + 1) * max(most, len(pairs[end])) * longest * WIDTH <= ELEMENTS:
            most, end = max(most, len(pairs[end])), end + 1
        end = max(end, begin + 1)
        parts += _group(queries, documents, range(begin, end), pairs[begin:end], scales, powers)
        begin = end
    return np.concatenate(parts)


def _group(
    queries: States,
    documents: States,
    rows: range,
    pairs: Sequence[Array],
    scales: Sequence[float],
    powers: Sequence[float],
) -> list[Array]:
    """The scores of some queries, padded: B queries of Q tokens, C documents each of K tokens."""
    device = queries.rows.device
    listed = np.zeros((len(pairs), max(map(len, pairs))), dtype=np.int64)
    for place, own in enumerate(pairs):
        listed[place, : len(own)] = own
    q_BQD, real_BQ, _ = _padded(queries, torch.arange(rows.start, rows.stop, device=device))
    k_NKD, real_NK, length_N = _padded(documents, torch.from_numpy(listed.reshape(-1)).to(device))
    k_BCKD = k_NKD.view(*listed.shape, *k_NKD.shape[1:])
    cosines = torch.einsum("bqd,bckd->bcqk", q_BQD, k_BCKD).float()
    cosines = cosines.masked_fill(~real_NK.view(*listed.shape, 1, -1), -torch.inf)
    share = real_BQ[:, None] / real_BQ.sum(1)[:, None, None]
    length_BC = length_N.view(listed.shape).float().log()
    values = [((scale * cosines).logsumexp(3) * share).sum(2) for scale in scales]
    table = torch.stack([value - power * length_BC for value in values for power in powers], 2).cpu().numpy()
    return [table[place, : len(own)] for place, own in enumerate(pairs)]


def _padded(states: States, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """States (n, longest, D) of some texts, which of them are real (n, longest), and lengths (n,)."""
    first = states.starts[index]
    length = states.starts[index + 1] - first
    place = torch.arange(int(length.max()), device=index.device)
    real = place < length[:, None]
    return states.rows[torch.where(real, first[:, None] + place, 0)], real, length


# Training sets


def score(options: argparse.Namespace) -> None:
    """Write copies of the sets with scores."""
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    chosen = json.loads(options.chosen.read_text(encoding="utf-8"))
    encoders = [Encoder(folder, options.device, tokenizer) for folder in options.encoders]
    encoders = [encoder for encoder in encoders if chosen["weights"][encoder.name]]
    options.out.mkdir(parents=True, exist_ok=True)
    for pool in open_pools(options.sets, tokenizer, None):
        began = time.perf_counter()
        listed = listed_rows(pool, options.seed)
        rows = [np.concatenate(parts) for parts in zip(*listed, strict=True)]
        total = np.zeros(sum(map(len, rows)), dtype=np.float32)
        for encoder in encoders:
            documents = encoder.states([ids[: options.max_document] for ids in pool.documents])
            scale, power = chosen["readouts"][encoder.name]
            scores = interaction(encoder.states(pool.queries), documents, rows, [scale], [power])[:, 0]
            total += chosen["weights"][encoder.name] * standardised(scores, rows)
            del documents
        parts = np.split(total, np.cumsum([len(part) for part in rows])[:-1])
        cut = [len(part) for part in listed[0]]
        values = [np.concatenate([part[:n] for part, n in zip(parts, cut, strict=True)]),
                  np.concatenate([part[n:] for part, n in zip(parts, cut, strict=True)])]  # fmt: skip
        save_file(scored_tensors(pool, listed, values), options.out / f"{pool.name}.safetensors")
        logger.info(
            "%s: %d documents, %d queries, %.1f s",
            *(pool.name, len(pool.documents), len(pool.queries), time.perf_counter() - began),
        )


def standardised(scores: Array, rows: Sequence[Any]) -> Array:
    """Zero mean and unit variance within each query, whose scores are as many as it has rows."""
    parts = np.split(scores, np.cumsum([len(part) for part in rows])[:-1])
    found: Array = np.concatenate([(part - part.mean()) / max(float(part.std()), 1e-6) for part in parts])
    return found


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
    best, readouts = {"BM25": tables["BM25"]}, {}
    for folder in options.encoders:
        own = [name for name in tables if name.startswith(f"{folder.name} ") and not name.endswith("mean")]
        chosen = max(own, key=lambda name: _mean(judged, tables[name]))
        best[folder.name] = tables[chosen]
        readouts[folder.name] = [float(part) for part in chosen.split()[1:]]
    weights = _best_sum(judged, best)
    options.out.write_text(json.dumps({"readouts": readouts, "weights": weights}), encoding="utf-8")


def _mean(judged: Sequence[Judged], columns: Sequence[Array]) -> float:
    return statistics.mean(item.quality(column) for item, column in zip(judged, columns, strict=True))


def _print(name: str, values: Sequence[float]) -> None:
    sys.stdout.write(f"{name:28}{''.join(f'{value:12.4f}' for value in [*values, statistics.mean(values)])}\n")


def _best_sum(judged: Sequence[Judged], tables: dict[str, list[Array]]) -> dict[str, float]:
    """The weights of the best sum of standardised scores, found by moving one at a time."""
    parts = {
        name: [standardised(column, item.doc_ids) for item, column in zip(judged, columns, strict=True)]
        for name, columns in tables.items()
    }

    def sums(weights: dict[str, float]) -> list[Array]:
        return [sum(weights[name] * parts[name][i] for name in parts) for i in range(len(judged))]

    weights = dict.fromkeys(parts, 1.0)
    best = _mean(judged, sums(weights))
    for _ in range(2):
        for name, weight in itertools.product(parts, (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)):
            tried = {**weights, name: weight}
            if any(tried.values()) and (found := _mean(judged, sums(tried))) > best + 1e-5:
                best, weights = found, tried
    _print("sum", [item.quality(column) for item, column in zip(judged, sums(weights), strict=True)])
    sys.stdout.write(f"{weights}\n")
    return weights


def main() -> None:
    """Score training sets, or say what encoders are worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    scored, measured = verbs.add_parser("score"), verbs.add_parser("dev")
    for part in (scored, measured):
        part.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    scored.add_argument("--encoders", type=Path, nargs="+", required=True)
    scored.add_argument("--chosen", type=Path, required=True, help="what `dev` wrote")
    scored.add_argument("--tokenizer", type=Path, required=True, help="folder of the sets' tokenizer")
    scored.add_argument("--sets", type=Path, required=True, help="folder of sets with vectors")
    scored.add_argument("--out", type=Path, required=True)
    scored.add_argument("--max-document", type=int, default=128)
    scored.add_argument("--seed", type=int, default=0)
    measured.add_argument("--encoders", type=Path, nargs="+", required=True)
    measured.add_argument("--collections", type=Path, required=True)
    measured.add_argument("--out", type=Path, required=True)
    measured.add_argument("--queries", type=int, default=100)
    measured.add_argument("--scales", type=float, nargs="*", default=[15.0, 20.0, 30.0, 45.0])
    measured.add_argument("--powers", type=float, nargs="*", default=[0.5, 0.75, 1.0])
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    {"score": score, "dev": dev}[options.verb](options)


if __name__ == "__main__":
    main()
