"""What a benchmark found: a row for each shape, every repeat kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from blockrank.bench.settings import BenchSettings, Shape

OUT_OF_MEMORY = "out of memory"
OURS = "blockrank"


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of each repeat of one call, or why there are none.

    peak_gib: most memory in use meanwhile: allocated on the device, on a CPU resident in the process, weights included;
    None where that is not known. error: what went wrong, None where nothing did.
    """

    ms: Sequence[float] = ()
    peak_gib: float | None = None
    error: str | None = None

    @property
    def p50(self) -> float | None:
        """Median of the repeats, in milliseconds."""
        return self._percentile(50)

    @property
    def p90(self) -> float | None:
        """Nine in ten repeats took no longer, interpolated."""
        return self._percentile(90)

    def _percentile(self, share: float) -> float | None:
        return float(np.percentile(self.ms, share)) if self.ms else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = {"p50_ms": self.p50, "p90_ms": self.p90, "peak_memory_gib": self.peak_gib}
        return {**_rounded(found), "ms": [round(value, 3) for value in self.ms], "error": self.error}


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What one large square matrix product reaches on the same device in the same type.

    size: rows and columns of each matrix. ms: of each repeat. devices: how many of them work; one was measured.
    """

    size: int
    ms: Sequence[float]
    devices: int = 1

    @property
    def flops_per_second(self) -> float:
        """Operations a second, by the median, on all devices."""
        return float(self.devices * 2 * self.size**3 / (np.median(self.ms) / 1000))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "size": self.size,
            "devices": self.devices,
            "tflop_per_second": self.flops_per_second / 1e12,
            "ms": [round(value, 3) for value in self.ms],
        }


@dataclass(slots=True)
class Row:
    """One shape. tokens: T of its request. flops: useful ones, None where they cannot be counted. peers: by name."""

    shape: Shape
    tokens: int
    flops: int | None
    timing: Timing
    peers: dict[str, Timing] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens of the request over the median time."""
        return 1000 * self.tokens / self.timing.p50 if self.timing.p50 else None

    def ceiling_share(self, ceiling: Ceiling) -> float | None:
        """Useful operations a second as a part of the ceiling."""
        if self.flops is None or not self.timing.p50:
            return None
        return 1000 * self.flops / self.timing.p50 / ceiling.flops_per_second

    def ratio(self, peer: str) -> float | None:
        """How many times as long the peer takes, by medians."""
        theirs, ours = self.peers[peer].p50, self.timing.p50
        return theirs / ours if theirs is not None and ours else None

    def to_dict(self, ceiling: Ceiling) -> dict[str, Any]:
        """JSON-ready."""
        peers = {
            peer: {**timing.to_dict(), **_rounded({"ratio": self.ratio(peer)})} for peer, timing in self.peers.items()
        }
        measured = {"tokens_per_second": self.tokens_per_second, "ceiling_share": self.ceiling_share(ceiling)}
        return {
            "documents": self.shape.documents, "length": self.shape.length, "tokens": self.tokens,
            **self.timing.to_dict(), **_rounded(measured), "useful_flops": self.flops, "peers": peers,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Everything a benchmark found. environment: date, hardware, versions; model: what was loaded and how."""

    settings: BenchSettings
    environment: Mapping[str, Any]
    model: Mapping[str, Any]
    ceiling: Ceiling
    rows: Sequence[Row]

    def growth(self) -> list[dict[str, Any]]:
        """The exponent x of time ~ documents^x, of the model and of each peer, for each length that has several numbers
        of documents; None where fewer than two of its shapes were measured."""
        table = []
        for length in dict.fromkeys(row.shape.length for row in self.rows):
            rows = [row for row in self.rows if row.shape.length == length]
            if len(rows) < 2:
                continue
            found = {OURS: _growth(rows, [row.timing for row in rows])}
            found |= {peer: _growth(rows, [row.peers[peer] for row in rows]) for peer in self.settings.peers}
            table.append({"length": length, **found})
        return table

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the record of a measurement."""
        return {
            **self.environment,
            "model": dict(self.model),
            "settings": asdict(self.settings),
            "ceiling": self.ceiling.to_dict(),
            "rows": [row.to_dict(self.ceiling) for row in self.rows],
            "growth": [_rounded(line) for line in self.growth()],
        }


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of log y over log x by least squares: the exponent where y is a power of x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _growth(rows: Sequence[Row], timings: Sequence[Timing]) -> float | None:
    points = [(row.shape.documents, timing.p50) for row, timing in zip(rows, timings, strict=True) if timing.p50]
    return slope([x for x, _ in points], [y for _, y in points]) if len(points) > 1 else None


def _rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Four digits after the point: more than a clock is good for."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
