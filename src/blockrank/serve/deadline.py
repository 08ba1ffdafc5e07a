"""Until when a request may take, and whether anybody still waits for it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from blockrank.serve.refusals import Refusal


@dataclass(eq=False, slots=True)
class Deadline:
    """Shared by all that works for one request. at: on the clock of `time.monotonic`. abandoned: nobody waits any more;
    set from any thread, and what works for the request ends where it looks next."""

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
        """Raise `Refusal` where work for the request would be for nothing."""
        refusal = self.refusal(time.monotonic())
        try:
            if refusal is not None:
                raise refusal
        finally:
            del refusal  # else it refers to itself through its traceback, and keeps the body of the request


def over() -> Refusal:
    """What is told of a request that is late."""
    return Refusal(504, "deadline", "the time allowed for this request is over.")
