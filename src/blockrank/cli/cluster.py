"""`--ray`: the same work on the machines of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from blockrank.cli.console import load_ranker
from blockrank.types import RequestRanker, ServedRanker

RayOption = Annotated[
    bool, typer.Option("--ray", help="Rank on the Ray cluster of RAY_ADDRESS, or on this machine's cores or GPUs.")
]
RayWorkersOption = Annotated[
    int | None, typer.Option("--ray-workers", min=1, help="Workers of --ray; one for every GPU, else for every core.")
]
RayCpusOption = Annotated[int, typer.Option("--ray-cpus", min=1, help="Cores and threads per worker of --ray.")]


@dataclass(frozen=True, slots=True)
class Workers:
    """What the options of --ray ask for. Raises `typer.BadParameter` (usage) where they conflict."""

    wanted: bool
    count: int | None
    cpus: int
    device: str | None

    def __post_init__(self) -> None:
        if not self.wanted and (self.count is not None or self.cpus != 1):
            raise typer.BadParameter("--ray-workers and --ray-cpus are for --ray.")
        if self.wanted and self.device not in (None, "cpu", "cuda"):
            raise typer.BadParameter("with --ray each worker has a device of its own: --device is cpu or cuda.")

    @contextmanager
    def session(self, verbose: bool) -> Iterator[None]:
        """The cluster, where it is wanted, while the block runs."""
        if not self.wanted:
            yield
            return
        from blockrank.integrations.ray_rank import ray_session

        with ray_session(verbose=verbose):
            yield

    def loader(self, model: str | None, options: dict[str, Any]) -> Callable[[], RequestRanker]:
        """What gives the ranker: of this process, or of the cluster."""
        if model is not None and Path(model).is_dir():
            model = str(Path(model).resolve())  # workers start elsewhere
        load: Callable[[], ServedRanker] = partial(load_ranker, model, **options)
        return partial(self._on_cluster, load) if self.wanted else load

    def _on_cluster(self, load: Callable[[], ServedRanker]) -> RequestRanker:
        from blockrank.integrations.ray_rank import RayRanker

        use_gpu = {None: None, "cpu": False, "cuda": True}[self.device]
        return RayRanker(load, workers=self.count, cpus=self.cpus, use_gpu=use_gpu)
