"""The layers of a model as fused matrix products and kernels for inference: what `RankModel` runs where it can."""

from __future__ import annotations

from blockrank.engine.block import Decoder
from blockrank.engine.capture import Capture, LayerCapture, Wanted
from blockrank.engine.families import FAMILIES, fuse, quantise, unfusable
from blockrank.engine.forward import forward
from blockrank.engine.graphs import Graphs
from blockrank.engine.rows import RowBuffers

__all__ = [
    "FAMILIES",
    "Capture",
    "Decoder",
    "Graphs",
    "LayerCapture",
    "RowBuffers",
    "Wanted",
    "forward",
    "fuse",
    "quantise",
    "unfusable",
]
