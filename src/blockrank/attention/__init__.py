"""Attention under a packed layout: interchangeable backends that return attention output and nothing else."""

from __future__ import annotations

from blockrank.attention.backend import (
    AttentionBackend,
    MergingBackend,
    available_backends,
    default_backends,
    get_backend,
    has_kernels,
)

__all__ = [
    "AttentionBackend",
    "MergingBackend",
    "available_backends",
    "default_backends",
    "get_backend",
    "has_kernels",
]
