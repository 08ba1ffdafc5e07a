"""Judged collections as queries over a pool: BEIR and MS MARCO folders, ir_datasets, and files of rows."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from blockrank.data import (
    Collection,
    Qrels,
    open_collection,
    read_qrels,
    read_run,
    text_lines,
)
from blockrank.mine.judged import Judged, JudgedQuery
from blockrank.mine.pool import Pool
from blockrank.mine.rows import Titles, open_rows
from blockrank.text.characters import is_readable
from blockrank.types import Document, InputError

_FILES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".json.xz", ".jsonl.xz")


@contextmanager
def open_judged(
    source: str | Path,
    *,
    split: str = "train",
    qrels: str | Path | None = None,
    given: str | Path | None = None,
    depth: int = 1000,
    min_relevance: int = 1,
    titles: Titles = "keep",
) -> Iterator[Judged]:
    """Open a source; its texts are in a temporary folder until the block ends.

    source: a BEIR folder or an id of ir_datasets, as `open_collection` takes them; a folder with MS MARCO's
    `collection.tsv`, `queries.SPLIT.tsv` and `qrels.SPLIT.tsv`; a JSON array in DPR's form (`question`,
    `positive_ctxs`, `hard_negative_ctxs`, `negative_ctxs`), also as JSON lines; or JSON lines of pairs (`query`,
    `positives`, `titles`, `negatives`, `group`).

    qrels: judgements to use instead. given: negatives of a collection, a run or triples of query_id, positive and
    negative; at most `depth` of each query are read. min_relevance: lowest relevance of a positive; documents judged
    between zero and that are barred. titles: of pairs, kept, dropped, or `share`: negatives get the title of the row's
    first positive.

    Raises `InputError` where something is missing or broken.
    """
    path, folders = Path(source), {"qrels": qrels, "given": given}
    with tempfile.TemporaryDirectory(prefix="blockrank-pool-") as folder:
        if path.is_file():
            if named := [name for name, value in folders.items() if value is not None]:
                raise InputError(f"{source} is a file of rows: it takes no {named[0]}.")
            yield open_rows(path, Path(folder), titles)
            return
        if not path.exists() and (str(source).startswith(("/", ".")) or str(source).endswith(_FILES)):
            raise InputError(f"{source}: there is no such file or folder.")
        if titles != "keep":
            raise InputError(f"{source} is a collection: titles can be changed in files of pairs alone.")
        marco = marco_corpus(path)
        opened = _open_marco(path, marco, split, qrels) if marco else open_collection(source, split=split, qrels=qrels)
        negatives = read_given(given, depth) if given is not None else {}
        yield _judged(opened, Path(folder), negatives, str(given), min_relevance)


def _judged(
    collection: Collection,
    folder: Path,
    given: Mapping[str, Sequence[str]],
    given_name: str,
    min_relevance: int,
) -> Judged:
    """The judged queries of a collection over its corpus."""
    pool = Pool.write(folder, collection.corpus.documents())
    left_out: Counter[str] = Counter()
    queries = []
    for query_id, judged in collection.qrels.items():
        query = collection.queries.get(query_id, "")
        places = {doc_id: _place(pool, doc_id, query_id, f"{collection.source}: judged") for doc_id in judged}
        positives = tuple(
            place for doc_id, place in places.items() if judged[doc_id] >= min_relevance and pool.keys_C[place]
        )
        if not is_readable(query) or not positives:
            left_out["without a text" if not is_readable(query) else "without a positive that has text"] += 1
            continue
        listed = [places[doc_id] for doc_id, relevance in judged.items() if relevance <= 0]
        listed += [_place(pool, doc_id, query_id, f"{given_name}: listed") for doc_id in given.get(query_id, ())]
        between = tuple(places[doc_id] for doc_id, relevance in judged.items() if 0 < relevance < min_relevance)
        queries.append(JudgedQuery(query_id, query, positives, tuple(dict.fromkeys(listed)), between))
    if not queries:
        raise InputError(f"{collection.source}: no query has a text and a positive.")
    return Judged(collection.source, pool, queries, collection.corpus, left_out)


def _place(pool: Pool, doc_id: str, query_id: str, what: str) -> int:
    """Position of a document. Raises `InputError` where it is not in the corpus."""
    if (place := pool.position(doc_id)) is None:
        raise InputError(f"{what} for the query_id {query_id!r}, the doc_id {doc_id!r} is not in the corpus.")
    return place


# MS MARCO


def marco_corpus(folder: Path) -> TsvCorpus | None:
    """The `collection.tsv` of a folder, plain or packed; None where there is none."""
    found = [path for path in _either(folder, "collection.tsv") if path.is_file()]
    return TsvCorpus(found[0]) if found else None


def _open_marco(folder: Path, corpus: TsvCorpus, split: str, qrels: str | Path | None) -> Collection:
    """A folder as MS MARCO's passage task has it."""
    queries = dict(read_pairs(_marco_file(folder, "queries", split), "query_id"))
    judged: Qrels = read_qrels(qrels if qrels is not None else _marco_file(folder, "qrels", split))
    return Collection(folder.resolve().name, queries, judged, corpus, str(folder))


def _either(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / name, folder / f"{name}.gz"


def _marco_file(folder: Path, kind: str, split: str) -> Path:
    """`queries.SPLIT.tsv` or `qrels.SPLIT.tsv`, plain or packed. Raises `InputError` where there is neither."""
    for path in _either(folder, f"{kind}.{split}.tsv"):
        if path.is_file():
            return path
    names = sorted(path.name.removeprefix(f"{kind}.").split(".tsv")[0] for path in folder.glob(f"{kind}.*.tsv*"))
    hint = f"; its splits are {', '.join(names)}" if names else ""
    raise InputError(f"{folder} has no {kind}.{split}.tsv or {kind}.{split}.tsv.gz{hint}.")


@dataclass(frozen=True, slots=True)
class TsvCorpus:
    """Documents of MS MARCO's `collection.tsv`: an id, a tab and a text on each line."""

    path: Path

    def documents(self) -> Iterator[Document]:
        """Every document, in the order of the file. Raises `InputError` on a broken line or a repeated id."""
        return (Document(text, doc_id) for doc_id, text in read_pairs(self.path, "doc_id"))

    def read(self, doc_ids: Iterable[str]) -> dict[str, Document]:
        """The documents of these ids, in the order given. Raises `InputError` naming one that is missing."""
        wanted = dict.fromkeys(doc_ids)
        found = {str(item.doc_id): item for item in self.documents() if item.doc_id in wanted}
        if missing := [doc_id for doc_id in wanted if doc_id not in found]:
            raise InputError(f"{self.path}: a document with the doc_id {missing[0]!r} is not in it.")
        return {doc_id: found[doc_id] for doc_id in wanted}


def read_pairs(path: Path, what: str) -> Iterator[tuple[str, str]]:
    """Id and text of each line. Raises `InputError` on a line without a tab, a repeated id, no id, or no line."""
    seen: set[str] = set()
    for number, line in text_lines(path):
        name, tab, text = line.partition("\t")
        if not tab or not name:
            raise InputError(f"{path}:{number}: an id, a tab and a text are needed.")
        if name in seen:
            raise InputError(f"{path}:{number}: the {what} {name!r} was there before.")
        seen.add(name)
        yield name, text
    if not seen:
        raise InputError(f"{path}: there is nothing in it.")


def read_given(path: str | Path, depth: int) -> dict[str, list[str]]:
    """Negatives by query_id, at most `depth` of each, in the order of the file.

    path: a TREC run, or triples of query_id, positive and negative, as MS MARCO has them. Raises `InputError` on a
    broken line.
    """
    first = next((text.split() for _, text in text_lines(path) if text.strip()), [])
    if len(first) == 6:
        return {query_id: list(islice(scores, depth)) for query_id, scores in read_run(path).items()}
    found: dict[str, dict[str, None]] = {}
    for number, line in text_lines(path):
        fields = line.split()
        if fields and len(fields) != 3:
            raise InputError(
                f"{path}:{number}: negatives are a TREC run or lines of query_id, positive and negative; "
                f"here are {len(fields)} fields."
            )
        if fields and len(of_query := found.setdefault(fields[0], {})) < depth:
            of_query[fields[2]] = None
    if not found:
        raise InputError(f"{path}: there are no negatives in it.")
    return {query_id: list(doc_ids) for query_id, doc_ids in found.items()}
