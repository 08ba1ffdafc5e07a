"""A file of requests ranked so that a kill costs only what was in hand: finished groups wait beside the output."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from blockrank.cli.cluster import Workers
from blockrank.cli.cuts import Cuts
from blockrank.cli.progress import progress_bars
from blockrank.data import RecordFile, atomic_file, read_requests
from blockrank.types import Ranking, RankRequest

ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Keep what is finished in OUTPUT.resume and go on there; --ray does.")
]


@dataclass(frozen=True, slots=True)
class Job:
    """A file of requests and where its rankings go. form_name: what `form` is called in the settings kept."""

    requests: str
    output: Path
    form_name: str
    form: Callable[[Ranking], str]
    top_k: int | None
    explain: bool

    def run(self, model: str | None, options: dict[str, Any], workers: Workers, verbose: bool) -> None:
        """Rank what is missing, then write the output. Raises `InputError` where something differs from before."""
        from blockrank.evaluate.settings import Settings, locked

        total = sum(1 for _ in read_requests(self.requests))
        folder = self.output.with_name(f"{self.output.name}.resume")
        with locked(folder):
            advice = f"delete {folder} to begin again."
            settings = Settings(folder, f"Give another --output, or {advice}")
            settings.claim("ranking", self.output.name, self._identity(model, options))
            journal = RecordFile(folder / "rankings.jsonl", advice)
            with workers.session(verbose), progress_bars() as progress:
                load = workers.loader(model, options)
                self._rank(journal, settings, load, lambda done: progress("ranking", done, total))
            self._write(journal, settings)
            shutil.rmtree(folder)

    def _identity(self, model: str | None, options: dict[str, Any]) -> dict[str, Any]:
        """What decides the output, as far as it is known before a model is loaded."""
        from blockrank.environment import versions
        from blockrank.evaluate.settings import file_identity, model_identity
        from blockrank.model import EMBEDDED_MODEL, resolve_spec

        place = EMBEDDED_MODEL if model is None else Path(model)
        return {
            "requests": file_identity(Path(self.requests)),
            "form": self.form_name,
            "top_k": self.top_k,
            "explain": self.explain,
            "model": model_identity(place) if place.is_dir() else {"hub": str(model)},
            "spec": resolve_spec(model, None).to_dict(),
            "options": options,
            "versions": versions(("torch", "transformers")),
        }

    def _groups(self, skipped: int) -> Iterator[list[RankRequest]]:
        """The requests in groups that depend on the file alone, without those that are finished."""
        from blockrank.ranker import REQUEST_WINDOW

        stream = (replace(request, evidence=self.explain) for request in read_requests(self.requests))
        return islice(iter(lambda: list(islice(stream, REQUEST_WINDOW)), []), skipped, None)

    def _rank(
        self, journal: RecordFile, settings: Any, load: Callable[[], Any], progress: Callable[[int], None]
    ) -> None:
        from blockrank.evaluate.settings import ranker_identity

        finished = [len(record["rankings"]) for record in journal.records()]
        groups, done = self._groups(len(finished)), sum(finished)
        progress(done)
        ranker = load()
        settings.claim("loaded", "ranker", ranker_identity(ranker))
        for rankings in ranker.rank_groups(groups):
            cuts = Cuts(0)
            shown = [self.form(r.top(self.top_k) if self.top_k else r) for r in cuts.counted(rankings)]
            journal.append({"rankings": shown, "cuts": {k: v for k, v in asdict(cuts).items() if k != "limit"}})
            done += len(rankings)
            progress(done)

    def _write(self, journal: RecordFile, settings: Any) -> None:
        cuts = Cuts(settings.find("loaded", "ranker")["spec"]["max_segment_tokens"])
        with atomic_file(self.output) as stream:
            for record in journal.records():
                stream.writelines(f"{ranking}\n".encode() for ranking in record["rankings"])
                cuts.add(**record["cuts"])
        cuts.report()
