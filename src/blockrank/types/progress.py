"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

CountProgress = Callable[[int, int], None]  # how many are done, how many there are
NamedProgress = Callable[[str, int, int], None]  # what is done, how much of it, of how much
