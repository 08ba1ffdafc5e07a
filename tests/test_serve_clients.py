"""Real client libraries, unchanged, against the server.

They bring many packages that pin others, so they live in environments of their own: `make clients` makes them and runs
this file. Elsewhere it is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TOLERANCE
from serving import QUERY, TEXTS, Running, running

from blockrank import Ranker
from blockrank.serve.settings import ServeSettings

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = Path(os.environ.get("BLOCKRANK_CLIENTS", ROOT / ".venv-clients"))
CLIENTS = {
    "newest": (
        "cohere-v2", "cohere-v1", "cohere-spans", "litellm-cohere", "litellm-jina_ai", "litellm-hosted_vllm",
        "litellm-infinity", "litellm-huggingface", "litellm-together_ai", "litellm-voyage", "litellm-fireworks_ai",
        "litellm-dashscope", "litellm-scaleway", "litellm-azure_ai", "voyageai", "xinference", "langchain-jina",
        "llama-index-tei", "llama-index-jina", "llama-index-xinference", "haystack-cohere", "haystack-jina",
        "haystack-tei", "lightrag-cohere", "lightrag-jina", "rerankers-cohere", "rerankers-jina", "rerankers-tei",
        "rerankers-voyage", "agno-cohere",
    ),
    "older": (
        "cohere-v2", "cohere-v1", "infinity", "langchain-cohere", "langchain-infinity", "llama-index-cohere",
        "agno-infinity",
    ),
}  # fmt: skip
CASES = [(environment, client) for environment, clients in CLIENTS.items() for client in clients]
NO_KEY = {"llama-index-xinference"}
# Clients that give no reason: agno returns the documents as they were, lightrag asks three times, rerankers looks for
# results in the refusal, llama-index's client of TEI for scores, and infinity's for a list of faults.
NO_REASON = {"agno-cohere", "agno-infinity", "lightrag-cohere", "lightrag-jina", "rerankers-cohere", "rerankers-jina",
             "rerankers-tei", "rerankers-voyage", "llama-index-tei", "infinity", "langchain-infinity"}  # fmt: skip
KEY = "Bearer-token-1"
# No library may ask anybody but the server.
QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HAYSTACK_TELEMETRY_ENABLED": "False", "AGNO_TELEMETRY": "false",
    "LANGSMITH_TRACING": "false", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1",
}  # fmt: skip


def python(environment: str) -> Path:
    return ENVIRONMENTS / environment / "bin" / "python"


pytestmark = pytest.mark.skipif(
    not all(python(name).is_file() for name in CLIENTS), reason="make clients installs the client libraries"
)


@pytest.fixture(scope="module")
def server(mini: Ranker) -> Iterator[Running]:
    settings = ServeSettings(keys=(KEY,), aliases=("fireworks/blockrank/mini",))
    with running(mini, settings, headers={"authorization": f"Bearer {KEY}"}) as found:
        yield found


@pytest.fixture(scope="module")
def open_server(mini: Ranker) -> Iterator[Running]:
    with running(mini) as found:
        yield found


def talk(server: Running, environment: str, client: str, body: dict[str, Any]) -> Any:
    """What a client makes of a body."""
    script, url = ROOT / "tests" / "clients" / "talk.py", f"http://127.0.0.1:{server.port}"
    found = subprocess.run(
        [str(python(environment)), str(script), client, url, KEY, "blockrank/mini"],
        input=json.dumps(body),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | QUIET,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return json.loads(found.stdout.splitlines()[-1])


@pytest.mark.parametrize(("environment", "client"), CASES)
def test_a_client_gets_the_ranking(
    server: Running, open_server: Running, mini: Ranker, environment: str, client: str
) -> None:
    """The right documents in the right order, as many as were asked for, with their scores and texts."""
    expected = mini.rank(QUERY, TEXTS, top_k=2)
    target = open_server if client in NO_KEY else server
    ranked = talk(target, environment, client, {"query": QUERY, "documents": TEXTS, "top_n": 2})
    assert isinstance(ranked, list), ranked
    if client == "litellm-huggingface":  # gives all, whatever top_n says, in the server's order
        ranked = ranked[:2]
    assert [index for index, _, _ in ranked] == [entry.index for entry in expected]
    assert [score for _, score, _ in ranked] == pytest.approx(
        [entry.score for entry in expected], abs=TOLERANCE["float32"]
    )
    assert [text for _, _, text in ranked] == [entry.text for entry in expected]


@pytest.mark.parametrize(("environment", "client"), [case for case in CASES if case[1] not in NO_REASON])
def test_a_client_shows_why_it_was_refused(
    server: Running, open_server: Running, environment: str, client: str
) -> None:
    target = open_server if client in NO_KEY else server
    found = talk(target, environment, client, {"query": "long " * 5000, "documents": TEXTS, "top_n": 2})
    assert isinstance(found, dict), found
    assert "has 25000 characters and the limit is 20000" in found["error"]
