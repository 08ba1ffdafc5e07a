"""Time and memory of a call, and the ceiling: what a large matrix product reaches on the same devices."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from blockrank.bench.result import OUT_OF_MEMORY, Ceiling, Timing
from blockrank.bench.settings import FP8, INT8
from blockrank.errors import is_out_of_memory

_GIB = 1 << 30
_CEILING = {"cuda": (8192, 100)}  # size of the matrices and repeats
_SMALL_CEILING = (1024, 20)
_LEAST_REPEATS, _CEILING_S = 3, 2.0  # where one product is slow, as in a type that the processor has no units for
_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def time_call(call: Callable[[], object], repeats: int, devices: Sequence[torch.device]) -> Timing:
    """Time a call `repeats` times after one that warms up, and its peak memory. devices: all that it uses.

    Running out of memory is a result, not an error.
    """
    reset_peak(devices)
    try:
        return Timing(_repeats_ms(call, repeats, devices), peak_gib(devices))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler: the traceback, which holds the tensors of the failed call, is gone.
    release(devices)
    return Timing(error=OUT_OF_MEMORY)


def _repeats_ms(
    call: Callable[[], object],
    repeats: int,
    devices: Sequence[torch.device],
    *,
    least: int = 1,
    within_s: float = math.inf,
) -> list[float]:
    """Milliseconds of each of `repeats` calls after one that warms up; of fewer, but `least`, where all of them would
    take longer than `within_s`."""
    taken: list[float] = []
    while len(taken) <= least or (len(taken) <= repeats and sum(taken) < 1000 * within_s):
        _synchronise(devices)
        start = time.perf_counter()
        call()
        _synchronise(devices)
        taken.append(1000 * (time.perf_counter() - start))
    return taken[1:]


def _cuda(devices: Sequence[torch.device]) -> list[torch.device]:
    return [device for device in devices if device.type == "cuda"]


def _synchronise(devices: Sequence[torch.device]) -> None:
    """Wait for work that was only queued."""
    for device in _cuda(devices):
        torch.cuda.synchronize(device)


def release(devices: Sequence[torch.device]) -> None:
    """Give back the memory of what is no longer referred to."""
    gc.collect()
    if _cuda(devices):
        torch.cuda.empty_cache()  # of every device


def reset_peak(devices: Sequence[torch.device]) -> None:
    """Begin a new peak of memory at what is in use now."""
    for device in _cuda(devices):
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # no Linux, or not allowed: then `peak_gib` knows nothing
        _CLEAR_REFS.write_text("5", encoding="ascii")


def peak_gib(devices: Sequence[torch.device]) -> float | None:
    """Most memory since `reset_peak` on the device that needed most, in GiB: allocated on a CUDA device, else resident
    in this process (Linux)."""
    found = [peak for device in devices if (peak := _device_peak_gib(device)) is not None]
    return max(found, default=None)


def _device_peak_gib(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    if device.type != "cpu":
        return None
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return found[0] / (1 << 20) if found else None


def gemm_ceiling(devices: Sequence[torch.device], dtype: torch.dtype, name: str | None = None) -> Ceiling:
    """Median speed of one square product of random matrices: 8192 on CUDA, 1024 elsewhere; in 8 bits where `name` is
    "fp8" or "int8". Many products, but after the third no more once they have taken two seconds.

    Measured on the first device; the others are taken to be like it.
    """
    device = devices[0]
    size, repeats = _CEILING.get(device.type, _SMALL_CEILING)
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    if name == FP8:
        call = _fp8_product(left, right)
    elif name == INT8:
        call = partial(torch._int_mm, *((20 * side).round().to(torch.int8) for side in (left, right)))
    else:
        out = torch.empty(size, size, device=device, dtype=dtype)
        call = partial(torch.mm, left, right, out=out)
    taken = _repeats_ms(call, repeats, [device], least=min(_LEAST_REPEATS, repeats), within_s=_CEILING_S)
    return Ceiling(size, taken, len(devices))


def _fp8_product(left: torch.Tensor, right: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The product of two matrices of an 8-bit type, the second laid out by columns as the hardware wants it."""
    a, b = left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn).t()
    one = torch.ones((), device=left.device)
    return lambda: torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)
