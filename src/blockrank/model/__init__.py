"""A Hugging Face model as a ranker sees it: loaded up to the scoring layer, and a layout run through it."""

from __future__ import annotations

from blockrank.model.loading import (
    EMBEDDED_MODEL,
    Devices,
    Layers,
    load_config,
    load_model,
    load_tokenizer,
    resolve_device,
    resolve_devices,
    resolve_dtype,
    resolve_spec,
    resolve_types,
)
from blockrank.model.rank_model import RankModel
from blockrank.seam import SEAM

__all__ = [
    "EMBEDDED_MODEL",
    "SEAM",
    "Devices",
    "Layers",
    "RankModel",
    "load_config",
    "load_model",
    "load_tokenizer",
    "resolve_device",
    "resolve_devices",
    "resolve_dtype",
    "resolve_spec",
    "resolve_types",
]
