"""A Hugging Face model as a ranker sees it: loaded up to the scoring layer, and a layout run through it."""

from __future__ import annotations

from blockrank.model.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from blockrank.model.loaded import LoadedModel
from blockrank.model.loading import (
    Devices,
    Layers,
    check_layers,
    load_config,
    load_model,
    load_skeleton,
    load_tokenizer,
    quiet_libraries,
    resolve_device,
    resolve_devices,
    resolve_dtype,
    resolve_spec,
    resolve_types,
    runs_fused,
)
from blockrank.model.needs import Needs
from blockrank.model.rank_model import RankModel
from blockrank.model.seam import SEAM
from blockrank.model.sources import EMBEDDED_MODEL, located

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "EMBEDDED_MODEL",
    "SEAM",
    "Devices",
    "Layers",
    "LoadedModel",
    "Needs",
    "RankModel",
    "check_layers",
    "load_config",
    "load_model",
    "load_skeleton",
    "load_tokenizer",
    "located",
    "quiet_libraries",
    "resolve_device",
    "resolve_devices",
    "resolve_dtype",
    "resolve_spec",
    "resolve_types",
    "runs_fused",
]
