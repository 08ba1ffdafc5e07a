"""Which requests share a forward: a fixed number, or as many as fit a token budget; and the curriculum."""

from __future__ import annotations

from dataclasses import dataclass

from torch.utils.data import Dataset

from blockrank.train.batch import ExampleStream
from blockrank.train.config import DataConfig
from blockrank.train.sets import Example


@dataclass(slots=True)
class _Lane:
    """State of a lane: its next step, its next request, and, if that request was drawn and did not fit, the request
    itself with its number of candidates."""

    step: int
    index: int
    waiting: tuple[int, Example] | None = None


class ForwardStream(Dataset[list[Example]]):
    """Item i holds the requests of forward i of a run, a pure function of the seed and i.

    A step has `lanes` forwards: processes times accumulated forwards, dealt out in that order. Without a budget forward
    i takes `requests` requests of the stream, from i * requests on. With a budget, lane n owns requests n, n + lanes,
    n + 2 lanes, ... and packs them in order, up to `requests` and `data.max_tokens` in a forward; a request over the
    budget goes alone. So each process packs its own requests only, all have the same number of steps, and one process
    with gradient accumulation sees the same forwards as several processes. Where a forward of a lane begins depends on
    all lengths before it, so an access to an earlier step, or the first one of a resumed run, packs again from the
    first step.
    """

    def __init__(self, examples: ExampleStream, steps: int, lanes: int, requests: int, config: DataConfig) -> None:
        assert len(examples) >= steps * lanes * requests, "a lane never runs out of requests"
        self._examples, self._steps, self._count, self._requests, self._config = (
            examples, steps, lanes, requests, config,
        )  # fmt: skip
        self._lanes: dict[int, _Lane] = {}

    def __len__(self) -> int:
        return self._steps * self._count

    def __getitem__(self, index: int) -> list[Example]:
        step, lane = divmod(index, self._count)
        if self._config.max_tokens is not None:
            return self._packed(step, lane, self._config.max_tokens)
        candidates = self._config.candidates_at(step, self._steps)
        first = index * self._requests
        return [self._examples.example(first + place, candidates) for place in range(self._requests)]

    def _packed(self, step: int, number: int, budget: int) -> list[Example]:
        lane = self._lanes.get(number)
        if lane is None or lane.step > step:
            lane = self._lanes[number] = _Lane(0, number)
        taken: list[Example] = []
        while lane.step <= step:
            taken = self._fill(lane, budget)
        return taken

    def _fill(self, lane: _Lane, budget: int) -> list[Example]:
        """The requests of the lane's next step."""
        candidates = self._config.candidates_at(lane.step, self._steps)
        taken: list[Example] = []
        total = 0
        while len(taken) < self._requests:
            if lane.waiting is None or lane.waiting[0] != candidates:
                lane.waiting = candidates, self._examples.example(lane.index, candidates)
            example = lane.waiting[1]
            total += example.prompts.length
            if taken and total > budget:
                break
            taken.append(example)
            lane.index, lane.waiting = lane.index + self._count, None
        lane.step += 1
        return taken
