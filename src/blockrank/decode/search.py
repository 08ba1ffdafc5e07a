"""Beam search over the answers to the requests of one packed layout.

The prompt runs once and leaves keys and values of all layers as rows. A step is a packed layout of one short segment
per beam, which reads the rows of its request, those of its own answer so far, and itself; all beams of all requests go
through the model together. Rows of a prompt are shared by its beams; a beam owns the rows of its answer alone.

Probabilities are those of the model among the tokens that are allowed, so that all answers of a request sum to one, and
a token without alternative costs neither probability nor a forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blockrank.decode.answers import AnswerState, Grammar, Option
from blockrank.decode.steps import segments_layout
from blockrank.layout import Ints, PackedLayout
from blockrank.types import ModelError


@dataclass(frozen=True, slots=True)
class Beam:
    """An answer in the making. score: its log-probability; marks: what that was when each of its ids was complete.
    slot: which of its request's places its rows are in; rows: how many they are."""

    state: AnswerState
    score: float = 0.0
    marks: tuple[float, ...] = ()
    slot: int = 0
    rows: int = 0


@dataclass(slots=True)
class Search:
    """The search of one request.

    width: most beams. prompt: its rows; position: of the first token after it. base, room: first row of the beams'
    places and rows of each. live: beams that go on; finished: complete answers, best first, at most `width`.
    """

    grammar: Grammar
    width: int
    prompt: tuple[int, int]
    position: int
    base: int
    room: int
    live: list[Beam] = field(default_factory=list)
    finished: list[Beam] = field(default_factory=list)

    def region(self, beam: Beam) -> tuple[int, int]:
        """Rows of a beam's answer so far."""
        start = self.base + beam.slot * self.room
        return start, start + beam.rows

    def advance(self, options: Sequence[Sequence[Option]], logs: Sequence[Sequence[float]]) -> list[tuple[Beam, Beam]]:
        """Let the best ways on from all live beams be the live beams; returns (beam, the one it comes from).

        options, logs: ways on from each live beam and their log-probabilities. As usual a beam that ends leaves its
        place to the next best, and counts if it is among the best `width` ways on. The search is over when no live
        beam can come before the finished ones.
        """
        ways = [
            (beam.score + log, beam, option)
            for beam, its_options, its_logs in zip(self.live, options, logs, strict=True)
            for option, log in zip(its_options, its_logs, strict=True)
        ]
        ways.sort(key=lambda way: -way[0])
        chosen: list[tuple[Beam, Beam]] = []
        places = 0
        for place, (score, beam, option) in enumerate(ways):
            if places == self.width or (option.closes and place >= self.width):
                continue
            places += not option.closes
            child = self._child(beam, option, score)
            if child.state.done:
                self.finished.append(child)
            else:
                chosen.append((child, beam))
        self.finished.sort(key=lambda beam: -beam.score)
        del self.finished[self.width :]
        full = len(self.finished) == self.width
        if not chosen or (full and chosen[0][0].score <= self.finished[-1].score):
            chosen = []
        chosen = _placed(chosen)
        self.live = [child for child, _ in chosen]
        return chosen

    def _child(self, beam: Beam, option: Option, score: float) -> Beam:
        state = self.grammar.settle(option.state)
        marks = beam.marks + (score,) * (len(state.ids) - len(beam.state.ids))
        return replace(beam, state=state, score=score, marks=marks, rows=beam.rows + len(beam.state.unread))


def _placed(chosen: Sequence[tuple[Beam, Beam]]) -> list[tuple[Beam, Beam]]:
    """Give each beam a slot: the first that comes from a beam stays in its place, the others take what is free."""
    kept: dict[int, int] = {}
    for index, (_, parent) in enumerate(chosen):
        kept.setdefault(parent.slot, index)
    slots = {index: slot for slot, index in kept.items()}
    free = (slot for slot in range(len(chosen) + max(kept, default=0)) if slot not in kept)
    return [
        (replace(child, slot=slots[index] if index in slots else next(free)), parent)
        for index, (child, parent) in enumerate(chosen)
    ]


def searches_of(layout: PackedLayout, grammars: Sequence[Grammar], beams: int) -> list[Search]:
    """A search for each request of a layout; rows of beams follow those of all prompts."""
    queries = layout.query_segment_B
    starts = np.r_[0, layout.ends_S[queries[:-1]]]
    found, base = [], layout.tokens
    for grammar, start, query in zip(grammars, starts.tolist(), queries.tolist(), strict=True):
        end = int(layout.ends_S[query])
        width = min(beams, grammar.count) if grammar.form == "first" else beams
        search = Search(grammar, width, (start, end), int(layout.positions_T[end - 1]) + 1, base, grammar.longest)
        search.live = [Beam(grammar.start)]
        found.append(search)
        base += search.width * search.room
    return found


def step_layout(searches: Sequence[Search]) -> PackedLayout:
    """What the live beams have not read yet, a segment each, in the order of requests and beams."""
    pairs = [(search, beam) for search in searches for beam in search.live]
    return segments_layout(
        [beam.state.unread for _, beam in pairs],
        [(search.prompt, search.region(beam)) for search, beam in pairs],
        [search.position + beam.rows for search, beam in pairs],
        requests=len(searches),
        cached_rows=rows_of(searches),
    )


def rows_of(searches: Sequence[Search]) -> int:
    """Rows of all prompts and all places of beams; those of a step's tokens follow."""
    last = searches[-1]
    return last.base + last.width * last.room


def capacity_of(searches: Sequence[Search]) -> int:
    """Most rows at any time."""
    return rows_of(searches) + sum(search.width * search.grammar.longest_step for search in searches)


def advance_all(searches: Sequence[Search], logits_AV: Tensor, layout: PackedLayout | None) -> tuple[Ints, Ints] | None:
    """One choice in every search that goes on; returns the rows to be copied, sources and targets, None at the end.

    logits_AV: next-token logits of each live beam; layout: that of the step they come from, None for the prompt.
    """
    options = [[search.grammar.options(beam.state) for beam in search.live] for search in searches]
    logs = iter(option_logs(logits_AV, [one for group in options for one in group]))
    starts = iter((layout.starts_S + layout.cached_rows).tolist() if layout is not None else [])
    sources, targets = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for search, group in zip(searches, options, strict=True):
        if not search.live:
            continue
        new_rows = {beam.slot: next(starts, 0) for beam in search.live}
        for child, parent in search.advance(group, [next(logs) for _ in group]):
            place, old = search.region(child)[0], search.region(parent)
            new, unread = new_rows[parent.slot], len(parent.state.unread)
            if child.slot != parent.slot:
                sources.append(np.arange(*old))
                targets.append(np.arange(place, place + parent.rows))
            sources.append(np.arange(new, new + unread))
            targets.append(np.arange(place + parent.rows, place + child.rows))
    if not any(search.live for search in searches):
        return None
    return np.concatenate(sources), np.concatenate(targets)


def option_logs(logits_AV: Tensor, options: Sequence[Sequence[Option]]) -> list[list[float]]:
    """Log-probability of each option of each row of logits, among its options. Raises `ModelError` where they are not
    finite."""
    tokens = [[token for option in one for token in option.tokens] for one in options]
    width = max(map(len, tokens))
    real = np.arange(width) < np.array([len(one) for one in tokens])[:, None]
    table = np.zeros(real.shape, dtype=np.int64)
    table[real] = np.concatenate([np.array(one) for one in tokens])
    index = torch.from_numpy(table).to(logits_AV.device)
    z = logits_AV.gather(1, index).float().cpu().numpy().astype(np.float64)
    if not np.isfinite(z[real]).all():
        raise ModelError("the model's logits are not finite; its weights or dtype are unfit.")
    z = np.where(real, z, -np.inf)
    logs = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
    return [_summed(row, one) for row, one in zip(logs, options, strict=True)]


def _summed(logs: NDArray[np.float64], options: Sequence[Option]) -> list[float]:
    """Log-probabilities of options from those of their tokens, which follow each other."""
    bounds = np.cumsum([0, *(len(option.tokens) for option in options)])
    return [float(np.logaddexp.reduce(logs[a:b])) for a, b in pairwise(bounds)]
