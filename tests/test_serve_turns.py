"""Turns between the parts of a large request's forward: small ones run there, and what nobody waits for ends there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from threading import Event, Semaphore
from typing import Any

import pytest
import torch
from conftest import PATIENCE_S, TOLERANCE
from serving import QUERY, TEXTS, device_lost, running, wait_until

from blockrank import Ranker, RankRequest
from blockrank.serve.batcher import Batcher, QueuedRequest
from blockrank.serve.deadline import Deadline
from blockrank.serve.refusals import Refusal, draining
from blockrank.serve.settings import ServeSettings
from blockrank.serve.worker import Turns, Worker

LONG = [f"{number} river sea mountain city winter harvest engine" for number in range(40)]
BATCH_TOKENS, PIECE_TOKENS = 100, 150
KINDS = ("pieces", "pieces, kept", "layers")  # how a large request runs, and whether keys are kept


def of_kind(mini: Ranker, kind: str, monkeypatch: pytest.MonkeyPatch) -> Ranker:
    """A ranker whose large requests run so."""
    monkeypatch.setattr(import_module("blockrank.engine.forward"), "forward_tokens", lambda _: PIECE_TOKENS)
    changed = mini.with_spec(query_reads="all") if kind == "layers" else mini.with_spec()
    assert changed.spec.documents_stand_alone == (kind != "layers")
    return changed


class Steps:
    """Lets the layers of large forwards go on one by one. begun: how many of them have; failure: what small ones do."""

    def __init__(self, ranker: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self._allowed, self.failure = 0, Semaphore(0), Event()
        attend = ranker.model.backend.attend

        def held(q_TNH: torch.Tensor, *others: Any) -> torch.Tensor:
            if len(q_TNH) > BATCH_TOKENS:
                self.begun += 1
                assert self._allowed.acquire(timeout=PATIENCE_S), "it was never let go on"
            elif self.failure.is_set():
                device_lost(others[0])
            return attend(q_TNH, *others)

        monkeypatch.setattr(ranker.model.backend, "attend", held)

    def wait_for(self, count: int) -> None:
        """Until so many have begun."""
        wait_until(lambda: self.begun >= count)

    def allow(self, count: int = 1) -> None:
        """Let so many layers go on."""
        self._allowed.release(count)


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_request_is_answered_while_a_large_one_runs(
    mini: Ranker, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held in its second part, the large one has let the small one by; both score as they do alone."""
    ranker = of_kind(mini, kind, monkeypatch)
    right = [{item.index: item.score for item in ranker.rank(QUERY, texts)} for texts in (LONG, TEXTS)]
    settings = ServeSettings(batch_tokens=BATCH_TOKENS, cache_bytes=(1 << 20) * (kind == "pieces, kept"))
    with running(mini, settings, load=lambda: [ranker]) as server, ThreadPoolExecutor(2) as pool:
        steps = Steps(ranker, monkeypatch)
        large = pool.submit(server.post, body={"query": QUERY, "documents": LONG})
        steps.wait_for(1)
        small = pool.submit(server.post)
        wait_until(lambda: server.metric("blockrank_queue_requests") == 1)
        steps.allow()
        answers = [None, small.result(PATIENCE_S)]
        assert not large.done()
        steps.allow(1000)
        answers[0] = large.result(PATIENCE_S)
        assert (steps.begun == ranker.spec.readout.layer) == (kind == "layers"), "several pieces, or one"
        assert server.metric("blockrank_tokens_under_way") == 0
    for answer, expected in zip(answers, right, strict=True):
        assert answer is not None
        found = {item["index"]: item["relevance_score"] for item in answer.json()["results"]}
        assert found == pytest.approx(expected, abs=TOLERANCE["float32"])


@pytest.mark.parametrize("kind", KINDS)
def test_other_forwards_in_between_change_nothing(mini: Ranker, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores to the last bit, though others run in the same thread, share documents, and drop keys that it reads; a
    forward that is ended leaves nothing behind."""
    ranker = of_kind(mini, kind, monkeypatch)
    large, small = RankRequest(QUERY, LONG, evidence=True), RankRequest(QUERY, [*TEXTS, *LONG[20:23]])
    other = RankRequest("rain", [f"{number} another text" for number in range(9)])
    items = {id(request): ranker.tokenise(request) for request in (large, small, other)}

    def score(request: RankRequest, between: Callable[[], None] | None = None) -> torch.Tensor:
        return ranker.score([request], [items[id(request)]], between)[0].scores_C

    def scores(between: Callable[[], None] | None) -> torch.Tensor:
        store = ranker.reuse(30_000) if kind == "pieces, kept" else None  # room for some documents
        score(small)
        found = score(large, between)
        assert store is None or (len(store) and store.used_bytes <= 30_000)
        return found

    alone, inside = scores(None), list[torch.Tensor]()
    assert torch.equal(scores(lambda: inside.extend([score(other), score(small)])), alone)
    assert len(inside) >= 2 * ranker.spec.readout.layer
    assert all(torch.allclose(found, score(small), atol=TOLERANCE["float32"]) for found in inside[1::2])
    left = iter(range(3))
    with pytest.raises(StopIteration):
        scores(lambda: next(left) and None)
    assert torch.equal(scores(None), alone)
    ranker.forget()


# The worker


class Bench:
    """A worker alone, with a large job in its first part and a small one that waits."""

    def __init__(self, ranker: Ranker, steps: Steps) -> None:
        self.forwards: list[tuple[int, float]] = []
        self.told: list[str] = []
        self.ranker, self.steps, self.batcher = ranker, steps, Batcher(BATCH_TOKENS)
        self.worker = Worker(
            "cpu", ranker, self.batcher, idle_s=PATIENCE_S, cache_bytes=0, on_failure=self.told.append,
            on_forward=lambda jobs, tokens, seconds: self.forwards.append((tokens, seconds)),
        )  # fmt: skip
        self.worker.last_success = time.monotonic()
        self.began = time.monotonic()
        self.worker.start()
        self.large = self.put(LONG)
        steps.wait_for(1)
        self.small = self.put(TEXTS)

    def put(self, texts: list[str]) -> QueuedRequest:
        request = RankRequest(QUERY, texts)
        tokenised = self.ranker.tokenise(request)
        job = QueuedRequest(request, tokenised, tokenised.length, Deadline(float("inf")))
        self.batcher.put(job)
        return job


@contextmanager
def bench(ranker: Ranker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    found = Bench(ranker, Steps(ranker, monkeypatch))
    try:
        yield found
    finally:
        found.steps.allow(1000)
        found.batcher.close(draining)
        found.worker.join(PATIENCE_S)
    assert not found.worker.is_alive


@pytest.mark.parametrize("kind", KINDS[::2])
@pytest.mark.parametrize(("cause", "status"), [("deadline", 504), ("disconnect", 499), ("draining", 503)])
def test_what_nobody_waits_for_ends_with_its_part(
    mini: Ranker, kind: str, cause: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past its deadline, left by its client, or when the server drops what is left: no part of it begins any more."""
    with bench(of_kind(mini, kind, monkeypatch), monkeypatch) as found:
        if cause == "deadline":
            found.large.deadline.at = 0.0
        elif cause == "disconnect":
            found.large.deadline.abandoned = True
        else:
            found.batcher.close(draining)
        found.steps.allow(1000)
        with pytest.raises(Refusal) as caught:
            found.large.future.result(PATIENCE_S)
        assert (caught.value.status, caught.value.cause) == (status, cause)
        assert caught.value.__traceback__ is None or "forward" not in str(caught.traceback[-1].path), "it holds tensors"
        if cause != "draining":
            assert len(found.small.future.result(PATIENCE_S).scores_C) == len(TEXTS)
            found.batcher.close(draining)
        found.worker.join(PATIENCE_S)
        assert found.steps.begun == 1
        assert [tokens for tokens, _ in found.forwards] == [found.small.tokens] * (cause != "draining")
        assert found.told == []


def test_a_device_lost_in_between_fails_both(mini: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(mini, monkeypatch) as found:
        found.steps.failure.set()
        found.steps.allow(1000)
        for job in (found.small, found.large):
            with pytest.raises(Refusal, match="the device that ranks is lost"):
                job.future.result(PATIENCE_S)
        found.worker.join(PATIENCE_S)
        assert found.steps.begun == 1
        assert (found.worker.failed, len(found.told)) == (True, 1)


def test_each_part_is_a_sign_of_life(mini: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large forward is stalled where one part takes too long, whatever ran in between; and it is never idle."""
    with bench(mini, monkeypatch) as found:
        worker, steps = found.worker, found.steps
        first = worker.busy_since
        assert first is not None
        steps.allow()
        found.small.future.result(PATIENCE_S)
        steps.wait_for(2)
        second = worker.busy_since
        assert second is not None
        assert second > first
        for busy_s, state in ((4, "ready"), (6, "stalled")):
            assert worker.state(second + busy_s, ready_s=0, stall_s=5) == state
        steps.allow(1000)
        found.large.future.result(PATIENCE_S)
        wait_until(lambda: worker.busy_since is None)
        assert worker.last_success > second


def test_time_counts_once(mini: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others took between the parts of a large forward is not its own time."""
    real = Ranker.score

    def slow(self: Ranker, requests: Any, tokenised: Any, between: Any = None) -> Any:
        if between is None:
            time.sleep(1)
        return real(self, requests, tokenised, between)

    monkeypatch.setattr(Ranker, "score", slow)
    with bench(mini, monkeypatch) as found:
        found.steps.allow(1000)
        found.large.future.result(PATIENCE_S)
        took = time.monotonic() - found.began
        wait_until(lambda: len(found.forwards) == 2)
        assert [tokens for tokens, _ in found.forwards] == [found.small.tokens, found.large.tokens]
        assert found.small.forward_s >= 1
        assert found.large.forward_s + found.small.forward_s <= took
        assert [seconds for _, seconds in found.forwards] == [found.small.forward_s, found.large.forward_s]


def test_turns_take_half_of_the_time() -> None:
    turns = Turns(QueuedRequest(RankRequest("q", ["a"]), None, 1, Deadline(1e9)), since=10.0)  # type: ignore[arg-type]
    assert turns.are_due(10.0), "the first one waits for nothing"
    turns.note(10.0, 13.0)
    assert [turns.are_due(now) for now in (13.0, 15.9, 16.0)] == [False, False, True]
    turns.note(16.0, 16.5)
    assert [turns.are_due(now) for now in (16.9, 17.0)] == [False, True]
    assert turns.seconds == 3.5
