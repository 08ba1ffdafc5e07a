"""The errors that this package raises on purpose, and how their sentences list things."""

from __future__ import annotations

from collections.abc import Sequence

# What torch says in a plain RuntimeError: of a processor, by system, and of Apple's GPUs.
_SENTENCES = ("can't allocate memory", "DefaultCPUAllocator: not enough memory", "MPS backend out of memory")


class BlockrankError(Exception):
    """Root of every error this package raises on purpose."""


class InputError(BlockrankError, ValueError):
    """The caller's input cannot be ranked; the message names the argument and the document's index."""


class ModelError(BlockrankError):
    """A checkpoint cannot be loaded, fails its probe, or yields scores that are not finite."""


class CapacityError(ModelError):
    """A request does not fit into the device's memory; fewer or shorter documents may."""


class MissingExtraError(BlockrankError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def listed(names: Sequence[str], most: int | None = None) -> str:
    """Names in a sentence: `a, b and c`, or where they are more than `most`: `a, b and 4 more`."""
    shown = list(names) if most is None or len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def is_device_lost(error: BaseException) -> bool:
    """Whether every later call to the device would fail too, in this process."""
    if is_out_of_memory(error):
        return False
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)  # the first is torch's


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory ran out. Only for CUDA has torch an error of its own for it; numpy and Python
    raise `MemoryError`."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    return isinstance(error, RuntimeError) and any(sentence in str(error) for sentence in _SENTENCES)
