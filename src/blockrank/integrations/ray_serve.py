"""The HTTP server on a Ray cluster: copies of the application of `blockrank.serve`, more of them while more is asked.

Needs the extra `ray`. `serve run blockrank.integrations.ray_serve:application max_replicas=4` starts it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockrank.types import InputError, MissingExtraError, ServedRanker

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from blockrank.serve.settings import ServeSettings

_HEALTH_PERIOD_S = 5
_POLL_S = 0.05
_BEYOND_DRAIN_S = 5
# Arguments of `application` and what makes a value of each; all may come as text.
_REPLICAS = {"min_replicas": int, "max_replicas": int, "target_requests": float, "cpus": float, "gpus": float}
_MODEL = {"model": str, "device": str, "dtype": str, "backend": str}
_LIMITS = {"served_name": str, "max_documents": int, "max_document_chars": int, "timeout_s": float, "drain_s": float}


def deployment(
    load: Callable[[], ServedRanker],
    settings: ServeSettings | None = None,
    *,
    min_replicas: int = 1,
    max_replicas: int = 4,
    target_requests: float = 16,
    cpus: float = 1,
    gpus: float = 0,
) -> Any:
    """An application for `ray.serve.run`. A copy takes requests when its model is loaded, and is replaced when its
    device is lost or answers no longer.

    load: gives a copy's ranker; it travels there. target_requests: requests under way in a copy that autoscaling aims
    at; they share forwards. cpus, gpus: of a copy. Raises `MissingExtraError` without ray.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise MissingExtraError("serving on a cluster needs ray: pip install 'blockrank[ray]'.") from error
    from blockrank.serve.settings import ServeSettings

    chosen = settings or ServeSettings()

    def build() -> Starlette:
        return loaded_app(chosen, load)

    @serve.ingress(build)
    class RankServer:
        """A copy of the server."""

        async def check_health(self) -> None:
            """Raise where Ray should replace this copy."""
            state = self.app.state.service.readiness()  # type: ignore[attr-defined]  # Ray's wrapper has it
            if state in ("failed", "stalled", "stale"):
                raise RuntimeError(f"this copy is {state}.")

    return serve.deployment(
        name="blockrank",
        autoscaling_config={
            "min_replicas": min_replicas, "max_replicas": max_replicas, "target_ongoing_requests": target_requests,
        },
        max_ongoing_requests=chosen.max_requests,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        health_check_period_s=_HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=chosen.drain_s + _BEYOND_DRAIN_S,
    )(RankServer).bind()  # fmt: skip


def loaded_app(settings: ServeSettings, load: Callable[[], ServedRanker]) -> Starlette:
    """The application of `create_app`, which has started only when its model is loaded."""
    from blockrank.serve.app import create_app

    sentences: list[str] = []
    app = create_app(settings, lambda: [load()], on_failure=sentences.append)
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Any]:
        async with inner(app) as state:
            while app.state.service.state == "loading":
                await asyncio.sleep(_POLL_S)
            if sentences:
                raise RuntimeError(sentences[0])
            yield state

    app.router.lifespan_context = lifespan
    return app


def application(arguments: Mapping[str, Any]) -> Any:
    """The application that `serve run` and configuration files of Ray Serve build, from `key=value` arguments.

    They are: model, device, dtype, backend; served_name, max_documents, max_document_chars, timeout_s, drain_s and
    key_file (keys, one per line); min_replicas, max_replicas, target_requests, cpus, gpus. Raises `InputError` on
    others.
    """
    from blockrank.ranker import Ranker
    from blockrank.serve.keys import keys_in
    from blockrank.serve.settings import ServeSettings

    known = {**_REPLICAS, **_MODEL, **_LIMITS, "key_file": str}
    if unknown := sorted(set(arguments) - set(known)):
        raise InputError(f"argument {unknown[0]!r} is unknown; there are {', '.join(sorted(known))}.")
    model = _taken(arguments, _MODEL)
    limits = _taken(arguments, _LIMITS)
    if "key_file" in arguments:
        limits["keys"] = keys_in(Path(str(arguments["key_file"])))
    load = partial(Ranker.from_pretrained, model.pop("model", None), **model)
    return deployment(load, ServeSettings(**limits), **_taken(arguments, _REPLICAS))


def _taken(arguments: Mapping[str, Any], kinds: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """The arguments of some kinds, converted."""
    found = {}
    for name in kinds.keys() & arguments.keys():
        try:
            found[name] = kinds[name](arguments[name])
        except ValueError:
            raise InputError(f"{name} must be a number, not {arguments[name]!r}.") from None
    return found
