"""`blockrank doctor`: what is installed, what can run here, and whether a model ranks."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import typer

from blockrank.cli.console import (
    BackendOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    ScorerOption,
    SpecOption,
    VerboseOption,
    aligned,
    load_plain_ranker,
    logs,
    write_data,
)
from blockrank.report.environment import installed, versions
from blockrank.types import BlockrankError, ModelError

if TYPE_CHECKING:
    from blockrank.ranker import Ranker

_CORE = ("torch", "transformers", "numpy", "safetensors")
_EXTRAS = {
    "accelerate": "train",
    "jinja2": "plot",
    "matplotlib": "plot",
    "ir-measures": "eval",
    "bm25s": "search",
    "markdown-it-py": "search",
    "mcp": "mcp",
    "ir-datasets": "datasets",
    "mteb": "mteb",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus-client": "serve",
    "sentence-transformers": "bench",
}
_QUERY = "How long does it take to boil an egg?"
_DOCUMENTS = (
    "The capital of Norway is Oslo, a city at the end of a long fjord.",
    "A hard-boiled egg takes about ten minutes in boiling water.",
    "Bicycle tyres lose air over time and should be pumped up every few weeks.",
)
_BEST = 1


@dataclass(frozen=True, slots=True)
class Trial:
    """One thing that was tried."""

    name: str
    ok: bool
    detail: str


def doctor_command(
    model: ModelOption = None,
    spec: SpecOption = None,
    device: DeviceOption = None,
    backend: BackendOption = None,
    scorer: ScorerOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show versions, devices and backends, then load a model, probe it and rank three documents."""
    with logs(verbose):
        report = {**_versions(), **_machine(device)}
        checks = _checks(model, spec, device, backend, scorer)
    ok = all(check.ok for check in checks)
    if as_json:
        write_data(json.dumps({**report, "checks": [asdict(check) for check in checks], "ok": ok}, indent=2))
    else:
        write_data(_text(report, checks, ok))
    if not ok:
        raise typer.Exit(1)


def _versions() -> dict[str, Any]:
    """Versions of what is needed, and of what extras bring."""
    return {
        "versions": versions(_CORE),
        "extras": [{"name": name, "version": installed(name), "extra": extra} for name, extra in _EXTRAS.items()],
    }


def _machine(device: str | None) -> dict[str, Any]:
    """Devices, threads and the backends that can run on the device that would be used."""
    import torch

    from blockrank.attention import available_backends, get_backend
    from blockrank.model import resolve_devices

    devices = [f"cpu ({platform.machine()})"]
    devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    place = resolve_devices(device)[0]
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    backends = [{"name": item.name, "reason": item.reason} for item in available_backends(place, dtype)]
    defaults = {
        use: get_backend(None, place, dtype, training=use == "training").name for use in ("inference", "training")
    }
    return {
        "devices": devices,
        "threads": {"torch": torch.get_num_threads(), "cores": os.cpu_count()},
        "backends": {
            "device": str(place),
            "dtype": str(dtype).removeprefix("torch."),
            "available": backends,
            "defaults": defaults,
        },
    }


def _checks(
    model: str | None, spec: str | None, device: str | None, backend: str | None, scorer: str | None
) -> list[Trial]:
    """Load, probe, rank; the first failure ends it."""
    loaded: list[Ranker] = []

    from blockrank.engine import unfusable

    def load() -> str:
        loaded.append(load_plain_ranker(model, spec=spec, device=device, backend=backend, scorer=scorer, probe=False))
        found = loaded[0].model
        dtype = str(found.dtype).removeprefix("torch.")
        layers = "fused layers" if found.decoder is not None else f"the library's layers ({unfusable(found.module)})"
        kind = type(found.module).__name__
        return f"{found.name}: {kind}, {dtype} on {found.device}, backend {found.backend.name}, {layers}"

    def probe() -> str:
        from blockrank.model.probe import probe_model

        probe_model(loaded[0].model)
        return "every layer uses the layout, documents are isolated, states equal eager attention"

    checks: list[Trial] = []
    for name, step in (("load", load), ("probe", probe), ("rank", lambda: _rank(loaded[0]))):
        checks.append(_tried(name, step))
        if not checks[-1].ok:
            break
    return checks


def _tried(name: str, step: Callable[[], str]) -> Trial:
    """Run one step; its failure is a result, not an error."""
    try:
        return Trial(name, True, step())
    except BlockrankError as error:
        return Trial(name, False, str(error))


def _rank(ranker: Ranker) -> str:
    """Rank three documents of which one answers. Raises `ModelError` where another comes first."""
    ranking = ranker.rank(_QUERY, _DOCUMENTS)
    scores = ", ".join(f"{entry.score:.3f}" for entry in ranking)
    if ranking[0].index != _BEST:
        raise ModelError(f"a document that does not answer came first (scores {scores}).")
    return f"the document that answers came first (scores {scores})"


def _text(report: dict[str, Any], checks: list[Trial], ok: bool) -> str:
    """The report, a line a fact."""
    rows = [(name, found or "missing") for name, found in report["versions"].items()]
    for item in report["extras"]:
        rows.append((item["name"], item["version"] or f"not installed: blockrank[{item['extra']}] brings it"))
    rows += [("device", device) for device in report["devices"]]
    rows.append(("threads", f"{report['threads']['torch']} of {report['threads']['cores']} cores"))
    backends = report["backends"]
    for item in backends["available"]:
        state = f"not available: {item['reason']}" if item["reason"] else "available"
        rows.append((f"backend {item['name']}", f"{state} ({backends['device']}, {backends['dtype']})"))
    defaults = (f"{name} for {use}" for use, name in backends["defaults"].items())
    rows.append(("default backend", f"{', '.join(defaults)} ({backends['device']}, {backends['dtype']})"))
    rows += [(check.name, f"{'ok' if check.ok else 'failed'}: {check.detail}") for check in checks]
    return "\n".join([*aligned(rows), "ok" if ok else "failed"])
