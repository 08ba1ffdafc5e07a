"""An HTTP server around a ranker: several dialects of `/rerank`, batching across requests, limits, health, metrics.

`blockrank.serve.app.create_app` makes the application, `blockrank.serve.server.run` serves it. Needs the extra
`serve`.
"""

from __future__ import annotations

from importlib.util import find_spec

from blockrank.types import MissingExtraError

for _name in ("fastapi", "prometheus_client", "uvicorn"):
    if find_spec(_name) is None:
        raise MissingExtraError(f"serving needs {_name}: pip install 'blockrank[serve]'.")
