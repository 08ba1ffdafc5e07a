#!/usr/bin/env bash
# litellm 1.110.2: rerank(model="huggingface/...", top_n=1) returns all documents, and reports token counts of its
# own.
#
# Seen:     against a server that speaks the rerank API of text-embeddings-inference (a bare list, best first),
#           top_n=1 over 3 documents gives 3 results. top_n is sent on, but that API has no such field. meta.tokens
#           and one billed search unit are filled in although the server reported neither.
# Expected: top_n is an argument of rerank() itself, which is there to call all providers alike, in the sense of
#           Cohere's API that it follows: the number of results. Where a server lacks the field, the client has to
#           cut. Usage that nobody measured should be left out.
# Touches:  who changes the provider and nothing else: a prompt built from the top 3 of 100 is now built from all 100,
#           and the cost report counts tokens that no server counted.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet litellm==1.110.2
LITELLM_LOCAL_MODEL_COST_MAP=True "$work/venv/bin/python" -W ignore - <<'PYTHON'
import http.server
import json
import threading

import litellm


class Reranker(http.server.BaseHTTPRequestHandler):
    """POST /rerank as in text-embeddings-inference: texts in, every index with its score out, best first."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ranked = [{"index": i, "score": 1 / (i + 2)} for i in range(len(request["texts"]))]
        answer = json.dumps(ranked).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Reranker)
threading.Thread(target=server.serve_forever, daemon=True).start()
base = f"http://127.0.0.1:{server.server_port}"
answer = litellm.rerank(
    model="huggingface/any", query="q", documents=["a", "b", "c"], top_n=1, api_base=base, api_key="none"
)
print("results:", [(result["index"], round(result["relevance_score"], 3)) for result in answer.results])
print("meta:", answer.meta)
if len(answer.results) != 3 or not answer.meta["tokens"]["output_tokens"] > 0:
    raise SystemExit("changed: expected 3 results for top_n=1, and a count of output tokens")
PYTHON
