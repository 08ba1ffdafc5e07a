"""Real client libraries, unchanged, against the server.

They bring half a gigabyte of packages that pin others, so they live in an environment of their own: `make clients`
makes it and runs this file. Elsewhere it is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TOLERANCE
from serving import QUERY, TEXTS, Running, running

from blockrank import Ranker
from blockrank.serve.settings import ServeSettings

ROOT = Path(__file__).parents[1]
PYTHON = Path(os.environ.get("BLOCKRANK_CLIENTS_PYTHON", ROOT / ".venv-clients" / "bin" / "python"))
CLIENTS = (
    "cohere-v2", "cohere-v1", "litellm-cohere", "litellm-jina", "litellm-vllm", "litellm-infinity", "litellm-tei",
    "langchain-cohere", "langchain-jina", "llama-index-tei",
)  # fmt: skip
KEY = "Bearer-token-1"

pytestmark = pytest.mark.skipif(not PYTHON.is_file(), reason="make clients installs the client libraries")


@pytest.fixture(scope="module")
def server(mini: Ranker) -> Iterator[Running]:
    settings = ServeSettings(keys=(KEY,))
    with running(mini, settings, headers={"authorization": f"Bearer {KEY}"}) as found:
        yield found


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_gets_the_ranking(server: Running, mini: Ranker, client: str) -> None:
    expected = mini.rank(QUERY, TEXTS, top_k=2)
    script, url = ROOT / "tests" / "clients" / "talk.py", f"http://127.0.0.1:{server.port}"
    found = subprocess.run(
        [str(PYTHON), str(script), client, url, KEY, "blockrank/mini"],
        input=json.dumps({"query": QUERY, "documents": TEXTS, "top_n": 2}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert found.returncode == 0, found.stderr[-2000:]
    ranked = json.loads(found.stdout)
    assert [index for index, _ in ranked] == [entry.index for entry in expected]
    assert [score for _, score in ranked] == pytest.approx(
        [entry.score for entry in expected], abs=TOLERANCE["float32"]
    )
