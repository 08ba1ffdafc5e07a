"""`blockrank serve` as a process: signals, exit codes, keys, logs."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import PATIENCE_S
from serving import BODY, CODE, answers, process, wait_until
from typer.testing import CliRunner

from blockrank import InputError
from blockrank.cli import app
from blockrank.cli.serve import model_name, read_keys
from blockrank.serve.hosts import is_loopback
from blockrank.serve.memory import FreedMemory, resident_bytes, trim


def test_sigterm_drains() -> None:
    """Requests under way are answered, new ones get 503, and the process ends with 0. Its logs are JSON."""
    large = {"query": "rivers", "documents": [f"{i} " + "river and sea " * 80 for i in range(30)]}
    with process("--batch-tokens", "1000", environment={"BLOCKRANK_API_KEY": "k"}) as (server, client):
        wait_until(lambda: answers(client))
        assert client.post("/v1/rerank", json=BODY).status_code == 401
        client.headers["authorization"] = "Bearer k"
        with ThreadPoolExecutor(1) as pool:
            under_way = pool.submit(client.post, "/v1/rerank", json=large)
            wait_until(lambda: "requests_under_way 1.0" in client.get("/metrics").text)
            server.send_signal(signal.SIGTERM)
            wait_until(lambda: client.get("/readyz").json()["status"] == "draining")
            refused = client.post("/v2/rerank", json={**BODY, "model": "blockrank/mini"})
            assert (refused.status_code, refused.json()["message"]) == (503, "the server is shutting down.")
            answer = under_way.result()
            assert (answer.status_code, len(answer.json()["results"])) == (200, 30)
        output, errors = server.communicate(timeout=PATIENCE_S)
    assert (server.returncode, output) == (0, "")
    logs = [json.loads(line) for line in errors.splitlines()]
    assert {"listening", "ready", "draining", "request"} == {entry["message"] for entry in logs}
    done = next(entry for entry in logs if entry.get("documents") == 30)
    assert (done["status"], done["path"], done["request_id"]) == (200, "/v1/rerank", answer.json()["id"])
    assert {"tokenise_ms", "queue_ms", "forward_ms", "readout_ms"} < {*done}
    assert "river" not in errors, "no text of a request is logged"


def test_a_drain_has_a_deadline() -> None:
    large = {"query": "rivers", "documents": [f"{i} " + "river and sea " * 80 for i in range(100)]}
    with process("--drain", "0.2", "--cache-mib", "0") as (server, client):
        wait_until(lambda: answers(client))
        with ThreadPoolExecutor(1) as pool:
            under_way = pool.submit(client.post, "/v1/rerank", json=large)
            wait_until(lambda: "requests_under_way 1.0" in client.get("/metrics").text)
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=PATIENCE_S)
            assert under_way.result().status_code == 503
        assert server.returncode == 0


STUCK = """
import time
from blockrank import Ranker
tokenise = Ranker.tokenise
def slowly(self, request, *rest, **options):
    if request.query == "held":
        time.sleep(300)
    return tokenise(self, request, *rest, **options)
Ranker.tokenise = slowly
"""


def test_the_end_does_not_wait_for_threads_that_are_stuck() -> None:
    """What they work for is told within the drain, and the process ends after it."""
    with process("--drain", "0.5", code=STUCK + CODE) as (server, client):
        wait_until(lambda: answers(client))
        with ThreadPoolExecutor(2) as pool:
            stuck = [
                pool.submit(client.post, path, json={**BODY, "query": "held"}) for path in ("/v1/rerank", "/v2/rerank")
            ]
            wait_until(lambda: "requests_under_way 2.0" in client.get("/metrics").text)
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=PATIENCE_S)  # the threads are held for longer
            assert [answer.result().status_code for answer in stuck] == [503, 503]
            assert stuck[1].result().json()["message"] == "the server is shutting down."
        assert server.returncode == 0


def test_a_model_that_cannot_be_loaded_ends_the_process(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["serve", "--port", "0", "--model", str(tmp_path), "--log-format", "text"])
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr.splitlines()[-1].startswith(f"blockrank: error: {tmp_path} has no blockrank.json")
    assert "Traceback" not in found.stderr


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = CliRunner().invoke(app, ["serve", "--port", str(taken.getsockname()[1])])
    assert found.exit_code == 1
    assert "cannot listen on 127.0.0.1" in found.stderr


def test_other_addresses_need_a_key_or_a_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BLOCKRANK_API_KEY", raising=False)
    found = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0"])
    assert (found.exit_code, "--no-key" in found.stderr) == (2, True)
    empty = tmp_path / "keys"
    empty.write_text("\n", encoding="utf-8")
    found = CliRunner().invoke(app, ["serve", "--key-file", str(empty)])
    assert (found.exit_code, "holds no key" in found.stderr) == (1, True)
    found = CliRunner().invoke(app, ["serve", "--log-format", "xml"])
    assert found.exit_code == 2
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "a.org", "192.168.0.1")))


def test_keys_come_from_the_environment_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("one\n\n two \n", encoding="utf-8")
    assert read_keys(path, {"BLOCKRANK_API_KEY": "three"}) == ("three", "one", "two")
    assert read_keys(None, {"BLOCKRANK_API_KEY": " "}) == ()
    path.write_text(" \n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no key"):
        read_keys(path, {})
    assert (model_name(None), model_name("a/b"), model_name(str(tmp_path))) == ("blockrank/mini", "a/b", tmp_path.name)


def test_freed_memory_goes_back() -> None:
    """Blocks that are kept among freed ones leave a heap in pieces; trimming gives what is free in it back."""
    if not sys.platform.startswith("linux"):
        pytest.skip("resident memory is read from /proc")
    blocks = [bytearray(100_000) for _ in range(1000)]
    kept = blocks[::50]
    before = resident_bytes()
    del blocks
    trim()
    assert resident_bytes() < before - 50_000_000
    assert len(kept) == 20


def test_freed_memory_beyond_a_reserve_goes_back() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("resident memory is read from /proc")
    small, large = FreedMemory(10 << 20, least_s=0), FreedMemory(1 << 40, least_s=0)
    small.check()
    floor = resident_bytes()
    for check, goes in ((large.check, False), (small.check, True)):
        blocks = [bytearray(100_000) for _ in range(1000)]
        kept = blocks[::50]
        del blocks
        check()
        assert (resident_bytes() - floor < 30 << 20) is goes, len(kept)


ARENAS = """
import ctypes
import threading
from blockrank.serve.memory import share_arenas
share_arenas()
barrier = threading.Barrier(9)
def work():
    barrier.wait()
    del [bytearray(100_000) for _ in range(100)][:]
    barrier.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
barrier.wait()
barrier.wait()
library = ctypes.CDLL(None)
library.fdopen.restype = ctypes.c_void_p
stream = ctypes.c_void_p(library.fdopen(1, b"w"))
library.malloc_info(0, stream)
library.fflush(stream)
"""


def test_threads_share_a_heap() -> None:
    """Two heaps for eight threads, where each would take one of its own."""
    if not hasattr(ctypes.CDLL(None), "malloc_info"):
        pytest.skip("the C library tells nothing of its heaps")
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    command = [sys.executable, "-c", ARENAS]
    shared, own = (
        subprocess.run(command, capture_output=True, text=True, check=True, env=variables).stdout.count("<heap nr=")
        for variables in (environment, {**environment, "MALLOC_ARENA_MAX": "64"})
    )
    assert shared == 2 < own
