"""Queue and admission without a server: order, budgets, turns, and what is dropped."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest
from conftest import PATIENCE_S
from hypothesis import given
from hypothesis import strategies as st

from blockrank import RankRequest
from blockrank.serve.admission import Admission
from blockrank.serve.batcher import Batcher, QueuedRequest, late, tokens_of
from blockrank.serve.deadline import Deadline
from blockrank.serve.refusals import Refusal

REQUEST = RankRequest("q", ["a"])


def job(tokens: int, deadline: float = 1e9) -> QueuedRequest:
    return QueuedRequest(REQUEST, cast(Any, None), tokens, Deadline(deadline))


def abandon(queued: QueuedRequest) -> None:
    """What the service does where nobody waits any more."""
    queued.deadline.abandoned = True
    queued.future.cancel()


def sizes(jobs: list[QueuedRequest]) -> list[int]:
    return [item.tokens for item in jobs]


@given(st.lists(st.integers(1, 150), max_size=30))
def test_everything_is_taken_once_and_in_order_of_its_lane(tokens: list[int]) -> None:
    batcher, jobs = Batcher(100), [job(count) for count in tokens]
    for item in jobs:
        batcher.put(item)
    batches = []
    while batch := batcher.take(0):
        batches.append(batch)
        assert tokens_of(batch) <= 100 or len(batch) == 1
    taken = [item for batch in batches for item in batch]
    assert sorted(map(id, taken)) == sorted(map(id, jobs))
    for large in (False, True):
        lane = [item for item in jobs if (item.tokens > 100) is large]
        assert [item for item in taken if (item.tokens > 100) is large] == lane
    turns = [batch[0].tokens > 100 for batch in batches]
    smalls, larges = turns.count(False), turns.count(True)
    assert turns[: 2 * min(smalls, larges)] == [False, True] * min(smalls, larges), "turns alternate while both wait"


def test_large_jobs_do_not_keep_small_ones_waiting() -> None:
    batcher = Batcher(100)
    for tokens in (500, 500, 500, 10, 20):
        batcher.put(job(tokens))
    assert [sizes(batcher.take(0)) for _ in range(4)] == [[10, 20], [500], [500], [500]]
    batcher.put(job(500))
    batcher.put(job(500))
    assert sizes(batcher.take(0)) == [500]
    batcher.put(job(5))
    assert sizes(batcher.take_small()) == [5]
    assert batcher.take_small() == []


def test_without_batching_each_goes_alone() -> None:
    batcher = Batcher(100, batching=False)
    for tokens in (10, 20, 30):
        batcher.put(job(tokens))
    assert [sizes(batcher.take(0)) for _ in range(4)] == [[10], [20], [30], []]


def test_abandoned_and_late_jobs_are_dropped_before_dispatch() -> None:
    now = [0.0]
    batcher = Batcher(100, clock=lambda: now[0])
    left, late_one, good = job(10), job(10, deadline=5.0), job(10, deadline=50.0)
    for item in (left, late_one, good):
        batcher.put(item)
    assert (batcher.waiting, batcher.waiting_tokens) == (3, 30)
    abandon(left)
    assert (batcher.waiting, batcher.waiting_tokens) == (2, 20)
    now[0] = 6.0
    assert batcher.take(0) == [good]
    assert left.future.cancelled()
    with pytest.raises(Refusal, match="time allowed"):
        late_one.future.result(0)
    assert good.started == 6.0
    abandon(good)
    assert late(good, 7.0), "between its parts a running job can still be dropped"


def test_closing_fails_what_waits_and_what_comes() -> None:
    batcher, waiting = Batcher(100), job(10)
    taken: list[list[QueuedRequest]] = []
    batcher.put(waiting)
    batcher.close(lambda: Refusal(503, "draining", "the end."))
    with pytest.raises(Refusal, match="the end"):
        waiting.future.result(0)
    with pytest.raises(Refusal, match="the end"):
        batcher.put(job(10))
    assert batcher.take() == []
    idle = Batcher(100)
    thread = threading.Thread(target=lambda: taken.append(idle.take()))
    thread.start()
    idle.close(lambda: Refusal(503, "draining", "the end."))
    thread.join(PATIENCE_S)
    assert taken == [[]]


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60), st.booleans()), max_size=20))
def test_admission_counts_in_and_out(orders: list[tuple[int, int, bool]]) -> None:
    admission, tickets = Admission(10, 100, 1000), []
    for estimate, settled, ends in orders:
        before = admission.tokens
        try:
            ticket = admission.take(estimate)
        except Refusal as refusal:
            status, retry_after = refusal.status, refusal.retry_after or 0
        else:
            status, retry_after = 200, 1
        assert (status, 1 <= retry_after <= 60) == (429 if before and before + estimate > 100 else 200, True)
        if status != 200:
            continue
        ticket.settle(settled)
        tickets.append(ticket)
        if ends:
            ticket.release()
            ticket.release()
    for ticket in tickets:
        ticket.release()
    assert admission.tokens == 0


def test_retry_after_follows_the_measured_speed() -> None:
    admission = Admission(10, 100_000, 1000)
    for _ in range(60):
        admission.ran(1000, 0.1)  # 10,000 tokens a second
    admission.take(95_000)
    with pytest.raises(Refusal) as caught:
        admission.take(10_000)
    assert caught.value.retry_after == 10
