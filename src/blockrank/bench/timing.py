"""Time and memory of a call, and the ceiling: what a large matrix product reaches on the same device."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from blockrank.bench.result import OUT_OF_MEMORY, Ceiling, Timing

_GIB = 1 << 30
_CEILING = {"cuda": (8192, 100)}  # size of the matrices and repeats
_SMALL_CEILING = (1024, 20)
_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def time_call(call: Callable[[], object], repeats: int, device: torch.device) -> Timing:
    """Time a call `repeats` times after one that warms up, and its peak memory.

    Memory that does not suffice is a result, not an error.
    """
    reset_peak(device)
    try:
        return Timing(_repeats_ms(call, repeats, device), peak_gib(device))
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
    # Outside the handler: the traceback, which holds the tensors of the failed call, is gone.
    release(device)
    return Timing(error=OUT_OF_MEMORY)


def _repeats_ms(call: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    taken = []
    for _ in range(repeats + 1):
        _synchronise(device)
        start = time.perf_counter()
        call()
        _synchronise(device)
        taken.append(1000 * (time.perf_counter() - start))
    return taken[1:]


def _synchronise(device: torch.device) -> None:
    """Wait for the work that was only queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether memory did not suffice; on a CPU torch has no error of its own for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def release(device: torch.device) -> None:
    """Give back the memory of what is no longer referred to."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak(device: torch.device) -> None:
    """Begin a new peak of memory at what is in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # no Linux, or not allowed: then `peak_gib` knows nothing
        _CLEAR_REFS.write_text("5", encoding="ascii")


def peak_gib(device: torch.device) -> float | None:
    """Most memory since `reset_peak`, in GiB: allocated on a CUDA device, else resident in this process (Linux)."""
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


def gemm_ceiling(device: torch.device, dtype: torch.dtype, *, fp8: bool = False) -> Ceiling:
    """Median speed of one square product of random matrices: 8192 on CUDA, 1024 elsewhere; `fp8`: of eight bits."""
    size, repeats = _CEILING.get(device.type, _SMALL_CEILING)
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    if fp8:
        return Ceiling(size, _repeats_ms(_fp8_product(left, right), repeats, device))
    out = torch.empty(size, size, device=device, dtype=dtype)
    return Ceiling(size, _repeats_ms(lambda: torch.mm(left, right, out=out), repeats, device))


def _fp8_product(left: torch.Tensor, right: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The product of two matrices in eight bits, the second laid out by columns as the hardware wants it."""
    a, b = left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn).t()
    one = torch.ones((), device=left.device)
    return lambda: torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)
