"""A file of requests ranked so that a kill costs only what was in hand: finished groups wait beside the output."""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from blockrank.cli.cluster import Workers
from blockrank.cli.console import load_check
from blockrank.cli.cuts import Cuts
from blockrank.cli.inputs import Read, check_requests
from blockrank.cli.progress import progress_bars
from blockrank.keep.files import atomic_file, check_writable
from blockrank.keep.identity import hashed, model_identity, ranker_identity
from blockrank.keep.records import RecordFile
from blockrank.keep.settings import Settings, locked
from blockrank.types import Ranking, RankRequest
from blockrank.types.progress import NamedProgress

ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Keep what is finished in OUTPUT.resume and go on there; --ray does.")
]


class Finished(RecordFile):
    """Rankings in groups, each as it will be written, under the identity of its request.

    So what is finished stands when the file of requests is corrected elsewhere.
    """

    def __init__(self, path: Path, advice: str) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        self._read: tuple[int, dict[str, Any]] = (-1, {})
        super().__init__(path, advice)

    def __contains__(self, identity: str) -> bool:
        return identity in self._places

    def add(self, identities: Sequence[str], rankings: Sequence[str], cuts: Sequence[Cuts]) -> None:
        """Add a group; it is on disk when this returns."""
        record = {"requests": list(identities), "rankings": list(rankings), "cuts": [asdict(item) for item in cuts]}
        self.append(record)
        self.take(record)

    def take(self, record: dict[str, Any]) -> bool:
        """See `RecordFile.take`."""
        identities = record["requests"]
        self._places |= {identity: (self.at, index) for index, identity in enumerate(identities)}
        return len(identities) == len(record["rankings"]) == len(record["cuts"])

    def ranking(self, identity: str) -> tuple[str, Cuts]:
        """The ranking of a request, and what was cut of it."""
        at, index = self._places[identity]
        if self._read[0] != at:  # those of a group follow each other
            self._read = (at, self.record_at(at))
        return self._read[1]["rankings"][index], Cuts(**self._read[1]["cuts"][index])


@dataclass(frozen=True, slots=True)
class Job:
    """Requests and where their rankings go. read: gives the requests with their places, as often as it is called.

    form_name: what `form` is called in the settings kept.
    """

    read: Read
    output: Path
    form_name: str
    form: Callable[[Ranking], str]
    top_k: int | None
    explain: bool

    def run(self, model: str | None, options: dict[str, Any], workers: Workers, verbose: bool) -> None:
        """Rank what is missing, then write the output. Raises `InputError` where something differs from before."""
        from blockrank.evaluate.settings import RankingSettings

        check_writable(self.output)
        check = load_check(model, **options)
        identities = [
            _identity(request) for request in check_requests(self.read(), check, for_run=self.form_name == "trec")
        ]
        folder = self.output.with_name(f"{self.output.name}.resume")
        with locked(folder):
            advice = f"delete {folder} to begin again."
            settings = RankingSettings(folder, f"Give another --output, or {advice}")
            settings.claim("ranking", self.output.name, self._settings(model, options))
            finished = Finished(folder / "rankings.jsonl", advice)
            if any(identity not in finished for identity in identities):
                with workers.session(verbose), progress_bars() as progress:
                    load = workers.loader(model, options)
                    self._rank(identities, finished, settings, load, progress)
            self._write(identities, finished, Cuts(check.spec.limits.max_segment_tokens))
            shutil.rmtree(folder)

    def _settings(self, model: str | None, options: dict[str, Any]) -> dict[str, Any]:
        """What decides the output beside the requests, as far as it is known before a model is loaded."""
        from blockrank.model import EMBEDDED_MODEL
        from blockrank.report.environment import versions
        from blockrank.scorers import resolve_scorer

        place = EMBEDDED_MODEL if model is None else Path(model)
        return {
            "form": self.form_name,
            "top_k": self.top_k,
            "explain": self.explain,
            "model": model_identity(place) if place.is_dir() else {"hub": str(model)},
            "spec": resolve_scorer(model, options.get("scorer"), options.get("spec"))[1].to_dict(),
            "options": options,
            "versions": versions(("torch", "transformers")),
        }

    def _rank(
        self, identities: Sequence[str], finished: Finished, settings: Settings, load: Callable[[], Any],
        progress: NamedProgress,
    ) -> None:  # fmt: skip
        """Rank what is not finished, in groups that depend on that alone."""
        done, underway = sum(identity in finished for identity in identities), deque[list[str]]()
        progress("ranking", done, len(identities))
        ranker = load()
        settings.claim("loaded", "ranker", ranker_identity(ranker))
        for rankings in ranker.rank_groups(self._groups(identities, finished, underway)):
            cuts = [Cuts(0) for _ in rankings]
            whole = [next(cut.counted([ranking])) for cut, ranking in zip(cuts, rankings, strict=True)]
            shown = [self.form(ranking.top(self.top_k) if self.top_k else ranking) for ranking in whole]
            finished.add(underway.popleft(), shown, cuts)
            done += len(rankings)
            progress("ranking", done, len(identities))

    def _groups(
        self, identities: Sequence[str], finished: Finished, underway: deque[list[str]]
    ) -> Iterator[list[RankRequest]]:
        """Requests that are not finished; the identities of each group are put into `underway`."""
        from blockrank.ranker import REQUEST_WINDOW

        known = {identity for identity in identities if identity in finished}
        stream = ((i, request) for i, (_, request) in zip(identities, self.read(), strict=True) if i not in known)
        while group := list(islice(stream, REQUEST_WINDOW)):
            underway.append([identity for identity, _ in group])
            yield [replace(request, evidence=self.explain) for _, request in group]

    def _write(self, identities: Sequence[str], finished: Finished, cuts: Cuts) -> None:
        with atomic_file(self.output) as stream:
            for identity in identities:
                ranking, counted = finished.ranking(identity)
                stream.write(f"{ranking}\n".encode())
                cuts.add(counted)
        cuts.report()


def _identity(request: RankRequest) -> str:
    """What tells one request from another that would be ranked or written differently."""
    documents = [[item.doc_id, item.title, item.text, dict(item.metadata)] for item in request.candidates]
    values = [request.query_id, request.query, request.top_k, documents]
    return hashed(json.dumps(values, default=str).encode())
