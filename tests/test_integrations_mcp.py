"""`blockrank mcp` as its clients meet it: the package's own client starts the command and calls the tool."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, TOLERANCE, failed
from huggingface_hub.utils import httpx
from serving import QUERY, TEXTS, Gate, wait_until
from typer.testing import CliRunner

from blockrank import MissingExtraError, ModelError, Ranker
from blockrank.cli import app
from blockrank.integrations.mcp import create_mcp_server

mcp = pytest.importorskip("mcp")
ROOT = Path(__file__).parents[1]
COMMAND = ["-c", "from blockrank.cli import main; main()", "mcp", "--max-documents", "3", "--max-document-chars", "900"]
ENVIRONMENT = {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
CALLS: tuple[dict[str, Any], ...] = (
    {"query": QUERY, "documents": list(TEXTS)},
    {"query": QUERY, "documents": [{"text": TEXTS[1], "id": "stoker"}, TEXTS[0]], "top_n": 1},
    {"query": QUERY, "documents": json.dumps(list(TEXTS)), "top_n": None},
    {"query": "rivers", "documents": ["a " * 400, "river"]},
    {"query": QUERY, "documents": list(TEXTS), "top_n": 1.0},
    {"query": '["a", "b"]', "documents": ["a", "b"]},
    {"query": QUERY, "documents": ["", TEXTS[1], {"text": " ", "id": 7}]},
    # refused
    {"query": QUERY, "documents": [*TEXTS, "one more"]},
    {"query": QUERY, "documents": ["", " "]},
    {"query": QUERY, "documents": ["long " * 200]},
    {"query": QUERY, "documents": []},
    {"query": " ", "documents": list(TEXTS)},
    {"query": QUERY, "documents": list(TEXTS), "top_n": 0},
    {"query": QUERY, "documents": "no list"},
    {"query": QUERY, "documents": [{"text": "a", "path": "/etc/passwd"}]},
    {"query": QUERY, "documents": list(TEXTS), "top_k": 1},
    {"querry": QUERY, "documents": list(TEXTS)},
    {"query": QUERY, "documents": list(TEXTS), "max_tokens_per_doc": 3},
    {"query": QUERY, "documents": list(TEXTS), "top_n": True},
    {"query": QUERY, "documents": list(TEXTS), "top_n": 2.5},
    {"query": 5, "documents": list(TEXTS)},
    {"documents": list(TEXTS)},
    {"query": QUERY, "documents": [{"text": "a", "id": True}]},
    {"query": QUERY, "documents": {"text": "a"}},
    {"query": "word " * 600, "documents": list(TEXTS)},
)
REFUSALS = (
    "documents holds 4 documents and the limit is 3: documents[3] is the first over it.",
    "documents[0] and documents[1]: no readable character; there is nothing to rank.",
    "documents[0] has 1000 characters and the limit is 900.",
    "list of documents must not be empty.",
    "query must not be empty or only white space.",
    "top_n must be at least 1, not 0.",
    "documents must be an array.",
    "documents[0] has an unknown field 'path'; known are id, text, title.",
    "unknown field 'top_k': did you mean 'top_n'?",
    "unknown field 'querry': did you mean 'query'?",
    "unknown field 'max_tokens_per_doc'; known are documents, query, top_n.",
    "top_n must be a whole number, not true.",
    "top_n must be a whole number, not 2.5.",
    "query must be a string, not a number.",
    "query is missing.",
    "documents[0].id must be a string or a whole number, not true.",
    "documents must be an array.",
    "query is 600 tokens long and the limit is 510: shorten it, or allow it to be cut (--cut-queries of the server).",
)
RANKED = 7  # calls that are not refused


async def talk(target: Any) -> tuple[list[Any], list[Any]]:
    """The tools of a server, and what it says to every call."""
    async with mcp.Client(target, read_timeout_seconds=PATIENCE_S) as client:
        tools = (await client.list_tools()).tools
        return tools, [await client.call_tool("rank", call) for call in CALLS]


def check(tools: list[Any], results: list[Any], mini: Ranker) -> None:
    assert [tool.name for tool in tools] == ["rank"]
    schema = tools[0].input_schema
    assert {*schema["properties"]} == {"query", "documents", "top_n"}
    assert (schema["required"], schema["properties"]["documents"]["maxItems"]) == (["query", "documents"], 3)
    assert (schema["additionalProperties"], schema["properties"]["query"]) == (False, {"type": "string"})
    whole, description = mini.rank(QUERY, TEXTS), tools[0].description
    assert not re.search(r"^ | $|  ", description, re.MULTILINE), "as it is shown to a language model"
    found = [result.structured_content for result in results[:RANKED]]
    assert found[0] == found[2], "the same forward"
    assert found[4] == {"results": found[0]["results"][:1]}
    assert len(found[5]["results"]) == 2, "a query that looks like JSON is a text"
    assert [e["index"] for e in found[0]["results"]] == [e.index for e in whole]
    scores = [e["score"] for e in found[0]["results"]]
    assert scores == pytest.approx([e.score for e in whole], abs=TOLERANCE["float32"]), "another process"
    assert [(e["index"], e["id"]) for e in found[1]["results"]] == [(0, "stoker")]
    assert re.fullmatch(r"1 of 2 documents were cut at their end to fit \(at most \d+ .*", found[3]["warnings"][0])
    assert [(e["index"], e["score"], e.get("id")) for e in found[6]["results"][1:]] == [(0, 0, None), (2, 0, 7)]
    [warning] = found[6]["warnings"]
    assert warning == "documents[0] and documents[2]: no readable character; ranked last."
    for result, sentence in zip(results[RANKED:], REFUSALS, strict=True):
        assert (result.is_error, result.content[0].text) == (True, f"Error executing tool rank: {sentence}")


def test_nothing_but_mcp_is_needed() -> None:
    """Neither what the HTTP server needs nor what searches."""
    code = """
import sys
for name in ("prometheus_client", "bm25s", "Stemmer", "bs4"): sys.modules[name] = None
from blockrank import MissingExtraError, Ranker
from blockrank.integrations.mcp import _answer, create_mcp_server
from blockrank.serve.settings import ServeSettings
import blockrank.serve.sockets
ranker = Ranker.from_pretrained(device="cpu", probe=False)
create_mcp_server(ranker)
print(_answer(ranker, ServeSettings(), {"query": "rivers", "documents": ["a river", "a hill"]})["results"][0]["index"])
for module in ("app", "server"):
    try: __import__(f"blockrank.serve.{module}")
    except MissingExtraError as error: print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    assert found.stdout.splitlines() == [
        "0",
        *["serving needs prometheus_client: pip install 'blockrank[serve]'."] * 2,
    ], found.stderr


def test_a_client_over_stdio(mini: Ranker) -> None:
    parameters = mcp.StdioServerParameters(
        command=sys.executable, args=[*COMMAND, "--max-segment-tokens", "100"], env=ENVIRONMENT
    )
    tools, results = asyncio.run(talk(parameters))
    check(tools, results, mini)


def test_the_client_ends_it_by_closing_the_pipe() -> None:
    """Nothing but the protocol is on standard output; without a client the process ends with 0."""
    hello = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    done = subprocess.run(
        [sys.executable, *COMMAND], input=json.dumps(hello) + "\n", capture_output=True, text=True, timeout=PATIENCE_S,
        check=False, env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [1]


def test_http_listens_here_alone_and_knows_its_host(mini: Ranker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    arguments = [*COMMAND, "--max-segment-tokens", "100", "--http", str(port)]
    url = f"http://127.0.0.1:{port}/mcp"

    def status(**headers: str) -> int:
        try:
            answer = httpx.post(url, json={}, headers={"accept": "application/json", **headers}, timeout=PATIENCE_S)
            return int(answer.status_code)
        except httpx.TransportError:
            return 0

    server = subprocess.Popen([sys.executable, *arguments], env={**os.environ, **ENVIRONMENT}, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: server.poll() is not None or status() > 0)
        tools, results = asyncio.run(talk(url))
        check(tools, results, mini)
        assert status(host="evil.example") == 421
        assert status(origin="http://evil.example") == 403
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=PATIENCE_S)
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModelError("/srv/models/secret cannot be read."), "ranking failed: ModelError; the server's log has more."),
        (OSError("/srv/models/secret cannot be read."), "ranking failed: OSError; the server's log has more."),
    ],
)
def test_what_is_not_the_caller_s_is_logged_alone(
    mini: Ranker, error: Exception, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The words of an error may name the model's folder, which whoever calls the tool is not told."""

    def fail(_: Any) -> None:
        raise error

    gate = Gate()
    gate.failure = fail
    _, results = asyncio.run(talk(create_mcp_server(Ranker(mini.model, gate))))
    assert (results[0].is_error, results[0].content[0].text) == (True, f"Error executing tool rank: {told}")
    assert "/srv" not in repr([result.content for result in results])
    assert "/srv/models/secret" in caplog.text


def test_what_cannot_start_says_so(tmp_path: Path, mini: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{tmp_path} has no blockrank.json" in failed(CliRunner().invoke(app, ["mcp", "--model", str(tmp_path)]))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "cannot listen on 127.0.0.1" in failed(CliRunner().invoke(app, ["mcp", "--http", port]))
    monkeypatch.setitem(sys.modules, "mcp.server", None)
    with pytest.raises(MissingExtraError, match=r"blockrank\[mcp\]"):
        create_mcp_server(mini)
