"""Real client libraries of JavaScript, unchanged, against the server; and the protocol's own against `blockrank mcp`.

`make clients-js` installs them, as their lock file says, and runs this file. Elsewhere it is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TOLERANCE
from serving import QUERY, TEXTS, Running, running

from blockrank import Ranker
from blockrank.serve.settings import ServeSettings

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "tests" / "clients" / "js"
NODE = shutil.which("node")
CLIENTS = (
    "cohere-v2", "cohere-v1", "cohere-suffix", "ai-cohere", "ai-togetherai", "ai7-cohere", "ai7-togetherai",
    "ai-objects", "langchain-cohere", "mcp",
)  # fmt: skip
KEY = "Bearer-token-1"
COMMAND = [sys.executable, "-c", "from blockrank.cli import main; main()", "mcp"]

pytestmark = pytest.mark.skipif(
    NODE is None or not (SCRIPTS / "node_modules").is_dir(), reason="make clients-js installs the client libraries"
)


@pytest.fixture(scope="module")
def server(mini: Ranker) -> Iterator[Running]:
    with running(mini, ServeSettings(keys=(KEY,)), headers={"authorization": f"Bearer {KEY}"}) as found:
        yield found


def talk(server: Running, client: str, body: dict[str, Any]) -> Any:
    """What a client makes of a body."""
    url = json.dumps(COMMAND) if client == "mcp" else f"http://127.0.0.1:{server.port}"
    found = subprocess.run(
        [str(NODE), str(SCRIPTS / "talk.mjs"), client, url, KEY, "blockrank/mini"],
        input=json.dumps(body),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "LANGSMITH_TRACING": "false"},
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return json.loads(found.stdout.splitlines()[-1])


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_gets_the_ranking(server: Running, mini: Ranker, client: str) -> None:
    """The right documents in the right order, as many as were asked for, with their scores and texts."""
    expected = mini.rank(QUERY, TEXTS, top_k=2)
    ranked = talk(server, client, {"query": QUERY, "documents": TEXTS, "top_n": 2})
    assert isinstance(ranked, list), ranked
    assert [index for index, _, _ in ranked] == [entry.index for entry in expected]
    assert [score for _, score, _ in ranked] == pytest.approx(
        [entry.score for entry in expected], abs=TOLERANCE["float32"]
    )
    assert [text for _, _, text in ranked] == [entry.text for entry in expected]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_shows_why_it_was_refused(server: Running, client: str) -> None:
    found = talk(server, client, {"query": "long " * 5000, "documents": TEXTS, "top_n": 2})
    assert isinstance(found, dict), found
    assert "has 25000 characters and the limit is 20000" in found["error"]
