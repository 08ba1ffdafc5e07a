"""The server over a socket: answers, limits, and what is sent along."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, TOLERANCE
from huggingface_hub.utils import httpx
from serving import BODY, QUERY, TEXTS, Running, running, wait_until

from blockrank import Ranker
from blockrank.serve.paths import OTHER_PATHS, RERANK_PATHS
from blockrank.serve.schema import description
from blockrank.serve.server import listen
from blockrank.serve.settings import ServeSettings


@pytest.fixture(scope="module")
def server(mini: Ranker) -> Iterator[Running]:
    settings = ServeSettings(max_body_bytes=1 << 20, max_documents=60, max_document_chars=100_000, aliases=("other",))
    with running(mini, settings) as found:
        yield found


# Answers


def test_an_answer_equals_the_ranker_s_own(server: Running, mini: Ranker) -> None:
    ranking = mini.rank(QUERY, TEXTS)
    results = server.post().json()["results"]
    assert [item["index"] for item in results] == [entry.index for entry in ranking]
    assert [item["relevance_score"] for item in results] == pytest.approx(
        [e.score for e in ranking], abs=TOLERANCE["float32"]
    )


def test_requests_at_once_each_get_their_own_answer(server: Running, mini: Ranker) -> None:
    bodies = [{"query": f"{QUERY} {i}", "documents": [*TEXTS[i % 3 :], f"{i} {i}"]} for i in range(32)]
    expected = [mini.rank(body["query"], body["documents"]) for body in bodies]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda body: server.post(body=body).json(), bodies))
    for answer, ranking in zip(answers, expected, strict=True):
        assert [item["index"] for item in answer["results"]] == [entry.index for entry in ranking]
        scores = [item["relevance_score"] for item in answer["results"]]
        assert scores == pytest.approx([entry.score for entry in ranking], abs=TOLERANCE["float32"])
    assert max(server.gate.requests) > 1, "requests share forwards"


def test_requests_that_wait_share_a_forward(mini: Ranker) -> None:
    with running(mini) as server, ThreadPoolExecutor(9) as pool:
        server.gate.close()
        answers = [pool.submit(server.post)]
        server.gate.hold()
        server.gate.requests.clear()
        answers += [pool.submit(server.post) for _ in range(8)]
        wait_until(lambda: server.metric("blockrank_queue_requests") == 8)
        server.gate.open.set()
        assert [answer.result().status_code for answer in answers] == [200] * 9
        assert server.gate.requests == [8]


def test_batching_can_be_off(mini: Ranker) -> None:
    with running(mini, ServeSettings(batching=False)) as server, ThreadPoolExecutor(8) as pool:
        assert all(answer.status_code == 200 for answer in pool.map(lambda _: server.post(), range(8)))
        assert set(server.gate.requests) == {1}


def test_documents_are_encoded_once(mini: Ranker) -> None:
    with running(mini) as server:
        first, second = server.post().json(), server.post(body={**BODY, "query": QUERY}).json()
        assert server.metric("blockrank_cache_hits_total") >= 3
    scores = [{item["index"]: item["relevance_score"] for item in answer["results"]} for answer in (first, second)]
    assert scores[1] == pytest.approx(scores[0], abs=TOLERANCE["float32"]), "the query alone is another forward"
    with running(mini, ServeSettings(cache_bytes=0)) as server:
        server.post()
        server.post()
        assert server.metric("blockrank_cache_hits_total") == 0


def test_hard_texts(server: Running, mini: Ranker) -> None:
    """Special tokens, NUL, right-to-left, joiners, a long text: ranked. A lone surrogate: refused by name."""
    texts = [
        "[SEP] [CLS] </think>",
        "a\0b",
        "\u05e9\u05dc\u05d5\u05dd \u202e abc",
        "\U0001f468\u200d\U0001f469",
        "word " * 15_000,
        "[SEP]",
    ]
    answer = server.post(body={"query": QUERY, "documents": texts, "token_counts": True})
    assert answer.status_code == 200
    assert sorted(item["index"] for item in answer.json()["results"]) == list(range(len(texts)))
    cut = {item["index"]: item["cut_tokens"] for item in answer.json()["results"]}
    assert (cut[4] > 10_000, cut[0]) == (True, 0)
    assert answer.headers["x-truncated-documents"] == "1"
    assert "1 of 6 documents were cut" in answer.json()["meta"]["warnings"][0]
    surrogate = server.client.post("/v1/rerank", content=b'{"query":"q","documents":["a","\\ud800"]}')
    assert surrogate.status_code == 422
    assert "documents[1]" in surrogate.json()["detail"]


# Limits


@pytest.mark.parametrize("chunked", [False, True])
def test_body_cap(server: Running, chunked: bool) -> None:
    """413 as our JSON in the dialect's words, and the client gets to read it."""
    body = json.dumps({"query": QUERY, "documents": ["x" * (3 << 20)]}).encode()
    content: Any = iter([body[: 1 << 20], body[1 << 20 :]]) if chunked else body
    answer = server.client.post("/v2/rerank", content=content)
    assert answer.status_code == 413
    assert answer.json()["message"] == "the body is larger than the limit of 1048576 bytes."
    assert server.client.post("/v1/rerank", content=body).json()["detail"] == answer.json()["message"]
    assert server.post().status_code == 200


@pytest.mark.parametrize(
    ("documents", "named"),
    [
        (["a"] * 61, "documents[60]"),
        (["a", "b" * 100_001], "documents[1] has 100001 characters and the limit is 100000"),
        (["", " "], "documents[0] and documents[1]: no readable character"),
        (["a", {"text": "b"}, {"txt": "c"}], "documents[2] has no 'text'; its keys are ['txt']."),
        (["a", {"text": None}], "documents[1].text is null: leave the document out, or give an empty string."),
        (["a", 7], "documents[1] must be a string"),
    ],
)
def test_limits_name_the_document(server: Running, documents: list[Any], named: str) -> None:
    answer = server.post(body={"query": QUERY, "documents": documents})
    assert answer.status_code == 422
    assert named in answer.json()["detail"]


@pytest.mark.parametrize("nothing", ["", "\u200b", "\x00", "\ue000", "\u0301"])
def test_a_document_with_nothing_to_read_is_last(server: Running, nothing: str) -> None:
    body = {"query": QUERY, "documents": [nothing, TEXTS[0], {"text": nothing, "id": 5}, TEXTS[1]], "evidence": True}
    answer = server.post(body={**body, "token_counts": True})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [entry["index"] for entry in results[2:]] == [0, 2]
    assert all((entry["relevance_score"], entry["tokens"], entry["evidence"]) == (0, 0, []) for entry in results[2:])
    alone = server.post(body={**body, "documents": [TEXTS[0], TEXTS[1]]}).json()["results"]
    assert [entry["relevance_score"] for entry in results[:2]] == pytest.approx(
        [entry["relevance_score"] for entry in alone], abs=1e-6
    )


def test_a_query_over_the_limits_is_refused(server: Running) -> None:
    too_many = server.post(body={**BODY, "query": "word " * 600})
    told = "is 600 tokens long and the limit is 510: shorten it, or allow it to be cut (--cut-queries of the server)."
    assert (too_many.status_code, too_many.json()["detail"]) == (422, f"query {told}")
    scores = server.post("/score", {"text_1": "word " * 600, "text_2": TEXTS})
    assert (scores.status_code, scores.json()["detail"]) == (422, f"text_1 {told}")
    assert too_many.json()["error"]["param"] == "query"
    unread = server.post(body={**BODY, "query": "\ue000"})  # a person may see it, and the tokenizer drops it
    assert unread.json()["detail"] == "query yields no token of this tokenizer: there is nothing to read."
    too_long = server.post(body={**BODY, "query": "w" * 20_001})
    assert (too_long.status_code, "query has 20001 characters" in too_long.json()["detail"]) == (422, True)


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/v1/rerank", {"query": "a", "documents": ["\ue000"]}, "documents: none yields a token"),
        ("/rerank", {"query": "a", "texts": ["\ue000", "\ue001"]}, "texts: none yields a token"),
        ("/v2/rerank", {"query": "\ue000", "documents": ["a"]}, "query yields no token"),
    ],
)
def test_what_has_no_token_is_told_in_the_caller_s_words(server: Running, path: str, body: Any, told: str) -> None:
    answer = server.post(path, body)
    sentence = next(answer.json()[key] for key in ("detail", "message", "error") if key in answer.json())
    assert (answer.status_code, sentence.startswith(told), "query_id" in sentence) == (422, True, False)


def test_models_publishes_the_limits(server: Running, mini: Ranker) -> None:
    answer = server.client.get("/v1/models").json()
    assert [row["id"] for row in answer["data"]] == ["blockrank/mini", "other"]
    assert answer["data"][0]["max_model_len"] == mini.spec.limits.max_segment_tokens
    assert answer["data"][0]["limits"]["max_documents"] == 60


@pytest.mark.parametrize("model", ["quicktensor/blockrank", "/etc/passwd", "../mini", "https://x.org/m", "cuda:0", ""])
def test_a_request_cannot_name_a_model_path_url_or_device(server: Running, model: str) -> None:
    answer = server.post(body={**BODY, "model": model})
    assert (answer.status_code, "is not served here" in answer.json()["detail"]) == (404, True)
    for field in ("device", "model_path", "base_url", "gpu", "backend", "revision"):
        answer = server.post(body={**BODY, field: model or "x"})
        assert (answer.status_code, f"unknown field '{field}'" in answer.json()["detail"]) == (422, True)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"{", "not valid JSON"), (b"[1]", "must be a JSON object, not an array"), (b"\xff\xfe\xff", "not valid JSON"),
        (b'{"query": NaN}', "NaN is not a number of JSON"), (b"[" * 100_000, "nested too deeply"), (b"", "not valid"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_told(server: Running, content: bytes, named: str) -> None:
    answer = server.client.post("/v1/rerank", content=content)
    assert (answer.status_code, named in answer.json()["detail"]) == (400, True)


def test_a_compressed_body_is_refused(server: Running) -> None:
    answer = server.client.post("/v1/rerank", content=b"x", headers={"content-encoding": "gzip"})
    assert (answer.status_code, "compressed" in answer.json()["detail"]) == (415, True)


def test_a_body_that_does_not_arrive_is_not_waited_for(mini: Ranker) -> None:
    with running(mini, ServeSettings(body_timeout_s=0.2)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
            connection.sendall(b"POST /v1/rerank HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 408 ")
        assert server.service.under_way == 0


# What is sent along


def test_request_ids_and_unknown_routes(server: Running) -> None:
    given = server.post(headers={"x-request-id": "trace-7"})
    assert [stage.split(";")[0] for stage in given.headers["server-timing"].split(", ")] == [
        "tokenise", "queue", "forward", "readout",
    ]  # fmt: skip
    assert (given.headers["x-request-id"], given.json()["id"]) == ("trace-7", "trace-7")
    made = server.post(headers={"x-request-id": "two words; no"})
    assert len(made.headers["x-request-id"]) == 32
    unknown = server.client.get("/v3/rerank")
    assert (unknown.status_code, "there is no GET '/v3/rerank'" in unknown.json()["detail"]) == (404, True)
    wrong = server.client.get("/v2/rerank")
    assert (wrong.status_code, wrong.headers["allow"], "message" in wrong.json()) == (405, "POST", True)
    assert server.client.get("/docs").status_code == 404, "its page would come from a CDN"
    assert server.client.get("/openapi.json").json()["openapi"].startswith("3.")


def test_metrics(mini: Ranker) -> None:
    with running(mini) as server:
        before = server.metric("blockrank_cache_misses_total")
        server.post(body={**BODY, "documents": [*TEXTS, "word " * 500]})
        assert server.metric("blockrank_cache_misses_total") == before + 4
        server.post(body={**BODY, "topk": 1})
        text = server.client.get("/metrics").text
    for stage in ("tokenise", "queue", "forward", "readout"):
        assert f'blockrank_stage_seconds_count{{stage="{stage}"}} 1.0' in text
    for line in (
        "blockrank_documents_total 4.0", "blockrank_truncated_documents_total 1.0", "blockrank_ready 1.0",
        'blockrank_rejections_total{cause="field"} 1.0', 'blockrank_rejections_total{cause="overload"} 0.0',
        'blockrank_requests_total{route="/v1/rerank",status="200"} 1.0',
        "blockrank_queue_tokens 0.0", "blockrank_batch_requests_count 1.0",
    ):  # fmt: skip
        assert line in text, line


def test_a_request_makes_the_server_connect_to_nobody(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = socket.socket.connect, list[Any]()

    def connect(self: socket.socket, address: Any) -> None:
        seen.append(address)
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        assert client.post("/v1/rerank", json=BODY).status_code == 200
    assert seen == [("127.0.0.1", server.port)], "the client's own"


def test_the_listener_names_its_protocol() -> None:
    """asyncio turns Nagle's algorithm off for such sockets alone; with it an answer may wait 40 ms."""
    listener = listen("127.0.0.1", 0)
    assert listener.proto == socket.IPPROTO_TCP
    listener.close()


def test_the_description_of_the_interface_is_the_one_in_the_docs(server: Running) -> None:
    """docs/openapi.json is kept, so that a change of the interface shows: write it anew where this one is meant."""
    found = description(ServeSettings())
    kept = json.loads((Path(__file__).parents[1] / "docs" / "openapi.json").read_text(encoding="utf-8"))
    assert found["paths"] == kept["paths"]
    assert server.client.get("/openapi.json").json() == description(server.service.settings)
    assert {*found["paths"]} | {"/openapi.json"} == {*RERANK_PATHS, *OTHER_PATHS}, "no route is left out"
