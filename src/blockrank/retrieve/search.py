"""Search in files: BM25 over passages, then a ranker over the best of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

from blockrank.retrieve.bm25 import Bm25Index, versions
from blockrank.retrieve.files import SourceFile, UnreadableError, list_files, read_passages
from blockrank.retrieve.kept import FOLDER, KeptFolder, Records, is_whole, write_records
from blockrank.retrieve.passages import Passage
from blockrank.types import Document, InputError, RequestRanker

Progress = Callable[[int, int], None]  # (files read, files in all)
_FORMAT = 1  # raised whenever passages are cut in another way or written in another form
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hit:
    """One result. score: the ranker's, comparable within one search alone, or BM25's where none ranked.

    bm25: the first stage's score, 0 where the passage shares no word with the query. path: the passage's file, from the
    working directory if the source was given so.
    """

    rank: int
    score: float
    bm25: float
    path: str
    passage: Passage

    @property
    def place(self) -> str:
        """`path:first-last`, `path:line` or `path:p3`."""
        return replace(self.passage, path=self.path).place

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        passage = {key: value for key, value in asdict(self.passage).items() if key != "path"}
        return {"rank": self.rank, "score": self.score, "bm25": self.bm25, "path": self.path, **passage}


class PassageIndex:
    """The passages of a folder or file, ready to be searched.

    skipped: how many files of what kind hold no passage. is_new: whether it was made now, not found on disk.
    """

    def __init__(
        self,
        source: Path,
        passages: Sequence[Passage] | Records,
        bm25: Bm25Index,
        skipped: Mapping[str, int],
        *,
        is_new: bool,
    ) -> None:
        self.source, self.skipped, self.is_new = source, dict(skipped), is_new
        self._passages, self._bm25 = passages, bm25

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
        progress: Progress | None = None,
    ) -> PassageIndex:
        """The index of a folder, a file or a file of JSON lines.

        It is kept in `.blockrank` of the folder or, where that cannot be written, in the folder `cache`; found there,
        it is used while path, size and time of every file are those it was made with. Where only some files changed,
        the others are not read again. With neither place it stays in memory. rebuild: make it anew in any case.

        Raises `InputError` where the source does not exist or holds nothing readable, `MissingExtraError` without the
        extra.
        """
        source = Path(source)
        files, skipped = list_files(source)
        if not files:
            raise InputError(f"{source}: there is nothing to search in it{_listed(skipped)}.")
        places = _places(source, files, cache)
        for kept in places:
            if rebuild:
                kept.remove()
            elif kept.is_whole() and (index := cls._loaded(kept.path, source, skipped)):
                return index
        return cls._made(source, files, skipped, places, {} if rebuild else _known(places), progress)

    @classmethod
    def _made(
        cls,
        source: Path,
        files: Sequence[SourceFile],
        skipped: Mapping[str, int],
        places: Sequence[KeptFolder],
        known: Mapping[tuple[Any, ...], tuple[list[Passage], str | None]],
        progress: Progress | None,
    ) -> PassageIndex:
        """A new index, kept in the first place that can be written. known: from an earlier one, as by `_known`."""
        states: list[list[Any]] = []  # state of each file, number of its passages, why it has none
        passages: list[Passage] = []
        for number, file in enumerate(files):
            if progress:
                progress(number, len(files))
            found, reason = known.get(tuple(file.state)) or _read(file, alone=len(files) == 1)
            states.append([file.state, len(found), reason])
            passages += found
        if progress:
            progress(len(files), len(files))
        reasons = Counter(reason for _, _, reason in states if reason)
        if not passages:
            raise InputError(f"{source}: there is no text to search in{_listed(Counter(skipped) + reasons)}.")
        bm25 = Bm25Index.build(passage_document(passage, index) for index, passage in enumerate(passages))
        index = cls(source, passages, bm25, Counter(skipped) + reasons, is_new=True)
        for kept in places:
            try:
                kept.write(lambda folder: index._save(folder, states))
                break
            except OSError as error:
                _log.info("no index is kept in %s: %s", kept.place, error)
        else:
            _log.warning("the index of %s is not kept: no place for it can be written.", source)
        return index

    def _save(self, folder: Path, states: Sequence[Sequence[Any]]) -> None:
        """Write everything into an empty folder."""
        write_records(folder, "files", [_FORMAT, *states])
        write_records(folder, "passages", map(astuple, self))
        self._bm25.save(folder)

    @classmethod
    def _loaded(cls, folder: Path, source: Path, skipped: Mapping[str, int]) -> PassageIndex | None:
        """The index in `folder`; None where another process has just removed or replaced it."""
        try:
            states = Records(folder, "files")
            reasons = Counter(reason for _, _, reason in list(states)[1:] if reason)
            bm25, passages = Bm25Index.load(folder), Records(folder, "passages")
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            _log.warning("%s cannot be loaded: %s", folder, error)
            return None
        return cls(source, passages, bm25, Counter(skipped) + reasons, is_new=False)

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

        BM25 hands its best `depth` passages to the ranker, which ranks them in one request; without a ranker their
        order is BM25's. Where no passage shares a word with the query the result is empty, unless there are no more
        than `depth` passages: then all of them are ranked. all_passages: every passage is a result of its own.

        Raises `InputError` where the query is empty or over the model's limit.
        """
        _check(query, depth, top_k)
        found = self._bm25.positions(query, depth)
        if not found and ranker is not None and len(self) <= depth:
            found = [(position, 0.0) for position in range(len(self))]
        if not found:
            return []
        passages = [self[position] for position, _ in found]
        hits: list[Hit] = []
        seen: set[tuple[str, str]] = set()
        for index, score in _ordered(query, passages, [score for _, score in found], ranker):
            passage = passages[index]
            if all_passages or (passage.path, passage.doc_id) not in seen:
                seen.add((passage.path, passage.doc_id))
                hits.append(Hit(len(hits) + 1, score, found[index][1], self._path(passage), passage))
        return hits[:top_k]

    def _path(self, passage: Passage) -> str:
        """Where a passage's file is, as the caller would name it."""
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
    progress: Progress | None = None,
) -> list[Hit]:
    """Search a folder or file: `PassageIndex.open`, then its `search`. Arguments and errors are theirs."""
    _check(query, depth, top_k)
    index = PassageIndex.open(source, cache=cache, rebuild=rebuild, progress=progress)
    return index.search(query, ranker=ranker, depth=depth, top_k=top_k, all_passages=all_passages)


def passage_document(passage: Passage, index: int) -> Document:
    """What BM25 and the ranker read of a passage; its id is `index`."""
    return Document(passage.text, str(index), passage.title)


def check_query(query: str) -> None:
    """Raise `InputError` on a query that asks for nothing."""
    if not query.strip():
        raise InputError("query is empty: there is nothing to search for.")


def _check(query: str, depth: int, top_k: int) -> None:
    """Raise `InputError` on what cannot be searched for."""
    check_query(query)
    for name, value in (("depth", depth), ("top_k", top_k)):
        if value < 1:
            raise InputError(f"{name} must be positive, not {value}.")


def _ordered(
    query: str, passages: Sequence[Passage], scores: Sequence[float], ranker: RequestRanker | None
) -> list[tuple[int, float]]:
    """(index, score) of passages, best first: the ranker's, or those given where there is none."""
    if ranker is None:
        return list(enumerate(scores))
    ranking = ranker.rank(query, [passage_document(passage, index) for index, passage in enumerate(passages)])
    if cut := [entry.cut_tokens for entry in ranking if entry.cut_tokens]:
        _log.warning(
            "%d of %d passages were cut to fit the model (at most %d tokens were left out).",
            len(cut), len(ranking), max(cut),
        )  # fmt: skip
    return [(entry.index, entry.score) for entry in ranking]


def _places(source: Path, files: Sequence[SourceFile], cache: Path | None) -> list[KeptFolder]:
    """Where an index may be kept, the first choice first."""
    fingerprint = [_FORMAT, *versions(), [file.state for file in files]]
    is_folder = source.is_dir()
    own = (source if is_folder else source.parent) / FOLDER
    places = [KeptFolder(own, "passages", None if is_folder else source.name, fingerprint)]
    if cache is not None:
        places.append(KeptFolder(cache / "search", "passages", str(source.resolve()), fingerprint))
    return places


def _known(places: Sequence[KeptFolder]) -> dict[tuple[Any, ...], tuple[list[Passage], str | None]]:
    """From the state of a file to its passages, or why it has none, out of an earlier index."""
    known = {}
    for folder in (folder for kept in places for folder in kept.earlier() if is_whole(folder)):
        try:
            states, passages = Records(folder, "files"), Records(folder, "passages")
            if states[0] != _FORMAT:
                continue
            at = 0
            for state, count, reason in list(states)[1:]:
                known[tuple(state)] = [Passage(*passages[index]) for index in range(at, at + count)], reason
                at += count
        except (OSError, ValueError, TypeError, IndexError) as error:
            _log.info("%s: %s", folder, error)
    return known


def _read(file: SourceFile, *, alone: bool) -> tuple[list[Passage], str | None]:
    """A file's passages, or none and why. alone: what is wrong with the only file is an error."""
    try:
        return read_passages(file), None
    except UnreadableError as reason:
        _log.info("%s: skipped: one of the %s", file.place, reason)
        return [], str(reason)
    except InputError as error:
        if alone:
            raise
        _log.warning("skipped: %s", error)
        return [], "broken files of JSON lines"


def _listed(skipped: Mapping[str, int]) -> str:
    """Counts as words, to follow a clause."""
    text = skipped_text(skipped)
    return f"; skipped: {text}" if text else ""


def skipped_text(skipped: Mapping[str, int]) -> str:
    """Such as `binary files (3), files over 20 MB (1)`."""
    return ", ".join(f"{kind} ({count})" for kind, count in sorted(skipped.items()) if count)
