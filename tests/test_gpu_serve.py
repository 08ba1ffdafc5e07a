"""The server on CUDA devices, over a socket: answers equal the host's, whoever shares the forward."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import pytest
import torch
from serving import running, wait_until
from test_serve_process import answers, process

from blockrank import Ranker, RankRequest

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
WORDS = ("river", "meets", "sea", "where", "old", "harbours", "trade", "salt", "grain", "under", "a", "lighthouse")


def bodies(count: int) -> list[dict[str, Any]]:
    """Requests of different sizes, with documents that come again."""
    draw = random.Random(3)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 120))) for _ in range(60)]
    return [
        {"query": " ".join(draw.choices(WORDS, k=4)), "documents": draw.sample(texts, draw.randint(1, 40))}
        for _ in range(count)
    ]


def scores(answer: Any) -> list[float]:
    """Scores of an answer's documents in the caller's order."""
    found = sorted(answer["results"], key=lambda item: item["index"])
    return [item["relevance_score"] for item in found]


def expected(mini: Ranker, body: dict[str, Any]) -> list[float]:
    ranking = mini.rank(body["query"], body["documents"])
    return [item.score for item in sorted(ranking, key=lambda item: item.index)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_equal_the_hosts(mini: Ranker, dtype: str) -> None:
    asked = bodies(60)
    tolerance = {"float32": 1e-4, "bfloat16": 0.05}[dtype]
    with running(mini, load=lambda: [Ranker.from_pretrained("embedded", device="cuda", dtype=dtype)]) as server:
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda body: server.post(body=body), asked))
        assert {answer.status_code for answer in found} == {200}
        for body, answer in zip(asked, found, strict=True):
            assert scores(answer.json()) == pytest.approx(expected(mini, body), abs=tolerance)


def test_the_command_serves_from_the_device(mini: Ranker) -> None:
    """Chosen without being named where there is one; with two, both take part."""
    devices = ",".join(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    for arguments in ((), ("--device", devices)):
        with process(*arguments) as (server, client):
            wait_until(lambda: server.poll() is not None or answers(client), 240)
            assert server.poll() is None, server.communicate()[1]
            asked = bodies(30)
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(lambda body: client.post("/v1/rerank", json=body), asked))
            assert [answer.status_code for answer in found] == [200] * 30
            for body, answer in zip(asked, found, strict=True):
                assert scores(answer.json()) == pytest.approx(expected(mini, body), abs=0.05)


def test_small_requests_run_between_the_pieces_of_a_large_one(mini: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward in pieces on the device, with others between them; scores are the host's, from kept keys too."""
    monkeypatch.setattr(import_module("blockrank.engine.forward"), "forward_tokens", lambda _: 400)
    monkeypatch.setattr(
        import_module("blockrank.engine.graphs"), "GRAPH_TOKENS", 800
    )  # what is one graph has no pieces
    draw = random.Random(5)
    texts = [" ".join(draw.choices(WORDS, k=20)) for _ in range(200)]
    requests = [RankRequest("where old harbours trade", texts), RankRequest("a lighthouse", texts[:7])]
    right = [mini.score([request], [mini.tokenise(request)])[0].scores_C for request in requests]
    ranker = Ranker.from_pretrained("embedded", device="cuda", dtype="float32")
    items, inside = [ranker.tokenise(request) for request in requests], list[torch.Tensor]()

    def between() -> None:
        inside.append(ranker.score(requests[1:], items[1:])[0].scores_C)

    for max_bytes in (0, 100_000, 100_000_000):
        inside.clear()
        if max_bytes:
            ranker.reuse(max_bytes)
        for _ in range(2):
            [found] = ranker.score(requests[:1], items[:1], between)
            torch.testing.assert_close(found.scores_C, right[0], atol=1e-4, rtol=0)
        assert len(inside) >= 10
        for one in inside:
            torch.testing.assert_close(one, right[1], atol=1e-4, rtol=0)
