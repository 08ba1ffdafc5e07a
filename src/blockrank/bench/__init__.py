"""How fast a model ranks: latency, memory and arithmetic over a grid of shapes, beside peers measured in the same run.

Importing this package brings neither torch nor transformers.
"""

from __future__ import annotations

from blockrank.bench.requests import random_request
from blockrank.bench.result import BenchResult, Ceiling, Row, Timing
from blockrank.bench.run import bench
from blockrank.bench.settings import HF_FULL, BenchSettings, Shape, grid, read_schedule, read_shapes, whole_numbers
from blockrank.bench.shapes import KNOWN_SHAPES, KnownShape

__all__ = [
    "HF_FULL",
    "KNOWN_SHAPES",
    "BenchResult",
    "BenchSettings",
    "Ceiling",
    "KnownShape",
    "Row",
    "Shape",
    "Timing",
    "bench",
    "grid",
    "random_request",
    "read_schedule",
    "read_shapes",
    "whole_numbers",
]
