"""The deadline of a request, and whether its client still waits for it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from blockrank.serve.refusals import Refusal


@dataclass(eq=False, slots=True)
class Deadline:
    """Shared by all code that works on one request. at: on the clock of `time.monotonic`. abandoned: the client is
    gone; set from any thread, and work on the request ends at its next check."""

    at: float
    abandoned: bool = False

    @property
    def remaining(self) -> float:
        """Seconds left, 0 where it has passed."""
        return max(self.at - time.monotonic(), 0.0)

    def refusal(self, now: float) -> Refusal | None:
        """Why work for the request would be for nothing, if it would."""
        if self.abandoned:
            return Refusal(499, "disconnect", "the client has left.")
        return over() if now >= self.at else None

    def check(self) -> None:
        """Raise `Refusal` where the request is late or abandoned."""
        refusal = self.refusal(time.monotonic())
        try:
            if refusal is not None:
                raise refusal
        finally:
            del refusal  # else the error is in a reference cycle through its traceback, and keeps the body in memory


def over() -> Refusal:
    """The refusal of a request past its deadline."""
    return Refusal(504, "deadline", "the time allowed for this request is over.")
