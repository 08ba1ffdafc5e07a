"""The server where the machine fails it: no descriptors left, a log that nobody reads, faults of its own."""

from __future__ import annotations

import copy
import json
import logging
import signal
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import httpx
from serving import BODY, QUERY, TEXTS, answers, process, running, wait_until

from blockrank import ModelError, Ranker
from blockrank.serve import memory
from blockrank.serve.batcher import Batcher
from blockrank.serve.worker import Worker, refusal_of

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")


def seconds_of(client: Any) -> float:
    started = time.monotonic()
    assert client.get("/livez").status_code == 200
    return time.monotonic() - started


@LINUX
def test_a_server_out_of_descriptors_answers_again(tmp_path: Path) -> None:
    """Thirty-one connections that say nothing, where a process may have thirty-four descriptors; its standard input and
    output are closed besides. Requests are answered while they are there, and the log is some lines of JSON."""
    log = tmp_path / "log"
    with (
        log.open("w") as stream,
        process(shell="ulimit -n 34; exec >&- <&-;", stderr=stream, stdout=None) as (server, client),
        ExitStack() as held,
    ):
        wait_until(lambda: answers(client), 60)
        port = client.base_url.port
        for _ in range(31):
            held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        with httpx.Client(base_url=client.base_url, timeout=20) as other:
            assert seconds_of(other) < 10
            for _ in range(3):
                assert other.post("/v1/rerank", json=BODY).status_code == 200
            assert other.get("/readyz").status_code == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) < 60, "what repeats is not written each time"
    assert any("descriptors are allowed" in line["message"] for line in lines)


@LINUX
def test_a_log_that_nobody_reads_holds_nothing_up() -> None:
    """More than a pipe takes: requests and probes are answered, and the end comes in time."""
    with process() as (server, client):
        wait_until(lambda: answers(client), 60)
        for number in range(100):  # a line each, of which about 350 fit into a pipe
            client.post("/v1/rerank", content=b"{", headers={"x-request-id": f"{number}-" + "x" * 120})
        for number in range(300):
            client.get(f"/v{number}" + "/x" * 200)
        assert seconds_of(client) < 10
        assert client.post("/v1/rerank", json=BODY).status_code == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0


# The worker


def test_a_fault_of_the_worker_costs_the_jobs_at_hand(mini: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error outside a forward: that request gets 500, the next one its answer."""
    with running(mini) as server:
        [worker] = server.service._workers
        real = worker._run_batch
        monkeypatch.setattr(worker, "_run_batch", lambda jobs: 1 / 0)
        answer = server.post()
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "internal")
        assert "ZeroDivisionError" in answer.json()["detail"]
        monkeypatch.setattr(worker, "_run_batch", real)
        assert server.post().status_code == 200
        assert server.client.get("/livez").status_code == 200


def test_memory_that_cannot_be_read_is_not_watched(mini: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """`/proc` needs a descriptor: where none is left, freed memory is not given back, and requests are answered."""

    class Exhausted:
        def read_bytes(self) -> bytes:
            raise OSError(24, "Too many open files")

    monkeypatch.setattr(memory, "_STATM", Exhausted())
    assert memory.resident_bytes() == 0
    freed = memory.FreedMemory(0, 0)
    freed.check()
    freed.give_back()
    with running(mini) as server:
        for _ in range(3):
            assert server.post().status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_worker_does_not_look_alive(mini: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends its thread, `/livez` and `/readyz` fail, requests are refused at once, and the server is told."""
    told: list[str] = []

    class End(BaseException):
        pass

    with running(mini, on_failure=told.append) as server:
        [worker] = server.service._workers

        def end(*_: Any) -> None:
            raise End

        monkeypatch.setattr(worker, "_turn", end)
        assert server.post().status_code == 503
        worker.join(10)
        for path in ("/livez", "/readyz", "/health"):
            answer = server.client.get(path)
            assert (answer.status_code, answer.json()["status"]) == (503, "failed")
        started = time.monotonic()
        assert server.post().status_code == 503
        assert time.monotonic() - started < 10
    assert [sentence.partition(" is lost: ")[2] for sentence in told] == ["its thread has ended."]


def test_a_worker_with_nothing_but_faults_is_lost(mini: Ranker, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    batcher = Batcher(4096)
    worker = Worker(
        "cpu", Ranker(mini.model), batcher, idle_s=1, cache_bytes=0, on_forward=lambda *_: None,
        on_failure=told.append,
    )  # fmt: skip
    batcher.take = lambda _: [][0]  # type: ignore[assignment,method-assign]
    with caplog.at_level(logging.ERROR):
        worker.start()
        worker.join(20)
    assert told == ["cpu is lost: its thread has ended."]
    assert worker.state(time.monotonic(), 30, 30) == "failed"


# What callers are told


def test_no_refusal_names_a_file_of_the_server(mini: Ranker) -> None:
    """The model's folder is known to whoever started the server, and to nobody else."""
    folder = "/srv/models/secret"
    model = mini.model.with_spec(mini.spec)
    model.weights = copy.copy(model.weights)
    model.weights.name = folder
    model.spec = mini.spec.changed(max_segment_tokens=100_000)  # past the check at load
    long = Ranker(model)
    with running(mini, load=lambda: [long]) as server:
        answer = server.post(body={"query": QUERY, "documents": ["word " * 3000]})
        assert answer.status_code == 422
        assert "the prompt reaches position" in answer.json()["detail"]
        assert "/srv" not in answer.text

    def fail(_: Any) -> None:
        raise ModelError(f"{folder} cannot be read.")

    with running(mini) as server:
        server.gate.failure = fail
        for path, body in (("/v1/rerank", BODY), ("/v2/rerank", BODY), ("/rerank", {"query": QUERY, "texts": TEXTS})):
            answer = server.post(path, body)
            assert answer.status_code == 500
            assert "/srv" not in answer.text
    assert "/srv" not in refusal_of(OSError(2, "No such file", folder)).sentence
