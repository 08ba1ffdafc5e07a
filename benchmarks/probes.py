"""What a server's other clients see: `/livez` ten times a second and a small request twice, each on a new connection.

    python benchmarks/probes.py PORT

Runs until standard input ends, then writes one JSON object: how often and with which statuses each was answered, and
its times. A process of its own that imports little, so that what it measures is the server and not its neighbours.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from threading import Event, Thread
from typing import Any

_PATIENCE_S = 60.0
_GOOD = {"query": "why is the red planet red", "documents": ["Iron oxide makes Mars look red.", "Venus is hot."]}


def livez(port: int) -> int:
    """Ask whether the server lives."""
    return _status(port, "GET", "/livez", None)


def good(port: int) -> int:
    """Ask for a ranking."""
    return _status(port, "POST", "/v1/rerank", json.dumps(_GOOD).encode())


def _status(port: int, method: str, path: str, body: bytes | None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    try:
        connection.request(method, path, body, {"content-type": "application/json", "connection": "close"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


class Probe:
    """One question, asked at a fixed rate in a thread; one that is late does not put the next off."""

    def __init__(self, ask: Callable[[int], int], every_s: float, port: int, end: Event) -> None:
        self._ask, self._every_s, self._port, self._end = ask, every_s, port, end
        self._seconds: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._threads: list[Thread] = []

    def run(self) -> None:
        """Ask until the end."""
        following = time.monotonic()
        while not self._end.wait(max(following - time.monotonic(), 0)):
            following += self._every_s
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._threads.append(thread := Thread(target=self._once, daemon=True))
            thread.start()

    def _once(self) -> None:
        started = time.perf_counter()
        try:
            status = str(self._ask(self._port))
        except (OSError, http.client.HTTPException) as error:
            status = type(error).__name__
        self._seconds.append(time.perf_counter() - started)
        self._statuses[status] += 1

    def found(self) -> dict[str, Any]:
        """Times and statuses, once all have come back."""
        for thread in self._threads:
            thread.join(_PATIENCE_S)
        ordered = sorted(self._seconds)
        return {
            "asked": len(ordered),
            "statuses": dict(self._statuses),
            "p50_s": round(ordered[len(ordered) // 2], 3),
            "worst_s": round(ordered[-1], 3),
        }


def main() -> None:
    """Probe the port named."""
    end, port = Event(), int(sys.argv[1])
    probes = {"livez": Probe(livez, 0.1, port, end), "good": Probe(good, 0.5, port, end)}
    threads = [Thread(target=probe.run) for probe in probes.values()]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    end.set()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps({name: probe.found() for name, probe in probes.items()}))


if __name__ == "__main__":
    main()
