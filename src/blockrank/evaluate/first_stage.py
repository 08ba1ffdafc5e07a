"""Where the candidates of an evaluation come from: BM25 over the collection, or a given run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from blockrank.data import Collection, Run, read_run
from blockrank.types import InputError

BM25 = "bm25"


@dataclass(frozen=True, slots=True)
class FirstStage:
    """`bm25`, or a run file: a path, relative to the collection's folder or else to the working directory.

    `{name}` in the path stands for the collection's name. drop_own: leave out a candidate whose id is the query's, as
    BEIR does: in ArguAna and Quora a query is itself a document of the corpus.
    """

    source: str = BM25
    drop_own: bool = False

    @property
    def name(self) -> str:
        """What tables call it: `bm25`, or the run file's name without its endings."""
        stem = Path(self.source.removesuffix(".gz")).stem.replace("{name}", "").strip("-_. ")
        return "".join(sign if sign.isalnum() or sign in "-_.+" else "_" for sign in stem) or "run"

    def file(self, collection: Collection) -> Path | None:
        """The run file for a collection, None for BM25. Raises `InputError` where there is none."""
        if self.source == BM25:
            return None
        name = self.source.replace("{name}", collection.name)
        for path in (Path(collection.source) / name, Path(name)):
            if path.is_file():
                return path
        raise InputError(f"first stage {name!r} is neither 'bm25' nor a run file, here or in {collection.source}.")

    def words(self, collection: Collection) -> str | None:
        """What BM25's candidates depend on besides texts and settings, for people to read; None for a given run."""
        if self.file(collection) is not None:
            return None
        from blockrank.retrieve.bm25 import versions

        return ", ".join(f"{name} {version}" for name, version in versions().items())

    def search(self, collection: Collection, queries: Mapping[str, str], depth: int) -> Run:
        """The candidates of these queries: by BM25 at most `depth` of each, of a given run all of them.

        Raises `InputError` where there are none at all.
        """
        path = self.file(collection)
        if path is None:
            from blockrank.retrieve.bm25 import Bm25Index

            run, most = Bm25Index.open(collection.corpus).run(queries, depth + self.drop_own), depth
        else:
            given, most = read_run(path), None
            run = {query_id: given[query_id] for query_id in queries if query_id in given}
        if self.drop_own:
            run = {query_id: dict(islice(_others(query_id, found), most)) for query_id, found in run.items()}
        if not any(run.values()):
            raise InputError(f"{path or BM25} has candidates for none of the judged queries of {collection.name}.")
        return run


def _others(query_id: str, found: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """The candidates of a query but for itself."""
    return ((doc_id, score) for doc_id, score in found.items() if doc_id != query_id)
