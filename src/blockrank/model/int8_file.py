"""Weights with int8 rows: a quarter of the size on disk, dequantised at load.

A two-dimensional tensor W becomes int8 with one float16 scale per row, `W ~ q * scale[:, None]`; everything else is
kept in float16. What the read-out never touches is omitted, and the file says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from blockrank.types import ModelError

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
    """Dequantised float32 state dict of `folder`, and the names that were omitted on purpose.

    Raises `ModelError` where a tensor of int8 has no scale, a scale no tensor, one does not fit the other, or the file
    does not say what was omitted.
    """
    path = Path(folder) / WEIGHTS_FILE
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # safe_open is no mapping
        omitted = _omitted((file.metadata() or {}).get("omitted", ""), path)
    state, unused = {}, {name for name in tensors if name.endswith(_SCALE)}
    for name in sorted(set(tensors) - unused):
        scale = tensors.get(name + _SCALE)
        _check_scale(tensors[name], scale, f"{path} holds {name}")
        state[name] = tensors[name].float() if scale is None else tensors[name].float() * scale.float()[:, None]
        unused.discard(name + _SCALE)
    if unused:
        raise ModelError(f"{path} holds {min(unused)}, but not what it scales.")
    return state, omitted


def _omitted(text: str, path: Path) -> frozenset[str]:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{path} does not say which weights it omits: it was not written as it should be.")
    return frozenset(names)


def _check_scale(weight: Tensor, scale: Tensor | None, holds: str) -> None:
    """Raise `ModelError` where a weight of int8 and its scale do not belong together."""
    if scale is None:
        if weight.dtype == torch.int8:
            raise ModelError(f"{holds} in int8 without its {_SCALE.removeprefix('.')}.")
    elif weight.dtype != torch.int8 or weight.ndim != 2 or scale.shape != weight.shape[:1]:
        raise ModelError(f"{holds} as {tuple(weight.shape)}, which {_SCALE.removeprefix('.')} does not fit.")
    elif not bool(((scale > 0) & scale.isfinite()).all()):
        raise ModelError(f"{holds} with a {_SCALE.removeprefix('.')} that is not above zero and finite.")
