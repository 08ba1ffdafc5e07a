"""Paths that clients make of the address they are given, and what a path that means nothing is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import BODY, QUERY, TEXTS, Running, running

from blockrank import Ranker
from blockrank.serve.paths import OTHER_PATHS, RERANK_PATHS, canonical_path
from blockrank.serve.settings import ServeSettings

TEI_BODY = {"query": QUERY, "texts": TEXTS}


@pytest.fixture(scope="module")
def server(mini: Ranker) -> Iterator[Running]:
    with running(mini) as found:
        yield found


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/rerank/", "/v1/rerank"), ("//v1/rerank", "/v1/rerank"), ("/v2/v2/rerank", "/v2/rerank"),
        ("/v1/v2/rerank", "/v2/rerank"), ("/v1/v1/rerank", "/v1/rerank"), ("/rerank/rerank", "/rerank"),
        ("/rerank/v2/rerank", "/v2/rerank"), ("/v1/rerank/v1/rerank", "/v1/rerank"),
        ("/v1/rerank/rerank", "/v1/rerank"), ("/v1/reranking", "/v1/rerank"), ("/reranking", "/rerank"),
        ("/v1/reranks", "/v1/rerank"), ("/", "/rerank"),
        ("/v1", "/v1/rerank"), ("/v2/", "/v2/rerank"), ("/score/", "/score"), ("/v1/v1/score", "/v1/score"),
        ("/voyage/rerank", "/voyage/v1/rerank"), ("/voyage/v1/v1/rerank", "/voyage/v1/rerank"), ("/livez/", "/livez"),
        ("/v1/models/", "/v1/models"), ("//metrics", "/metrics"),
    ],
)  # fmt: skip
def test_what_a_path_means(path: str, meant: str) -> None:
    assert canonical_path(path) == meant


def test_other_paths_stay_as_they_are() -> None:
    for path in (
        "/page/page.js/",
        "/page",
        "/v3/rerank",
        "/rerank/x",
        "/docs",
        "/v2/score",
        "/v1" * 6 + "/rerank",
        "/x" * 999,
    ):
        assert canonical_path(path) == path
    assert canonical_path("/", "GET") == "/", "the page"
    assert canonical_path("/v1/rerank/", "GET") == "/v1/rerank", "so that it is told which method to use"


@given(st.lists(st.sampled_from(["", "v1", "v2", "rerank", "score", "voyage", "livez", "models", "..", "%2e", "x"])))
def test_a_path_means_itself_or_a_route_which_means_itself(parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    found = canonical_path(path)
    assert found == path or found in RERANK_PATHS + OTHER_PATHS
    assert canonical_path(found) == found


@pytest.mark.parametrize(
    "path", ["/v1/rerank/", "/v2/v2/rerank", "/v1/reranking", "/rerank/rerank", "/", "//rerank", "/v1"]
)
def test_a_suffix_too_many_is_served(server: Running, mini: Ranker, path: str) -> None:
    answer = server.client.post(f"http://127.0.0.1:{server.port}{path}", json={**BODY, "top_n": 1})
    assert [item["index"] for item in answer.json()["results"]] == [mini.rank(QUERY, TEXTS)[0].index]
    assert ("api_version" in answer.json().get("meta", {})) == ("v2" in path)


def test_the_dialects_of_other_paths(server: Running, mini: Ranker) -> None:
    best = mini.rank(QUERY, TEXTS)
    scores: Any = server.post("/v1/score/", {"text_1": QUERY, "text_2": TEXTS}).json()["data"]
    assert [item["index"] for item in scores] == [0, 1, 2]
    assert max(scores, key=lambda item: item["score"])["index"] == best[0].index
    voyage = server.post("/voyage/v1/rerank", BODY).json()["data"]
    assert [item["index"] for item in voyage] == [entry.index for entry in best]
    assert server.post("/reranking", TEI_BODY).json() == server.post("/rerank", TEI_BODY).json()
    long = server.post("/score", {"text_1": QUERY, "text_2": ["a", " " * 3, "b"], "max_tokens_per_doc": 0})
    assert long.json()["error"]["message"] == "max_tokens_per_doc must be at least 1, not 0."


def test_a_path_that_is_no_route_is_told_the_routes(server: Running) -> None:
    for path in ("/v1/embeddings", "/v3/rerank", "/nope"):
        answer = server.post(path)
        assert answer.status_code == 404
        assert all(route in answer.json()["detail"] for route in (path, *RERANK_PATHS, *OTHER_PATHS))
    assert len(server.post("/" + "x" * 5000).json()["detail"]) < 500


def test_another_method_is_told_the_method(server: Running) -> None:
    for method, path, allowed in (
        ("GET", "/v1/rerank", "POST"), ("PUT", "/rerank/", "POST"), ("POST", "/v1/models", "GET"),
        ("POST", "/livez/", "GET"),
    ):  # fmt: skip
        answer = server.client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert f"use {allowed}." in answer.json()["detail"]


def test_the_key_is_asked_for_whatever_the_path_is_called(mini: Ranker) -> None:
    with running(mini, ServeSettings(keys=("k",), page=True)) as guarded:
        assert guarded.client.get("/").status_code == 200
        for path in ("/v1/rerank/", "/v2/v2/rerank", "//rerank", "/", "/v1", "/livez/rerank", "/v1/models/"):
            address = f"http://127.0.0.1:{guarded.port}{path}"
            assert guarded.client.post(address, json=BODY).status_code == 401, path
        for path, status in (("/livez", 200), ("/livez/", 401), ("//readyz", 401)):  # open paths are so word for word
            address = f"http://127.0.0.1:{guarded.port}{path}"
            assert guarded.client.get(address).status_code == status
        assert guarded.client.get("/livez/", headers={"authorization": "Bearer k"}).status_code == 200
