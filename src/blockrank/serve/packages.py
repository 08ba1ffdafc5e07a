"""The packages that the extra `serve` brings: importing this raises `MissingExtraError` where one is not installed."""

from __future__ import annotations

from importlib.util import find_spec

from blockrank.types import MissingExtraError

for _name in ("prometheus_client", "starlette", "uvicorn"):
    if find_spec(_name) is None:
        raise MissingExtraError(f"serving needs {_name}: pip install 'blockrank[serve]'.")
