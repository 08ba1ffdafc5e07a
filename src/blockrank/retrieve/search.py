"""Search in files: BM25 over passages, then a ranker over the best of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockrank.keep.folders import KeptFolder, index_folder, tell_of_former
from blockrank.keep.identity import digest
from blockrank.keep.lines import Records, write_records
from blockrank.retrieve.bm25 import Bm25Index, versions
from blockrank.retrieve.files import list_files
from blockrank.retrieve.passages import Passage
from blockrank.retrieve.reading import ReadLimits
from blockrank.retrieve.readings import (
    FILES,
    FORMAT,
    PASSAGES,
    FileReading,
    file_state,
    kept_reasons,
    known_readings,
    read_files,
    reading_rows,
)
from blockrank.text.characters import is_readable
from blockrank.types import Document, InputError, RequestRanker
from blockrank.types.progress import CountProgress

_PLACE = ("path", "doc_id", "first_line", "last_line", "page")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hit:
    """One result. score: the ranker's, comparable within one search alone, or BM25's where none ranked.

    bm25: the first stage's score, 0 where the passage shares no word with the query. path: the passage's file, from the
    working directory if the source was given so. copies: other places of the same text, ignoring white space, with
    paths in the same form.
    """

    rank: int
    score: float
    bm25: float
    path: str
    passage: Passage
    copies: tuple[Passage, ...] = ()

    @property
    def place(self) -> str:
        """`path:first-last`, `path:line` or `path:p3`."""
        return replace(self.passage, path=self.path).place

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        found: dict[str, Any] = {"rank": self.rank, "score": self.score, "bm25": self.bm25, "path": self.path}
        found |= {key: value for key, value in asdict(self.passage).items() if key != "path"}
        return {**found, "copies": [{name: getattr(copy, name) for name in _PLACE} for copy in self.copies]}


class PassageIndex:
    """The passages of a folder or file, ready to be searched.

    skipped: number of files without a passage, by category. is_new: whether it was built now, not found on disk.
    """

    def __init__(
        self,
        source: Path,
        passages: Sequence[Passage] | Records,
        firsts_N: NDArray[np.int64],
        bm25: Bm25Index,
        skipped: Mapping[str, int],
        *,
        is_new: bool,
    ) -> None:
        """firsts_N: for each passage, the position of the first passage with its text."""
        self.source, self.skipped, self.is_new = source, dict(skipped), is_new
        self._passages, self._firsts_N, self._bm25 = passages, firsts_N, bm25

    def __len__(self) -> int:
        return len(self._passages)

    def __getitem__(self, position: int) -> Passage:
        passage = self._passages[position]
        return passage if isinstance(passage, Passage) else Passage(*passage)

    def __iter__(self) -> Iterator[Passage]:
        return (self[position] for position in range(len(self)))

    @classmethod
    def open(
        cls,
        source: str | Path,
        *,
        cache: Path | None = None,
        rebuild: bool = False,
        progress: CountProgress | None = None,
        limits: ReadLimits | None = None,
    ) -> PassageIndex:
        """The index of a folder, a file or a file of JSON lines.

        It is kept in the folder `cache`, by default in the user's own cache folder; an index found there is used while
        path and content of every file are unchanged. If only some files changed, the others are not read again. If the
        folder cannot be written, the index stays in memory. rebuild: build it again in any case. limits: for reading
        one file; a file over them is skipped.

        Raises `InputError` where the source does not exist or holds nothing readable, `MissingExtraError` without the
        extra.
        """
        source, limits = Path(source), limits or ReadLimits()
        files, skipped = list_files(source)
        if not files:
            raise InputError(f"{source}: there is nothing to search in it{_listed(skipped)}.")
        states = [file_state(file) for file in files]
        kept = _kept(cache or index_folder(), source, limits, states)
        if kept and rebuild:
            kept.remove()
        elif kept and kept.is_whole() and (index := cls._loaded(kept.path, source, skipped)):
            return index
        tell_of_former(source if source.is_dir() else source.parent, kept.place if kept else None)
        known = known_readings(kept, limits) if kept and not rebuild else {}
        readings = read_files(files, states, known, limits, progress)
        return cls._made(source, states, readings, skipped, limits, kept)

    @classmethod
    def _made(
        cls,
        source: Path,
        states: Sequence[list[Any]],
        readings: Sequence[FileReading],
        skipped: Mapping[str, int],
        limits: ReadLimits,
        kept: KeptFolder | None,
    ) -> PassageIndex:
        """A new index of what was read, kept where that can be."""
        passages = [passage for reading in readings for passage in reading.passages]
        skipped = Counter(skipped) + Counter(reading.reason for reading in readings if reading.reason)
        if not passages:
            raise InputError(f"{source}: there is no text to search in{_listed(skipped)}.")
        bm25 = Bm25Index.build(passage_document(passage, index) for index, passage in enumerate(passages))
        index = cls(source, passages, _firsts(passages), bm25, skipped, is_new=True)
        try:
            if kept is None:
                raise OSError("no cache folder is known")
            kept.write(lambda folder: index._save(folder, reading_rows(limits, states, readings)))
        except OSError as error:
            _log.warning("the index of %s is not kept: %s.", source, error)
        return index

    def _save(self, folder: Path, rows: Iterable[Sequence[Any]]) -> None:
        """Write everything into an empty folder. rows: the record of each file."""
        write_records(folder, FILES, rows)
        write_records(folder, PASSAGES, map(astuple, self))
        np.save(folder / "firsts.npy", self._firsts_N)
        self._bm25.save(folder)

    @classmethod
    def _loaded(cls, folder: Path, source: Path, skipped: Mapping[str, int]) -> PassageIndex | None:
        """The index in `folder`; None where another process has just removed or replaced it."""
        try:
            reasons = kept_reasons(folder)
            bm25, passages = Bm25Index.load(folder), Records(folder, PASSAGES)
            firsts_N = np.load(folder / "firsts.npy")
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            _log.warning("%s cannot be loaded: %s", folder, error)
            return None
        return cls(source, passages, firsts_N, bm25, Counter(skipped) + reasons, is_new=False)

    def search(
        self,
        query: str,
        *,
        ranker: RequestRanker | None,
        depth: int = 100,
        top_k: int = 10,
        all_passages: bool = False,
    ) -> list[Hit]:
        """The best documents for a query, each with its best passage, best first; at most `top_k`.

        The ranker ranks BM25's best `depth` passages in one request; without a ranker their order is BM25's. If no
        passage shares a word with the query the result is empty, unless there are at most `depth` passages: then all
        are ranked. Of passages with the same text, ignoring white space, one is ranked, and the others are its copies.
        all_passages: every passage is a result of its own, copies aside.

        Raises `InputError` where the query is empty or over the model's limit.
        """
        _check(query, depth, top_k)
        found = self._candidates(query, depth, or_all=ranker is not None)
        if not found:
            return []
        passages = [self[position] for position, _ in found]
        hits: list[Hit] = []
        seen: set[tuple[str, str]] = set()
        for index, score in _ordered(query, passages, [score for _, score in found], ranker):
            places = [passages[index], *self._copies(found[index][0])]
            fresh = [place for place in places if all_passages or (place.path, place.doc_id) not in seen]
            seen.update((place.path, place.doc_id) for place in places)
            if fresh:
                others = {place.place: place for place in places if place.place != fresh[0].place}
                copies = tuple(replace(place, path=self._path(place)) for place in others.values())
                hits.append(Hit(len(hits) + 1, score, found[index][1], self._path(fresh[0]), fresh[0], copies))
            if len(hits) == top_k:
                break
        return hits

    def _candidates(self, query: str, depth: int, *, or_all: bool) -> list[tuple[int, float]]:
        """(position, BM25's score) of the best `depth` passages of different texts, best first.

        or_all: if none shares a word with the query, return all, provided there are at most `depth`.
        """
        reach = depth
        while True:
            found = self._bm25.positions(query, reach)
            best: dict[int, tuple[int, float]] = {}
            for position, score in found:
                best.setdefault(int(self._firsts_N[position]), (position, score))
            if len(best) >= depth or len(found) < reach:
                break
            reach *= 4  # copies of a few texts filled the list
        texts = np.unique(self._firsts_N)
        if not best and or_all and len(texts) <= depth:
            return [(int(position), 0.0) for position in texts]
        return list(best.values())[:depth]

    def _copies(self, position: int) -> list[Passage]:
        """The other passages with the same text."""
        same = np.flatnonzero(self._firsts_N == self._firsts_N[position])
        return [self[int(other)] for other in same if other != position]

    def _path(self, passage: Passage) -> str:
        """The path of a passage's file, in the form the caller used."""
        return str(self.source / passage.path if self.source.is_dir() else self.source)


def search(
    source: str | Path,
    query: str,
    *,
    ranker: RequestRanker | None,
    depth: int = 100,
    top_k: int = 10,
    all_passages: bool = False,
    cache: Path | None = None,
    rebuild: bool = False,
    progress: CountProgress | None = None,
    limits: ReadLimits | None = None,
) -> list[Hit]:
    """Search a folder or file: `PassageIndex.open`, then its `search`. Arguments and errors are theirs."""
    _check(query, depth, top_k)
    index = PassageIndex.open(source, cache=cache, rebuild=rebuild, progress=progress, limits=limits)
    return index.search(query, ranker=ranker, depth=depth, top_k=top_k, all_passages=all_passages)


def passage_document(passage: Passage, index: int) -> Document:
    """A passage as BM25 and the ranker read it; its id is `index`."""
    return Document(passage.text, str(index), passage.title)


def check_query(query: str) -> None:
    """Raise `InputError` on a query that asks for nothing."""
    if not is_readable(query):
        raise InputError("query has no readable character: there is nothing to search for.")


def _check(query: str, depth: int, top_k: int) -> None:
    """Raise `InputError` on what cannot be searched for."""
    check_query(query)
    for name, value in (("depth", depth), ("top_k", top_k)):
        if value < 1:
            raise InputError(f"{name} must be positive, not {value}.")


def _ordered(
    query: str, passages: Sequence[Passage], scores: Sequence[float], ranker: RequestRanker | None
) -> list[tuple[int, float]]:
    """(index, score) of passages, best first: the ranker's, or the given ones without a ranker."""
    if ranker is None:
        return list(enumerate(scores))
    ranking = ranker.rank(query, [passage_document(passage, index) for index, passage in enumerate(passages)])
    if cut := [entry.cut_tokens for entry in ranking if entry.cut_tokens]:
        _log.warning(
            "%d of %d passages were cut to fit the model (at most %d tokens were left out).",
            len(cut), len(ranking), max(cut),
        )  # fmt: skip
    return [(entry.index, entry.score) for entry in ranking]


def _kept(
    place: Path | None, source: Path, limits: ReadLimits, states: Sequence[Sequence[object]]
) -> KeptFolder | None:
    """The folder of the index, if it is stored."""
    if place is None:
        return None
    return KeptFolder(place, "passages", str(source.resolve()), [FORMAT, versions(), astuple(limits), states])


def _firsts(passages: Sequence[Passage]) -> NDArray[np.int64]:
    """For each passage, the position of the first passage with its text, ignoring white space."""
    positions: dict[str, int] = {}
    keys = (digest(passage.text.split()) for passage in passages)
    return np.array([positions.setdefault(key, index) for index, key in enumerate(keys)], dtype=np.int64)


def _listed(skipped: Mapping[str, int]) -> str:
    """Counts as words, to follow a clause."""
    text = skipped_text(skipped)
    return f"; skipped: {text}" if text else ""


def skipped_text(skipped: Mapping[str, int]) -> str:
    """Such as `binary files (3), files over 20 MB (1)`."""
    return ", ".join(f"{kind} ({count})" for kind, count in sorted(skipped.items()) if count)
