"""The errors that this package raises on purpose."""

from __future__ import annotations


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
