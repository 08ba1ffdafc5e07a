"""Weights with int8 rows: a quarter of the size on disk, dequantised at load.

A two-dimensional tensor W becomes int8 with one float16 scale a row, `W ~ q * scale[:, None]`; everything else is kept
in float16. What the read-out never touches is omitted, and the file says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

WEIGHTS_FILE = "model.safetensors"
_FORMAT = "int8-rows"
_SCALE = ".row_scale"


def write_int8(state: Mapping[str, Tensor], folder: str | Path, omit: Sequence[str] = ()) -> Path:
    """Quantise a state dict row by row into `folder/model.safetensors`, leaving out the names in `omit`."""
    tensors: dict[str, Tensor] = {}
    for name, weight in state.items():
        if name in omit:
            continue
        if weight.ndim != 2 or not weight.is_floating_point():
            tensors[name] = weight.half().contiguous() if weight.is_floating_point() else weight.contiguous()
            continue
        scale = (weight.float().abs().amax(1) / 127).clamp_min(1e-7).half()
        tensors[name] = (weight.float() / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        tensors[name + _SCALE] = scale
    path = Path(folder) / WEIGHTS_FILE
    metadata = {"format": "pt", "quantisation": _FORMAT, "omitted": json.dumps(sorted(omit))}
    save_file(tensors, path, metadata=metadata)
    return path


def is_int8(folder: str | Path) -> bool:
    """Whether `folder` holds weights written by `write_int8`."""
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        return False
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("quantisation") == _FORMAT


def read_int8(folder: str | Path) -> tuple[dict[str, Tensor], frozenset[str]]:
    """Dequantised float32 state dict of `folder`, and the names that were omitted on purpose."""
    with safe_open(Path(folder) / WEIGHTS_FILE, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # safe_open is no mapping
        omitted = frozenset(json.loads(file.metadata()["omitted"]))
    state = {}
    for name, tensor in tensors.items():
        if name.endswith(_SCALE):
            continue
        scale = tensors.get(name + _SCALE)
        state[name] = tensor.float() if scale is None else tensor.float() * scale.float()[:, None]
    return state, omitted
