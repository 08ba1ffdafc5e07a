"""Train a cross-encoder on the training sets and store its scores in them, as the teacher named "given".

    python recipes/mini/teacher.py train --base FOLDER --tokenizer FOLDER --sets IN_DIR --out TEACHER
    python recipes/mini/teacher.py score --teacher TEACHER --tokenizer FOLDER --sets IN_DIR --out OUT_DIR

The base is any model that transformers loads for sequence classification: an encoder reads `[CLS] query [SEP] document
[SEP]`, a decoder a prompt of its own whose last token is read. Sets hold tokens of `--tokenizer`; a base with another
vocabulary gets their text again. Training: cross-entropy of one positive among mined negatives, with the
likely unlabelled positives left out (`--drop-above`), and the KL divergence from the bi-encoder's scores, which holds
the model where labels are noise. `score` writes `positive_scores` and `negative_scores` beside the rows they belong to;
the negatives are then the mined ones, the dense ones and a few at random, each once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from embed import load_set
from safetensors.numpy import save_file
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, get_cosine_schedule_with_warmup

logger = logging.getLogger("teacher")

RANDOM_NEGATIVES = 8  # of a query, scored beside the mined ones
BI_ENCODER_TEMPERATURE = 0.05
CHUNKS = 4  # parts of a step, by length, each padded on its own

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Frame:
    """The tokens before the query, between query and document, and after the document."""

    before: Array
    between: Array
    after: Array
    pad: int


@dataclass(frozen=True)
class Pool:
    """One training set in the base's tokens. vectors: unit vectors of documents and queries, for the KL term."""

    name: str
    tensors: dict[str, Array]
    documents: list[Array]
    queries: list[Array]

    def mined(self, row: int) -> Array:
        """Mined and dense negatives of a query, each once."""
        starts, dense = self.tensors["negative_starts"], self.tensors["dense"][row]
        listed = self.tensors["negatives"][starts[row] : starts[row + 1]]
        return np.fromiter(dict.fromkeys([*listed.tolist(), *dense[dense >= 0].tolist()]), dtype=np.int64)

    def positives(self, row: int) -> Array:
        """Rows of a query's positives."""
        starts = self.tensors["positive_starts"]
        return self.tensors["positives"][starts[row] : starts[row + 1]].astype(np.int64)

    def cosines(self, row: int, documents: Array) -> Array:
        """The bi-encoder's scores."""
        vectors = self.tensors["document_vectors"][documents].astype(np.float32)
        return vectors @ self.tensors["query_vectors"][row].astype(np.float32)


def frame_of(tokenizer: Any, is_encoder: bool) -> Frame:
    """How a pair is written for a base."""
    if is_encoder:
        cls, sep = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
        return Frame(np.array(cls), np.array(sep), np.array(sep), tokenizer.pad_token_id)

    def ids(text: str) -> Array:
        return np.array(tokenizer(text, add_special_tokens=False).input_ids)

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return Frame(ids("Query: "), ids("\nPassage: "), ids("\nRelevant:"), pad)


def open_pools(folder: Path, source: Any, target: Any | None) -> list[Pool]:
    """All sets of a folder; their texts go through another tokenizer where there is one."""

    def texts(tokens: Array, starts: Array) -> list[Array]:
        parts = [tokens[a:b].astype(np.int64) for a, b in itertools.pairwise(starts)]
        if target is None:
            return parts
        words = source.batch_decode(parts, clean_up_tokenization_spaces=True)
        return [np.array(ids, dtype=np.int64) for ids in target(words, add_special_tokens=False).input_ids]

    def pool(path: Path) -> Pool:
        tensors, _ = load_set(path)
        return Pool(
            path.stem,
            tensors,
            texts(tensors["document_tokens"], tensors["document_starts"]),
            texts(tensors["query_tokens"], tensors["query_starts"]),
        )

    return [pool(path) for path in sorted(folder.glob("*.safetensors"))]


class CrossEncoder:
    """A sequence classifier with one logit, and how it reads pairs."""

    def __init__(self, folder: Path, device: torch.device, max_document: int) -> None:
        config = AutoConfig.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.is_encoder = config.model_type in ("bert", "roberta", "modernbert")
        self.frame = frame_of(self.tokenizer, self.is_encoder)
        self._max_document = max_document
        self.device = device
        self.model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, pad_token_id=self.frame.pad, attn_implementation="sdpa", dtype=torch.float32
        ).to(device)

    def logits(self, pairs: Sequence[tuple[Array, Array]]) -> torch.Tensor:
        """(n,) logits of (query, document) token pairs, in chunks of similar length."""
        frame, sizes = self.frame, []
        rows = []
        for query, document in pairs:
            head = np.concatenate([frame.before, query, frame.between])
            rows.append((len(head), np.concatenate([head, document[: self._max_document], frame.after])))
            sizes.append(len(rows[-1][1]))
        order = np.argsort(sizes, kind="stable")
        parts = []
        for chunk in np.array_split(order, CHUNKS):
            if len(chunk):
                parts.append(self._chunk([rows[i] for i in chunk]))
        return torch.cat(parts)[torch.from_numpy(np.argsort(order, kind="stable")).to(self.device)]

    def _chunk(self, rows: Sequence[tuple[int, Array]]) -> torch.Tensor:
        width = math.ceil(max(len(ids) for _, ids in rows) / 8) * 8
        ids = np.full((len(rows), width), self.frame.pad, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        kinds = np.zeros((len(rows), width), dtype=np.int64)
        for index, (head, row) in enumerate(rows):
            ids[index, : len(row)], mask[index, : len(row)] = row, 1
            kinds[index, head : len(row)] = 1

        def moved(array: Array) -> torch.Tensor:
            tensor = torch.from_numpy(array)
            return (tensor.pin_memory() if self.device.type == "cuda" else tensor).to(self.device, non_blocking=True)

        extras = {"token_type_ids": moved(kinds)} if self.is_encoder else {"use_cache": False}
        logits: torch.Tensor = self.model(input_ids=moved(ids), attention_mask=moved(mask), **extras).logits
        return logits[:, 0].float()


@dataclass(frozen=True)
class Draw:
    """The candidates of one step: (query, document) pairs, B requests of C each with the positive first, and the
    bi-encoder's scores (B, C)."""

    pairs: list[tuple[Array, Array]]
    cosines: Array


def draw(pools: Sequence[Pool], shares: Array, requests: int, candidates: int, drop: float, seed: int) -> Draw:
    """One positive and mined negatives for each of `requests` queries."""
    generator = np.random.default_rng(seed)
    pairs, cosines = [], []
    while len(cosines) < requests:
        pool = pools[int(generator.choice(len(pools), p=shares))]
        row = int(generator.integers(len(pool.queries)))
        positives, hard = pool.positives(row), pool.mined(row)
        best = float(pool.cosines(row, positives).max())
        hard = hard[pool.cosines(row, hard) <= drop * best]
        chosen = generator.permutation(hard)[: candidates - 1]
        filler = generator.integers(len(pool.documents), size=candidates)
        filler = filler[~np.isin(filler, positives)][: candidates - 1 - len(chosen)]
        rows = np.concatenate([generator.permutation(positives)[:1], chosen, filler])
        if len(rows) < candidates:
            continue
        pairs += [(pool.queries[row], pool.documents[int(i)]) for i in rows]
        cosines.append(pool.cosines(row, rows))
    return Draw(pairs, np.stack(cosines))


def draws(pools: Sequence[Pool], shares: Array, options: argparse.Namespace) -> Iterator[Draw]:
    """The steps of a run, drawn ahead in a thread."""
    arguments = (options.requests, options.candidates, options.drop_above)
    with ThreadPoolExecutor(3) as executor:
        ahead = [executor.submit(draw, pools, shares, *arguments, seed) for seed in range(4)]
        for step in range(options.steps):
            ahead.append(executor.submit(draw, pools, shares, *arguments, options.seed * 1_000_000 + step + 4))
            yield ahead.pop(0).result()


def train(options: argparse.Namespace) -> None:
    """Train and save a teacher."""
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    teacher = CrossEncoder(options.base, options.device, options.max_document)
    pools = open_pools(options.sets, *_tokenizers(options, teacher))
    weights = json.loads(options.weights) if options.weights else {}
    shares = np.array([len(pool.queries) * weights.get(pool.name, 1.0) for pool in pools])
    shares /= shares.sum()
    optimizer = torch.optim.AdamW(teacher.model.parameters(), lr=options.rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, options.steps // 20), options.steps)
    teacher.model.train()
    began, seen = time.perf_counter(), torch.zeros(2, device=options.device)
    for step, batch in enumerate(draws(pools, shares, options), 1):
        with torch.autocast(options.device.type, torch.bfloat16, enabled=options.device.type == "cuda"):
            logits = teacher.logits(batch.pairs)
        logits = logits.view(-1, options.candidates)
        labels = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=options.device))
        target = torch.from_numpy(batch.cosines).to(options.device) / BI_ENCODER_TEMPERATURE
        distil = F.kl_div(logits.log_softmax(1), target.log_softmax(1), log_target=True, reduction="batchmean")
        loss = labels + options.distil * distil
        loss.backward()
        torch.nn.utils.clip_grad_norm_(teacher.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        seen += torch.stack([labels.detach(), distil.detach()])
        if step % options.log == 0:
            values = (seen / options.log).tolist()
            seen.zero_()
            logger.info("step %d: labels %.4f, bi-encoder %.4f, %.0f s", step, *values, time.perf_counter() - began)
    options.out.mkdir(parents=True, exist_ok=True)
    teacher.model.to(torch.bfloat16).save_pretrained(options.out)
    teacher.tokenizer.save_pretrained(options.out)


def _tokenizers(options: argparse.Namespace, teacher: CrossEncoder) -> tuple[Any, Any | None]:
    """The tokenizer of the sets, and the teacher's own where it is another."""
    source = AutoTokenizer.from_pretrained(options.tokenizer)
    return source, None if teacher.is_encoder else teacher.tokenizer


@torch.inference_mode()
def score(options: argparse.Namespace) -> None:
    """Write copies of the sets with scores."""
    teacher = CrossEncoder(options.teacher, options.device, options.max_document)
    teacher.model.eval().to(torch.bfloat16)
    options.out.mkdir(parents=True, exist_ok=True)
    for pool in open_pools(options.sets, *_tokenizers(options, teacher)):
        began = time.perf_counter()
        listed = listed_rows(pool, options.seed)
        values = [_scores(teacher, pool, rows, options.budget) for rows in listed]
        save_file(scored_tensors(pool, listed, values), options.out / f"{pool.name}.safetensors")
        logger.info("%s: %d queries, %.1f s", pool.name, len(pool.queries), time.perf_counter() - began)


def listed_rows(pool: Pool, seed: int) -> tuple[list[Array], list[Array]]:
    """The documents of each query that get a score: its positives; its mined, its dense and a few random negatives."""
    generator = np.random.default_rng(seed)
    positives, negatives = [], []
    for row in range(len(pool.queries)):
        known, hard = pool.positives(row), pool.mined(row)
        filler = generator.integers(len(pool.documents), size=RANDOM_NEGATIVES)
        filler = filler[~np.isin(filler, np.concatenate([known, hard]))]
        positives.append(known)
        negatives.append(np.concatenate([hard, np.unique(filler)]))
    return positives, negatives


def scored_tensors(pool: Pool, listed: tuple[list[Array], list[Array]], values: Sequence[Array]) -> dict[str, Array]:
    """The tensors of a set with its listed rows and their scores."""
    tensors = dict(pool.tensors)
    for name, rows, scores in zip(("positive", "negative"), listed, values, strict=True):
        tensors[f"{name}s"] = np.concatenate(rows).astype(np.int32)
        tensors[f"{name}_starts"] = np.r_[0, np.cumsum([len(part) for part in rows])].astype(np.int64)
        tensors[f"{name}_scores"] = scores
    del tensors["dense"]  # among the negatives now
    return tensors


def _scores(teacher: CrossEncoder, pool: Pool, rows: Sequence[Array], budget: int) -> Array:
    """Scores of every row of every query, in batches of similar length."""
    owner = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
    flat = np.concatenate(rows)
    lengths = np.array([len(pool.queries[q]) + len(pool.documents[d]) for q, d in zip(owner, flat, strict=True)])
    order, at = np.argsort(-lengths, kind="stable"), 0
    scores = np.zeros(len(flat), dtype=np.float32)
    while at < len(order):
        batch = order[at : at + max(CHUNKS, budget // int(lengths[order[at]] + 8))]
        pairs = [(pool.queries[owner[i]], pool.documents[flat[i]]) for i in batch]
        scores[batch] = teacher.logits(pairs).cpu().numpy()
        at += len(batch)
    return scores


def main() -> None:
    """Train a teacher, or store its scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("train", "score"):
        part = verbs.add_parser(verb)
        part.add_argument("--sets", type=Path, required=True, help="folder of sets with vectors")
        part.add_argument("--tokenizer", type=Path, required=True, help="folder of the sets' tokenizer")
        part.add_argument("--out", type=Path, required=True)
        part.add_argument("--max-document", type=int, default=160)
        part.add_argument("--seed", type=int, default=0)
        part.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    trained, scored = verbs.choices["train"], verbs.choices["score"]
    trained.add_argument("--base", type=Path, required=True)
    trained.add_argument("--weights", default="", help="shares of sets as JSON, by name")
    trained.add_argument("--steps", type=int, default=2000)
    trained.add_argument("--requests", type=int, default=64)
    trained.add_argument("--candidates", type=int, default=8)
    trained.add_argument("--rate", type=float, default=3e-5)
    trained.add_argument("--distil", type=float, default=0.5)
    trained.add_argument("--drop-above", type=float, default=0.95)
    trained.add_argument("--log", type=int, default=200)
    scored.add_argument("--teacher", type=Path, required=True)
    scored.add_argument("--budget", type=int, default=262_144, help="tokens in a batch")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    (train if options.verb == "train" else score)(options)


if __name__ == "__main__":
    main()
