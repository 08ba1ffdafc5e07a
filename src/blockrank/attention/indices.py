"""Index arrays from the host to a device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blockrank.layout import Ints


def moved(device: torch.device, *arrays: Ints | NDArray[np.bool_]) -> list[Tensor]:
    """The arrays as int64 tensors of their shapes, in one transfer."""
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]).astype(np.int64, copy=False))
    parts = torch.split(flat.to(device, non_blocking=True), [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
