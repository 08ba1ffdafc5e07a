"""Whether an error says that memory did not suffice. Loads no torch: the command line asks before it has one."""

from __future__ import annotations

# What torch says in a plain RuntimeError: of a processor, by system, and of Apple's GPUs.
_SENTENCES = ("can't allocate memory", "DefaultCPUAllocator: not enough memory", "MPS backend out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice. Only for CUDA has torch an error of its own for it; numpy and Python raise
    `MemoryError`."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    return isinstance(error, RuntimeError) and any(sentence in str(error) for sentence in _SENTENCES)
