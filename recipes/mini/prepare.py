"""Turn question-passage files (``*.jsonl.xz``) into tokenised training sets with hard negatives.

    python recipes/mini/prepare.py --data DIR_OF_train --tokenizer FOLDER --out OUT_DIR

Writes one safetensors file per source file. C documents, N queries, all rows refer to that file's own pool:

- ``document_tokens`` uint16, ``document_starts`` int64 (C + 1,): body tokens, no [CLS] / [SEP]
- ``query_tokens`` uint16, ``query_starts`` int64 (N + 1,)
- ``positives`` int32 document rows, ``positive_starts`` int64 (N + 1,)
- ``negatives`` int32 document rows, best source first, ``negative_starts`` int64 (N + 1,)

A document is what the model sees: passages that are equal after the cut are one document.
"""

from __future__ import annotations

import argparse
import json
import logging
import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import numpy.typing as npt
import Stemmer
from safetensors.numpy import save_file
from tokenizers import Tokenizer

logger = logging.getLogger("prepare")

FORMAT = "blockrank-training-set/1"
DOCUMENT_LENGTH = 160  # tokens kept of a document
QUERY_LENGTH = 64  # tokens kept of a query
CHARACTER_LIMIT = 4000  # cut before tokenising: far more than DOCUMENT_LENGTH tokens need
OWN_NEGATIVES, SIBLINGS, NEGATIVES = 8, 4, 16  # most of the row's own, of its page, and in all
BM25_DEPTH = 40  # hits asked for: 16 and room for what is filtered out
BATCH = 4096  # texts tokenised, or queries retrieved, at a time

Uint16s = npt.NDArray[np.uint16]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Source:
    """How one file is read.

    ``titled``: documents are title + text. ``cap``: most rows kept. ``mined``: False leaves only the row's own
    negatives. ``reason``: why.
    """

    titled: bool
    reason: str
    cap: int | None = None
    mined: bool = True


# The title belongs to the document unless it would give the query away (a query made from the title or heading).
SOURCES: dict[str, Source] = {
    "arxiv-title-abstract": Source(False, "the query is the title", cap=60_000),
    "wiki-title-lead": Source(False, "the query is the title", cap=30_000),
    "msdocs": Source(False, "queries repeat the page title", cap=50_000),
    "openstax": Source(False, "queries are headings"),
    "powershell-docs": Source(False, "queries are made from headings"),
    "us-gov-web": Source(False, "queries are headings, often with the page title"),
    "dc-law": Source(False, "one constant title"),
    "tldr": Source(False, "the title is the command, which the text already names", cap=20_000),
    "code-docstring": Source(False, "no titles", cap=20_000),
    "covid-faq-gov": Source(False, "the title is the publisher"),
    "boolq-val": Source(True, "page title; human questions"),
    "clapnq-dev": Source(True, "page title; human questions"),
    "covid-qa": Source(True, "article title; expert questions"),
    "fairytaleqa": Source(True, "story title, shared by the negatives"),
    "fool-me-twice": Source(True, "page title, shared by the negatives; sentences need it"),
    "hybridqa-ottqa-dev": Source(True, "page title; multi-hop questions do not name it"),
    "medquad": Source(True, "page title, shared by the negatives"),
    "nq-oracle": Source(True, "page title; real queries"),
    "qed-nq": Source(True, "page title; real queries"),
    "wice": Source(True, "web page title, shared by the negatives"),
    "xquad-en": Source(True, "page title; human questions"),
    "qamr": Source(False, "no titles", cap=10_000),
    "product-qa": Source(False, "no titles; queries do not name the product", mined=False),
}
UNTITLED = Source(False, "no titles")


@dataclass(frozen=True)
class Passage:
    """A passage: ``text`` as the model gets it (with the title, if any), ``body`` for telling equal ones apart."""

    text: str
    body: str


@dataclass(frozen=True)
class Row:
    """One training row; ``group`` is its page, empty when unknown."""

    query: str
    positives: tuple[Passage, ...]
    negatives: tuple[Passage, ...]
    group: str


@dataclass(frozen=True)
class Pool:
    """The C distinct documents of one file.

    ``tokens``: C arrays. ``texts``: the characters behind those tokens. ``bodies``: (C,) equal for documents whose
    passages differ in title or case only. ``rows``: document row of every passage text (absent: no tokens).
    """

    tokens: list[Uint16s]
    texts: list[str]
    bodies: list[int]
    rows: dict[str, int]


@dataclass(frozen=True)
class TrainingRow:
    """One row over the pool: query tokens, document rows, and the bodies that are no negative of this query."""

    query: str
    tokens: Uint16s
    positives: list[int]
    own_negatives: list[int]
    group: str


def clean(text: str) -> str:
    """Every run of whitespace becomes one space."""
    return " ".join(text[: 4 * CHARACTER_LIMIT].split())[:CHARACTER_LIMIT]


def passage(text: str, title: str, titled: bool) -> Passage:
    """A cleaned passage, led by its title where the source wants one and the text does not start with it."""
    body, title = clean(text), clean(title)
    if not (titled and body and title) or body.casefold().startswith(title.casefold()):
        return Passage(body, body.casefold())
    return Passage(f"{title} {body}", body.casefold())


def parse_row(record: dict[str, Any], titled: bool) -> Row | None:
    """A cleaned row, or None when its query or all of its positives are empty."""
    query = clean(record["query"])
    texts: list[str] = record["positives"]
    titles = list(record.get("titles") or [])
    titles += [""] * (len(texts) - len(titles))
    positives = [passage(text, title or "", titled) for text, title in zip(texts, titles, strict=False)]
    # A source's own negatives come from the page of the positive; without its title they would be told by its lack.
    page = (titles[0] if titles else "") or ""
    negatives = [passage(text, page, titled) for text in record.get("negatives") or []]
    bodies = {positive.body for positive in positives}
    kept = [negative for negative in negatives if negative.body and negative.body not in bodies]
    positives = [positive for positive in positives if positive.body]
    if not query or not positives:
        return None
    own = tuple(dict.fromkeys(kept))[:OWN_NEGATIVES]
    return Row(query, tuple(dict.fromkeys(positives)), own, record.get("group") or "")


def read_rows(path: Path, source: Source, seed: int) -> list[Row]:
    """The rows of one file in file order, subsampled to the source's cap."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        records = list(lines)
    if source.cap is not None and len(records) > source.cap:
        generator = np.random.default_rng([seed, zlib.crc32(path.name.encode())])
        kept = np.sort(generator.choice(len(records), source.cap, replace=False))
        records = [records[index] for index in kept]
    rows = (parse_row(json.loads(record), source.titled) for record in records)
    return [row for row in rows if row is not None]


def tokenise(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Iterator[tuple[Uint16s, int]]:
    """For each text its first ``length`` tokens (no special ones) and the number of characters they cover."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    for start in range(0, len(texts), BATCH):
        for encoding in tokenizer.encode_batch(texts[start : start + BATCH], add_special_tokens=False):
            ids = np.asarray(encoding.ids, dtype=np.uint16)
            span = encoding.token_to_chars(len(ids) - 1) if len(ids) else None
            yield ids, span[1] if span else 0


def build_pool(rows: Iterable[Row], tokenizer: Tokenizer) -> Pool:
    """The distinct documents of all positives and listed negatives, in order of first appearance."""
    passages = {item.text: item.body for row in rows for item in row.positives + row.negatives}
    pool = Pool([], [], [], {})
    by_tokens: dict[bytes, int] = {}
    by_body: dict[str, int] = {}
    texts = list(passages)
    for text, (tokens, end) in zip(texts, tokenise(tokenizer, texts, DOCUMENT_LENGTH), strict=True):
        if not len(tokens):
            continue
        document = by_tokens.setdefault(tokens.tobytes(), len(pool.tokens))
        if document == len(pool.tokens):
            pool.tokens.append(tokens)
            pool.texts.append(text[:end])
            pool.bodies.append(by_body.setdefault(passages[text], len(by_body)))
        pool.rows[text] = document
    return pool


def resolve_rows(rows: Sequence[Row], pool: Pool, tokenizer: Tokenizer) -> list[TrainingRow]:
    """Rows over the pool; a row without query tokens or without a positive in the pool is dropped."""
    resolved: list[TrainingRow] = []
    queries = [row.query for row in rows]
    for row, (tokens, _) in zip(rows, tokenise(tokenizer, queries, QUERY_LENGTH), strict=True):
        positives, negatives = (
            list(dict.fromkeys(pool.rows[item.text] for item in items if item.text in pool.rows))
            for items in (row.positives, row.negatives)
        )
        if len(tokens) and positives:
            resolved.append(TrainingRow(row.query, tokens, positives, negatives, row.group))
    return resolved


def excluded_bodies(rows: Sequence[TrainingRow], pool: Pool) -> dict[bytes, set[int]]:
    """By query (its tokens) the bodies that may not be its negatives: the positives of every row with that query."""
    bodies: dict[bytes, set[int]] = {}
    for row in rows:
        bodies.setdefault(row.tokens.tobytes(), set()).update(pool.bodies[document] for document in row.positives)
    return bodies


def page_documents(rows: Iterable[TrainingRow]) -> dict[str, list[int]]:
    """The distinct positives of every named group."""
    pages: dict[str, dict[int, None]] = {}
    for row in rows:
        if row.group:
            pages.setdefault(row.group, {}).update(dict.fromkeys(row.positives))
    return {group: list(documents) for group, documents in pages.items()}


def draw(documents: Sequence[int], count: int, generator: np.random.Generator) -> list[int]:
    """At most ``count`` documents in random order; of a large page a sample that may repeat itself."""
    if len(documents) <= count:
        return [documents[index] for index in generator.permutation(len(documents))]
    return [documents[index] for index in generator.integers(len(documents), size=count)]


def search(rows: Sequence[TrainingRow], pool: Pool) -> Iterator[list[int]]:
    """For each row the BM25 hits of its query in the pool, best first, without zero scores."""
    stemmer = Stemmer.Stemmer("english")
    index = bm25s.BM25(k1=0.9, b=0.4)
    index.index(bm25s.tokenize(pool.texts, stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False)
    depth = min(BM25_DEPTH, len(pool.texts))
    for start in range(0, len(rows), BATCH):
        queries = [row.query for row in rows[start : start + BATCH]]
        terms = bm25s.tokenize(queries, stopwords="en", stemmer=stemmer, show_progress=False)
        documents, scores = index.retrieve(terms, k=depth, show_progress=False)
        for found, score in zip(documents, scores, strict=True):
            yield found[score > 0].tolist()


def mine(rows: Sequence[TrainingRow], pool: Pool, mined: bool, generator: np.random.Generator) -> list[Int32s]:
    """Hard negatives of each row: its own, then siblings, then BM25; never equal to a positive of that query."""
    excluded = excluded_bodies(rows, pool)
    pages = page_documents(rows) if mined else {}
    found: Iterable[list[int]] = search(rows, pool) if mined else ([] for _ in rows)
    negatives: list[Int32s] = []
    for row, hits in zip(rows, found, strict=True):
        bodies = set(excluded[row.tokens.tobytes()])
        chosen: list[int] = []
        siblings = draw(pages.get(row.group, []), 4 * SIBLINGS, generator)
        for documents, most in ((row.own_negatives, OWN_NEGATIVES), (siblings, SIBLINGS), (hits, NEGATIVES)):
            limit = min(len(chosen) + most, NEGATIVES)
            for document in documents:
                if len(chosen) >= limit:
                    break
                if pool.bodies[document] not in bodies:
                    bodies.add(pool.bodies[document])
                    chosen.append(document)
        negatives.append(np.asarray(chosen, dtype=np.int32))
    return negatives


def flatten(name: str, arrays: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> dict[str, npt.NDArray[Any]]:
    """The arrays end to end as ``{name}``, and where each starts as ``{singular}_starts`` (len + 1,)."""
    starts = np.zeros(len(arrays) + 1, dtype=np.int64)
    np.cumsum([len(array) for array in arrays], out=starts[1:])
    flat = np.concatenate([*arrays, np.zeros(0, dtype)]).astype(dtype, copy=False)
    return {name: flat, f"{name.removesuffix('s').removesuffix('_token')}_starts": starts}


def prepare(path: Path, tokenizer: Tokenizer, out: Path, seed: int) -> None:
    """Write the training set of one source file into ``out``."""
    name = path.name.removesuffix(".jsonl.xz")
    source = SOURCES.get(name, UNTITLED)
    raw = read_rows(path, source, seed)
    pool = build_pool(raw, tokenizer)
    rows = resolve_rows(raw, pool, tokenizer)
    generator = np.random.default_rng([seed, zlib.crc32(name.encode()), 1])
    negatives = mine(rows, pool, source.mined, generator)
    tensors = {
        **flatten("document_tokens", pool.tokens, np.uint16),
        **flatten("query_tokens", [row.tokens for row in rows], np.uint16),
        **flatten("positives", [np.asarray(row.positives) for row in rows], np.int32),
        **flatten("negatives", negatives, np.int32),
    }
    counts = {
        "documents": len(pool.tokens),
        "queries": len(rows),
        **{key: len(tensors[key]) for key in ("document_tokens", "query_tokens", "positives", "negatives")},
    }
    metadata = {"format": FORMAT, "source": name, "mining": "pool" if source.mined else "own", "seed": str(seed)}
    metadata |= {key: str(count) for key, count in counts.items()}
    save_file(tensors, out / f"{name}.safetensors", metadata=metadata)
    logger.info("%s: %s", name, ", ".join(f"{count} {key}" for key, count in counts.items()))


def main() -> None:
    """Prepare every ``*.jsonl.xz`` of a folder, small files first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of *.jsonl.xz files")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--out", type=Path, required=True, help="folder for the training sets")
    parser.add_argument("--only", nargs="*", default=[], help="names of the sources to prepare (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer / "tokenizer.json"))
    for path in sorted(arguments.data.glob("*.jsonl.xz"), key=lambda path: path.stat().st_size):
        if not arguments.only or path.name.removesuffix(".jsonl.xz") in arguments.only:
            prepare(path, tokenizer, arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
