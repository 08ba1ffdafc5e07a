"""Rankers on the machines of a Ray cluster. Needs the extra `ray`.

Plain actors, one ranker each, and one loop in the driver: groups of requests go out to whoever is free, and rankings
come back in the order of the groups. What was with a worker that dies goes to another, and another worker is started in
its place. A group's rankings are handed on once, by the driver alone, whatever was computed twice.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import islice
from typing import Any

from blockrank.keep.identity import ranker_identity
from blockrank.types import BlockrankError, Document, MissingExtraError, ModelError, Ranking, RankRequest, RequestRanker
from blockrank.types.progress import CountProgress

_USAGE_STATISTICS = "RAY_USAGE_STATS_ENABLED"
_MOST_LOST = 3  # workers that a group may lose before it is given up
_AHEAD = 2  # groups that a worker has at once: one is computed while the next travels
_WINDOW = 8  # groups per worker that may be ahead of the one that is handed on next
_PATIENCE_S = 300.0  # without a worker, before that is an error
Remembered = tuple[int, list[Any], int]
_log = logging.getLogger(__name__)


class ClusterError(BlockrankError):
    """The cluster has no room for a worker, or workers die of what they are given."""


@contextmanager
def ray_session(*, verbose: bool = False) -> Iterator[None]:
    """Ray while the block runs: the cluster of RAY_ADDRESS or of this machine, or one that is started here and ends.

    No usage is reported to Ray's developers. What Ray prints goes to standard error. Raises `MissingExtraError` without
    ray.
    """
    os.environ[_USAGE_STATISTICS] = "0"
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ranking on a cluster needs ray: pip install 'blockrank[ray]'.") from error
    if not verbose:
        logging.getLogger("ray").setLevel(logging.WARNING)
    with redirect_stdout(sys.stderr):  # Ray tells of workers that died on standard output, where data goes
        try:
            ray.init(include_dashboard=False, log_to_driver=verbose, configure_logging=False)
        except (ConnectionError, RuntimeError) as error:
            raise ClusterError(f"there is no Ray cluster to be reached: {error}") from None
        try:
            yield
        finally:
            ray.shutdown()


class RankWorker:
    """What runs in a worker: a ranker that is loaded once, and documents that are encoded once."""

    def __init__(self, load: Callable[[], RequestRanker]) -> None:
        self._load = load
        self._ranker: RequestRanker | None = None
        self._remembered = 0

    @property
    def ranker(self) -> RequestRanker:
        """The ranker, loaded when it is first asked for."""
        if self._ranker is None:
            self._ranker = self._load()
        return self._ranker

    def facts(self) -> dict[str, Any]:
        """What decides the scores of this worker; loads the model."""
        from blockrank.report.environment import versions

        return {"identity": ranker_identity(self.ranker), "versions": versions(("torch", "transformers"))}

    def rank(self, requests: Sequence[RankRequest], remembered: Remembered | None) -> list[Ranking]:
        """The rankings of a group. remembered: number, reference and memory of documents to be encoded before."""
        number = remembered[0] if remembered is not None else 0
        if number != self._remembered:
            self.ranker.forget()
            if remembered is not None:
                import ray

                self.ranker.remember(ray.get(remembered[1][0]), remembered[2])
            self._remembered = number
        return self.ranker.rank_many(requests)


@dataclass(slots=True)
class _Group:
    """A group on its way. lost: workers that died with it."""

    place: int
    requests: Sequence[RankRequest]
    lost: int = 0


class RayRanker(RequestRanker):
    """Ranks on workers of a Ray cluster that `ray_session` has connected; its rankings are those of one process.

    load: gives the ranker of a worker; it travels there, so a model's path must mean the same files on every machine,
    which is checked. workers: how many; None takes a worker for every GPU of the cluster, else for every core. cpus:
    cores (and threads) of a worker. use_gpu: whether a worker has a GPU of its own; None where the cluster has any.
    """

    def __init__(
        self,
        load: Callable[[], RequestRanker],
        *,
        workers: int | None = None,
        cpus: int = 1,
        use_gpu: bool | None = None,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        import ray

        self._ray, self._patience_s = ray, patience_s
        room = ray.cluster_resources()
        gpus = int(room.get("GPU", 0)) if use_gpu is not False else 0
        self._demand = {"num_cpus": cpus, "num_gpus": 1 if gpus or use_gpu else 0}
        self._actor = ray.remote(RankWorker).options(**self._demand, max_restarts=0)
        self._load = ray.put(load)
        self._facts: dict[str, Any] | None = None
        self._remembered: Remembered | None = None
        self._numbers = 0
        self._busy: dict[Any, int] = {}  # worker that is ready -> groups with it
        self._starting: dict[Any, Any] = {}  # answer to `facts` -> worker
        self._running: dict[Any, tuple[Any, _Group]] = {}  # answer to `rank` -> worker and group
        self._lost_at_start = 0
        self._workers = workers or gpus or max(1, int(room.get("CPU", 1)) // cpus)
        for _ in range(self._workers):
            self._start()

    # What a ranker does

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        """See `RequestRanker.rank_iter`. Requests are cut into groups as one process cuts them."""
        from blockrank.ranker import REQUEST_WINDOW

        stream = iter(requests)
        groups = iter(lambda: list(islice(stream, REQUEST_WINDOW)), [])
        for rankings in self.rank_groups(groups):
            yield from rankings

    def rank_groups(self, groups: Iterable[Sequence[RankRequest]]) -> Iterator[list[Ranking]]:
        """See `RequestRanker.rank_groups`. Raises `ClusterError` where workers die of a group or none can be had."""
        source, again, done = enumerate(groups), deque[_Group](), dict[int, list[Ranking]]()
        following, ended = 0, False
        try:
            while True:
                while (worker := self._free()) is not None:
                    if not again and not ended and self._sent(done, following) < following + _WINDOW * self._workers:
                        again.extend(_Group(place, requests) for place, requests in islice(source, 1))
                        ended = not again
                    if not again:
                        break
                    self._send(worker, again.popleft())
                while following in done:
                    yield done.pop(following)
                    following += 1
                if ended and not again and not self._running:
                    return
                self._wait(done, again)
        finally:
            for worker, _ in self._running.values():  # of a stream that is not read to its end
                if worker in self._busy:
                    self._busy[worker] -= 1
            self._running.clear()

    def remember(self, documents: Sequence[Document], max_bytes: int, progress: CountProgress | None = None) -> bool:
        """As `Ranker.remember`, on every worker before its next group, in its own memory."""
        del progress
        self._numbers += 1
        self._remembered = (self._numbers, [self._ray.put(list(documents))], max_bytes)
        return True

    def forget(self) -> None:
        """Drop what `remember` keeps."""
        self._remembered = None

    def identity(self) -> dict[str, Any]:
        """What decides the scores, the same on every worker. Waits for the first one."""
        while self._facts is None:
            self._wait({}, deque())
        found: dict[str, Any] = self._facts["identity"]
        return found

    # Workers

    def _start(self) -> None:
        worker = self._actor.remote(self._load)
        self._starting[worker.facts.remote()] = worker

    def _free(self) -> Any:
        """A worker that can take a group, the one with the fewest; None where none can."""
        found = min(self._busy, key=self._busy.__getitem__, default=None)
        return found if found is not None and self._busy[found] < _AHEAD else None

    def _send(self, worker: Any, group: _Group) -> None:
        self._running[worker.rank.remote(group.requests, self._remembered)] = (worker, group)
        self._busy[worker] += 1

    def _sent(self, done: dict[int, list[Ranking]], following: int) -> int:
        """The place behind the last group that was sent."""
        places = [*done, *(group.place for _, group in self._running.values())]
        return max(places, default=following - 1) + 1

    def _wait(self, done: dict[int, list[Ranking]], again: deque[_Group]) -> None:
        """Wait for one answer: rankings, a worker that is ready, or a worker's death."""
        patience = None if self._busy else self._patience_s
        ready, _ = self._ray.wait([*self._running, *self._starting], num_returns=1, timeout=patience)
        if not ready:
            raise ClusterError(
                f"no worker could be started in {self._patience_s:g} s: one needs {self._demand}, and the cluster has "
                f"{self._ray.available_resources()} left."
            )
        if ready[0] in self._starting:
            self._started(ready[0])
            return
        worker, group = self._running.pop(ready[0])
        try:
            done[group.place] = self._ray.get(ready[0])
            if worker in self._busy:
                self._busy[worker] -= 1
        except self._ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None
        except self._ray.exceptions.RayError:  # the worker, its machine, or what it answered is gone
            self._lose(worker, group, again)

    def _started(self, answer: Any) -> None:
        """A worker has loaded its model, or failed to."""
        worker = self._starting.pop(answer)
        try:
            facts = self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None
        except self._ray.exceptions.RayError as error:
            self._lost_at_start += 1
            if self._lost_at_start > _MOST_LOST:
                raise ClusterError(f"workers die while they load the model: {str(error).splitlines()[0]}") from None
            self._start()
            return
        if self._facts not in (None, facts):
            raise ModelError(f"workers would not score alike: one has {self._facts}, another {facts}.")
        self._facts, self._lost_at_start = facts, 0
        self._busy[worker] = 0

    def _lose(self, worker: Any, group: _Group, again: deque[_Group]) -> None:
        """A worker died. Its groups go out again, the earliest first, and another worker is started."""
        if self._busy.pop(worker, None) is not None:
            _log.warning("a worker died; its requests go to another.")
            group.lost += 1  # the one it worked at; others were waiting
            self._start()
        if group.lost > _MOST_LOST:
            ids = [request.query_id for request in group.requests]
            raise ClusterError(f"{group.lost} workers died with the requests from query_id {ids[0]!r} to {ids[-1]!r}.")
        again.append(group)
        again.extend(sorted((again.popleft() for _ in range(len(again))), key=lambda item: item.place))
