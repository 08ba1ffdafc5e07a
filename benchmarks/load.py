"""Load for a server: `blockrank serve` in a process of its own, requests of random words, and clients in threads."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, local
from typing import Any
from urllib.request import urlopen

_WORDS = [
    "river", "sea", "mountain", "city", "winter", "harvest", "engine", "signal", "protein", "market", "treaty",
    "orchard", "violin", "glacier", "comet", "bridge", "novel", "senate", "enzyme", "copper", "desert", "festival",
    "anchor", "lantern", "meadow", "theorem", "circuit", "harbour", "dialect", "mineral",
]  # fmt: skip


@dataclass
class Answer:
    """What came back of a request: status, body, seconds."""

    status: int
    body: Any
    seconds: float
    headers: dict[str, str] = field(default_factory=dict)


class Server:
    """A running `blockrank serve`."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port, self.process = port, process
        self._connections = local()

    def resident_mib(self) -> float:
        """Resident memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))

    def post(self, body: Any, path: str = "/v1/rerank", request_id: str = "") -> Answer:
        """Send a body over the thread's own connection."""
        raw = json.dumps(body).encode()
        headers = {"content-type": "application/json", **({"x-request-id": request_id} if request_id else {})}
        started = time.perf_counter()
        connection = getattr(self._connections, "found", None)
        if connection is None:
            connection = self._connections.found = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.request("POST", path, raw, headers)
        answer = connection.getresponse()
        content = answer.read()
        seconds = time.perf_counter() - started
        return Answer(answer.status, json.loads(content), seconds, {k.lower(): v for k, v in answer.getheaders()})

    def metric(self, name: str) -> float:
        """A metric without labels."""
        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def close(self) -> None:
        """Close the thread's own connection."""
        if (connection := getattr(self._connections, "found", None)) is not None:
            connection.close()
            self._connections.found = None


@contextmanager
def serving(*arguments: str, shell: str = "", reads_log: bool = True) -> Iterator[Server]:
    """A server with these options, ready; it must end with 0.

    shell: what bash does before it, such as a limit. reads_log: False leaves its standard error in a pipe.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "blockrank", "serve", "--port", str(port), *arguments]
    if shell:
        command = ["bash", "-c", f'{shell} exec "$@"', "bash", *command]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stderr=log if reads_log else subprocess.PIPE, env=dict(os.environ))
        try:
            if why := not_ready(port, process):
                log.seek(0)
                sys.exit(f"the server {why}:\n{log.read()[-2000:]}")
            yield Server(port, process)
            process.terminate()
            if process.wait(60):
                sys.exit(f"the server ended with {process.returncode}")
        finally:
            process.kill()


def not_ready(port: int, process: subprocess.Popen[Any]) -> str | None:
    """Ask until the server is ready, for five minutes at most; what is wrong if it is not."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if process.poll() is not None:
            return f"ended with {process.returncode}"
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return None
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    return "was not ready within five minutes"


def words(generator: random.Random, count: int) -> str:
    """A text of so many words."""
    return " ".join(generator.choices(_WORDS, k=count))


def request(generator: random.Random, documents: int, length: int) -> dict[str, Any]:
    """A query of six words and documents of about `length` words."""
    texts = [words(generator, max(1, round(length * generator.uniform(0.5, 1.5)))) for _ in range(documents)]
    return {"query": words(generator, 6), "documents": texts}


def closed_loop(count: int, clients: int, send: Callable[[int], Any]) -> tuple[list[Any], float]:
    """`send(i)` for each i below `count` from so many clients, each of which waits for its answer; and the seconds."""
    lock, results = Lock(), [None] * count
    numbers = iter(range(count))

    def client() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            results[number] = send(number)

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(client) for _ in range(clients)]:
            future.result()
    return results, time.perf_counter() - started


def open_loop(rate: float, seconds: float, send: Callable[[int], Any], clients: int) -> list[Any]:
    """`send(i)` at a fixed rate, whether answers have come or not, as far as `clients` threads allow."""
    futures, started = [], time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for number in range(round(rate * seconds)):
            time.sleep(max(0.0, started + number / rate - time.perf_counter()))
            futures.append(pool.submit(send, number))
        return [future.result() for future in futures]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def milliseconds(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99 of seconds."""
    return {f"p{round(100 * share)}_ms": round(1000 * percentile(values, share), 1) for share in (0.5, 0.9, 0.99)}
