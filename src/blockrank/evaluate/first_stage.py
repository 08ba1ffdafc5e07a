"""Where the candidates of an evaluation come from: BM25 over the collection, or a given run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blockrank.data import Collection, Run, read_run
from blockrank.types import InputError

BM25 = "bm25"


@dataclass(frozen=True, slots=True)
class FirstStage:
    """`bm25`, or a run file: a path, relative to the collection's folder or else to the working directory.

    `{name}` in the path stands for the collection's name.
    """

    source: str = BM25

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

    def search(self, collection: Collection, queries: Mapping[str, str], depth: int) -> Run:
        """The candidates of these queries: by BM25 at most `depth` of each, of a given run all of them.

        Raises `InputError` where there are none at all.
        """
        path = self.file(collection)
        if path is None:
            from blockrank.retrieve.bm25 import Bm25Index

            run = Bm25Index.open(collection.corpus).run(queries, depth)
        else:
            given = read_run(path)
            run = {query_id: given[query_id] for query_id in queries if query_id in given}
        if not any(run.values()):
            raise InputError(f"{path or BM25} has candidates for none of the judged queries of {collection.name}.")
        return run
