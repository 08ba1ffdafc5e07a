"""Judged collections: a BEIR folder, or a data set of ir_datasets by its id."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from blockrank.data.files import Source, json_objects, named, packed_file, source_name
from blockrank.data.jsonl import json_text
from blockrank.data.trec import Qrels, judgement_place, qrels_lines, read_qrels
from blockrank.types import BlockrankError, Document, InputError, MissingExtraError
from blockrank.types.documents import read_document, written_document

logger = logging.getLogger(__name__)


class Corpus(Protocol):
    """The documents of a collection, never all of them in memory.

    `path` is the file they come from, None where there is none. Documents always have an id; their text may be empty.
    """

    @property
    def path(self) -> Path | None:
        """The file the documents come from."""

    def documents(self) -> Iterator[Document]:
        """Every document, in the order of the file."""

    def read(self, doc_ids: Iterable[str]) -> dict[str, Document]:
        """The documents of these ids, in the order given. Raises `InputError` naming an id that is missing."""


@dataclass(frozen=True, slots=True)
class Collection:
    """Queries, judgements and documents. `queries` may hold some that are not judged; `source` is what was opened.

    `queries_file` and `qrels_file` are where the two come from, None where that is no file that can be read again.
    """

    name: str
    queries: dict[str, str]
    qrels: Qrels
    corpus: Corpus
    source: str
    queries_file: Path | None = None
    qrels_file: Path | None = None

    def query_place(self, query_id: str) -> str:
        """`FILE:LINE` of a query, or what comes nearest."""
        return _record_place(self.queries_file, query_id) or self.source

    def document_place(self, doc_id: str) -> str:
        """`FILE:LINE` of a document, or what comes nearest."""
        return _record_place(self.corpus.path, doc_id) or self.source

    def judgement_place(self, query_id: str, doc_id: str) -> str:
        """`FILE:LINE` of a judgement, or what comes nearest."""
        return self.source if self.qrels_file is None else judgement_place(self.qrels_file, query_id, doc_id)


def open_collection(source: str | Path, *, split: str = "test", qrels: str | Path | None = None) -> Collection:
    """Open a BEIR folder, or a data set of ir_datasets by its id (extra `datasets`).

    A folder has `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`, each plain or `.gz`; an id names its split
    itself. `qrels` is a file of judgements to use instead. Queries and judgements are read now, documents when they
    are asked for. Raises `InputError` where something is missing or broken, `MissingExtraError` without ir-datasets.
    """
    if Path(source).is_dir():
        collection = _open_folder(Path(source), split, qrels)
    elif isinstance(source, Path) or Path(source).exists() or source.startswith(("/", ".")):
        raise InputError(f"{source} is no folder.")
    else:
        collection = _open_dataset(source, qrels)
    if unknown := [query_id for query_id in collection.qrels if query_id not in collection.queries]:
        logger.warning(
            "%s: %d of %d judged queries have no text, such as %r.",
            source, len(unknown), len(collection.qrels), unknown[0],
        )  # fmt: skip
    return collection


def open_corpus(source: str | Path) -> Corpus:
    """The documents alone of what `open_collection` takes, or of a file as its `corpus.jsonl`, ids under `doc_id` too.

    Raises `InputError` where there is none, `MissingExtraError` without ir-datasets.
    """
    if Path(source).is_dir():
        return CorpusFile(_found(Path(source), "corpus.jsonl"))
    if Path(source).is_file():
        return CorpusFile(Path(source), ("_id", "doc_id", "id"))
    if isinstance(source, Path) or source.startswith(("/", ".")):
        raise InputError(f"{source}: there is no such file or folder.")
    return DatasetCorpus(source, _loaded_dataset(source, "docs"))


def _open_folder(folder: Path, split: str, qrels: str | Path | None) -> Collection:
    corpus = CorpusFile(_found(folder, "corpus.jsonl"))
    queries = _found(folder, "queries.jsonl")
    judgements = Path(qrels) if qrels is not None else _found(folder, f"qrels/{split}.tsv")
    name = folder.resolve().name
    return Collection(name, read_queries(queries), read_qrels(judgements), corpus, str(folder), queries, judgements)


def _found(folder: Path, name: str) -> Path:
    """A file of a folder, plain or packed. Raises `InputError` where there is neither."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    others = sorted(path.name.split(".tsv")[0] for path in (folder / "qrels").glob("*.tsv*"))
    hint = f"; its splits are {', '.join(others)}" if name.startswith("qrels/") and others else ""
    raise InputError(f"{folder} is no BEIR folder with {name} or {name}.gz{hint}.")


def read_queries(source: Source) -> dict[str, str]:
    """Queries of a BEIR file: `{"_id", "text"}` on each line, as query_id to text.

    Raises `InputError` on a broken line, an id that was there before, or a source without queries.
    """
    return {str(record.doc_id): record.text for record in _records(source, "queries")}


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """Documents of a BEIR corpus file: `{"_id", "title", "text"}` on each line; other keys become metadata.

    id_keys: what an id may be called instead.
    """

    path: Path
    id_keys: tuple[str, ...] = ("_id",)

    def documents(self) -> Iterator[Document]:
        """Every document, in the order of the file.

        Raises `InputError` on a broken line, an id that was there before, or a file without documents.
        """
        return _records(self.path, "documents", self.id_keys)

    def read(self, doc_ids: Iterable[str]) -> dict[str, Document]:
        """The documents of these ids, in the order given, by one pass over the file.

        Raises `InputError` on an id that is missing, and on a broken line before the last document wanted.
        """
        wanted = dict.fromkeys(doc_ids)
        chosen = (document for document in self.documents() if document.doc_id in wanted)
        found = {str(document.doc_id): document for document in itertools.islice(chosen, len(wanted))}
        return _in_order(wanted, found, str(self.path))


def _in_order(wanted: Iterable[str], found: Mapping[str, Document], place: str) -> dict[str, Document]:
    """What was wanted, in its order. Raises `InputError` where one is missing."""
    if missing := [doc_id for doc_id in wanted if doc_id not in found]:
        others = f", nor are {len(missing) - 1} others" if len(missing) > 1 else ""
        raise InputError(f"{place}: a document with the doc_id {missing[0]!r} is not in it{others}.")
    return {doc_id: found[doc_id] for doc_id in wanted}


def _records(source: Source, what: str, id_keys: tuple[str, ...] = ("_id",)) -> Iterator[Document]:
    """What stands on each line of a BEIR file, which has ids, texts and perhaps titles for queries as for documents.

    Raises `InputError` as its callers say.
    """
    seen: set[str | None] = set()
    for number, value in json_objects(source):
        with named(f"{source_name(source)}:{number}"):
            record = _record(value, id_keys)
            if record.doc_id in seen:
                raise InputError(f"the _id {record.doc_id!r} was there before.")
        seen.add(record.doc_id)
        yield record
    if not seen:
        raise InputError(f"{source_name(source)}: there are no {what} in it.")


def _record(value: Mapping[str, Any], id_keys: tuple[str, ...]) -> Document:
    """One line of a BEIR file. An empty text passes: collections have some, and a ranker refuses the ones it gets."""
    record = read_document(value, id_keys=id_keys)
    if record.doc_id is None:
        lack = "{} is null" if id_keys[0] in value else "there is no {!r}"
        raise InputError(f"{lack.format(id_keys[0])}; the keys are {sorted(value)}.")
    return record


def _record_place(path: Path | None, record_id: str) -> str:
    """`FILE:LINE` of a line of a BEIR file; empty where there is no file, `FILE` where it lacks the id."""
    if path is None:
        return ""
    lines = json_objects(path) if path.suffix != ".tsv" else ()
    return next((f"{path}:{number}" for number, value in lines if str(value.get("_id")) == record_id), str(path))


def unknown_ids(corpus: Corpus, doc_ids: Iterable[str]) -> list[str]:
    """Those of the ids that the corpus lacks, by one pass over it; a data set of ir_datasets is asked for them."""
    left = dict.fromkeys(doc_ids)
    if isinstance(corpus, DatasetCorpus):
        return corpus.unknown(left)
    documents = iter(corpus.documents())
    while left and (document := next(documents, None)) is not None:
        left.pop(str(document.doc_id), None)
    return list(left)


def _loaded_dataset(name: str, *parts: str) -> Any:
    """A data set of ir_datasets that has these parts."""
    try:
        import ir_datasets
    except ImportError:
        raise MissingExtraError(
            f"{name} is no folder, and ids of ir_datasets need ir-datasets: pip install 'blockrank[datasets]'."
        ) from None
    with _reading(name):
        try:
            dataset = ir_datasets.load(name)
        except KeyError:
            raise InputError(f"{name} is neither a folder nor a data set that ir_datasets knows.") from None
        for part in parts:
            if not dataset.has(part):
                raise InputError(f"{name} has no {part} in ir_datasets.")
    return dataset


def _open_dataset(name: str, qrels: str | Path | None) -> Collection:
    """A data set of ir_datasets with its queries and judgements."""
    dataset = _loaded_dataset(name, "docs", "queries")
    import ir_datasets

    with _reading(name):
        queries = {query.query_id: query.default_text() for query in dataset.queries_iter()}
        if qrels is not None:
            judged = read_qrels(qrels)
        elif dataset.has("qrels"):
            judged = _dataset_qrels(name, dataset)
        else:
            under = [item for item in ir_datasets.registry if item.startswith(f"{name}/")]
            hint = f"; those under it are {', '.join(sorted(under)[:_SHOWN])}" if under else ""
            raise InputError(f"{name} has no judgements in ir_datasets{hint}.")
    file = None if qrels is None else Path(qrels)
    return Collection(name, queries, judged, DatasetCorpus(name, dataset), name, qrels_file=file)


_SHOWN = 10


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Any failure of ir_datasets (no network, no licence, a changed file) as one sentence."""
    try:
        yield
    except BlockrankError:
        raise
    except Exception as error:
        raise InputError(f"{name}: ir_datasets cannot read it: {error}.") from error


def _dataset_qrels(name: str, dataset: Any) -> Qrels:
    """Judgements of a data set. Raises `InputError` where one pair has two relevances, as in diversity tasks."""
    judged: Qrels = {}
    for item in dataset.qrels_iter():
        of_query = judged.setdefault(item.query_id, {})
        if of_query.setdefault(item.doc_id, item.relevance) != item.relevance:
            raise InputError(f"{name}: the doc_id {item.doc_id!r} has two relevances for {item.query_id!r}.")
    return judged


@dataclass(frozen=True, slots=True)
class DatasetCorpus:
    """Documents of a data set of ir_datasets, which keeps them on disk."""

    name: str
    dataset: Any
    path: None = None

    def documents(self) -> Iterator[Document]:
        """Every document, in the order of the data set. Raises `InputError` where ir_datasets fails."""
        with _reading(self.name):
            for item in self.dataset.docs_iter():
                yield _dataset_document(item)

    def read(self, doc_ids: Iterable[str]) -> dict[str, Document]:
        """The documents of these ids, in the order given; the first call may build the data set's store on disk.

        Raises `InputError` on an id that is missing.
        """
        wanted = dict.fromkeys(doc_ids)
        with _reading(self.name):
            documents = {doc_id: _dataset_document(item) for doc_id, item in self._found(wanted).items()}
        return _in_order(wanted, documents, self.name)

    def unknown(self, doc_ids: Iterable[str]) -> list[str]:
        """Those of the ids that the data set lacks."""
        wanted = dict.fromkeys(doc_ids)
        with _reading(self.name):
            found = self._found(wanted)
        return [doc_id for doc_id in wanted if doc_id not in found]

    def _found(self, doc_ids: Iterable[str]) -> dict[str, Any]:
        wanted = list(doc_ids)
        found: dict[str, Any] = self.dataset.docs_store().get_many(wanted) if wanted else {}
        return found


def _dataset_document(item: Any) -> Document:
    """The text that the data set gives for ranking; a title is kept apart where that text is title and text."""
    whole = item.default_text()
    title, text = getattr(item, "title", ""), getattr(item, "text", "")
    if title and text and whole == f"{title} {text}":
        return Document(text, item.doc_id, title)
    return Document(whole, item.doc_id)


def write_collection(
    folder: str | Path,
    documents: Iterable[Document],
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    split: str = "test",
    *,
    packed: bool = False,
) -> None:
    """Write a BEIR folder that `open_collection` opens, the three files together or none; gzip where `packed`.

    Raises `InputError` on a document without an id or with one that was there before, a judged query without a text,
    no documents, and on what `write_qrels` and `request_line` refuse.
    """
    if unknown := [query_id for query_id in qrels if query_id not in queries]:
        raise InputError(f"queries lacks {unknown[0]!r}, which is judged.")
    ending = ".gz" if packed else ""
    places = [Path(folder) / f"{name}{ending}" for name in ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv")]
    try:
        places[-1].parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}.") from None
    texts = (json_text({"_id": query_id, "text": text}) for query_id, text in queries.items())
    with ExitStack() as stack:  # all three get their names at its end
        for place, lines in zip(places, (_corpus_lines(documents), texts, qrels_lines(qrels, beir=True)), strict=True):
            stream = stack.enter_context(packed_file(place))
            stream.writelines(f"{line}\n".encode() for line in lines)


def _corpus_lines(documents: Iterable[Document]) -> Iterator[str]:
    seen: set[str] = set()
    for document in documents:
        if not document.doc_id:
            raise InputError("a document of a collection needs a doc_id.")
        if document.doc_id in seen:
            raise InputError(f"the doc_id {document.doc_id!r} was there before.")
        seen.add(document.doc_id)
        yield json_text(written_document(document, "_id"))
    if not seen:
        raise InputError("documents is empty: a collection needs some.")
