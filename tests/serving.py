"""A real server on a socket for tests: uvicorn in a thread, the application and the embedded model as they are."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import torch
from conftest import PATIENCE_S, exhaust
from huggingface_hub.utils import httpx

from blockrank import Ranker
from blockrank.layout import PackedLayout
from blockrank.model import RankModel
from blockrank.scorers import AttentionScorer, Scored
from blockrank.serve.app import create_app
from blockrank.serve.server import listen, make_server
from blockrank.serve.service import Service
from blockrank.serve.settings import ServeSettings
from blockrank.types import ServedRanker

QUERY = "who wrote Dracula"
TEXTS = ["Mary Shelley wrote Frankenstein.", "Bram Stoker wrote Dracula in 1897.", "The Irish coast is rainy."]
BODY: dict[str, Any] = {"query": QUERY, "documents": TEXTS}


class Gate(AttentionScorer):
    """A scorer that can be held, or made to fail, and otherwise scores as ever. Server tests count with it."""

    name = "gate"

    def __init__(self) -> None:
        self.open = Event()
        self.open.set()
        self.entered = Event()
        self.failure: Callable[[PackedLayout], Scored | None] | None = None
        self.requests: list[int] = []

    def read(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
        self.requests.append(layout.requests)
        self.entered.set()
        assert self.open.wait(PATIENCE_S), "the gate was never opened"
        if self.failure is not None and (found := self.failure(layout)) is not None:
            return found
        return super().read(model, layout, evidence=evidence)

    def close(self) -> None:
        """Hold whatever comes next."""
        self.entered.clear()
        self.open.clear()

    def hold(self) -> None:
        """Wait until a forward is held."""
        assert self.entered.wait(PATIENCE_S), "nothing came"


@dataclass
class Running:
    """A server, a client of it, and what is behind it."""

    client: httpx.Client
    service: Service
    gate: Gate
    port: int
    routes: list[Any]

    def post(self, path: str = "/v1/rerank", body: Any = None, **options: Any) -> Any:
        return self.client.post(path, json=BODY if body is None else body, **options)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels, or its value where `name` has labels."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


@contextmanager
def running(
    mini: Ranker | None,
    settings: ServeSettings | None = None,
    *,
    load: Callable[[], Sequence[ServedRanker]] | None = None,
    headers: dict[str, str] | None = None,
    wait: bool = True,
    send_buffer: int | None = None,
    **options: Any,
) -> Iterator[Running]:
    """A server over the embedded model whose forwards pass a `Gate`, or over what `load` gives. send_buffer: bytes of
    an answer that the system takes for a client that does not read."""
    gate = Gate()

    def gated() -> Sequence[ServedRanker]:
        assert mini is not None, "there is nothing to serve"
        return [Ranker(mini.model, gate)]

    app = create_app(settings, load or gated, **options)
    server, listener = make_server(app), listen("127.0.0.1", 0)
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    port = listener.getsockname()[1]
    thread = Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, headers=headers) as client:
            if wait:
                wait_until(lambda: app.state.service.state == "ready")
            yield Running(client, app.state.service, gate, port, app.routes)
    finally:
        gate.failure = None
        gate.open.set()
        server.should_exit = True
        thread.join(PATIENCE_S)
        listener.close()
    assert not thread.is_alive()


def not_finite(layout: PackedLayout) -> Scored:
    """What a broken model would yield."""
    return Scored(torch.full((len(layout.document_segment_C),), float("nan")))


def out_of_memory(room: int, kind: str = "cuda") -> Callable[[PackedLayout], None]:
    """A device that takes so many documents at once, and fails as `exhaust` does."""

    def fail(layout: PackedLayout) -> None:
        if len(layout.document_segment_C) > room:
            exhaust(kind)

    return fail


def device_lost(_: PackedLayout) -> None:
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


CODE = "from blockrank.cli import main; main()"


@contextmanager
def process(
    *arguments: str, environment: dict[str, str] | None = None, code: str = CODE, shell: str = "", **options: Any
) -> Iterator[tuple[Any, Any]]:
    """The command in a process of its own, and a client of it. shell: what bash does before it, such as a limit."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [sys.executable, "-c", code, "serve", "--port", str(port), *arguments]
    if shell:
        command = ["bash", "-c", f'{shell} exec "$@"', "bash", *command]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})}
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, **options}
    server = subprocess.Popen(command, text=True, env=variables, **pipes)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
            yield server, client
    finally:
        server.kill()
        server.communicate()


def answers(client: Any) -> bool:
    try:
        return bool(client.get("/readyz").status_code == 200)
    except httpx.TransportError:
        return False
