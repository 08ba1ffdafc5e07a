"""Admission control: requests, tokens and bytes in the server at once are bounded; excess is refused at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from blockrank.serve.refusals import Refusal

_FIRST_RATE = 2000.0  # tokens a second, before any forward was timed
_SMOOTHING = 0.2  # weight of the newest forward in the mean rate
_LONGEST_RETRY = 60  # seconds


class Admission:
    """Counts requests and tokens in the server.

    A request is counted by an estimate before it is tokenised, and by its real tokens afterwards. Requests over the
    size of a batch are counted separately: they have their own queue, and must not keep small ones out. A request is
    always admitted if no other of its kind is there, so that a limit never makes one impossible. max_tokens: for each
    kind. batch_tokens: tokens of a batch.
    """

    def __init__(self, max_requests: int, max_tokens: int, max_bytes: int) -> None:
        self.max_requests, self.max_tokens, self.max_bytes = max_requests, max_tokens, max_bytes
        self._lock = Lock()
        self._rate = Rate(_FIRST_RATE)
        self.batch_tokens = max_tokens
        self.requests = self.bytes = 0
        self._tokens = {False: 0, True: 0}  # by whether a request is large

    @property
    def tokens(self) -> int:
        """Tokens in the server."""
        return sum(self._tokens.values())

    @contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that adds the bytes of one body as they arrive; all are subtracted when the block ends. The
        function raises `Refusal` where other bodies leave no room."""
        held = 0

        def grow(size: int) -> None:
            nonlocal held
            with self._lock:
                if self.bytes > held and self.bytes + size > self.max_bytes:
                    raise self._overload(f"bodies of {self.bytes} bytes are here and the limit is {self.max_bytes}")
                self.bytes += size
                held += size

        try:
            yield grow
        finally:
            with self._lock:
                self.bytes -= held

    @contextmanager
    def request(self) -> Iterator[None]:
        """Occupies one place among the requests while the block runs. Raises `Refusal` where all are taken."""
        with self._lock:
            if self.requests >= self.max_requests:
                raise self._overload(f"{self.requests} requests are under way and the limit is {self.max_requests}")
            self.requests += 1
        try:
            yield
        finally:
            with self._lock:
                self.requests -= 1

    def take(self, tokens: int) -> Ticket:
        """Admit tokens. Raises `Refusal` where the limit does not allow it."""
        with self._lock:
            is_large = tokens > self.batch_tokens
            found = self._tokens[is_large]
            if found and found + tokens > self.max_tokens:
                raise self._overload(f"{found} tokens are waiting or running and the limit is {self.max_tokens}")
            self._tokens[is_large] += tokens
        return Ticket(self, tokens, is_large)

    def change(self, tokens: int, is_large: bool) -> None:
        """Count tokens in (or, negative, out) without asking."""
        with self._lock:
            self._tokens[is_large] += tokens

    def ran(self, tokens: int, seconds: float) -> None:
        """Note how long a forward took."""
        self._rate.note(tokens, seconds)

    def _overload(self, why: str) -> Refusal:
        return overload(why, self._rate.seconds(self.tokens))


class Rate:
    """Recent throughput per second. first: the value before anything was timed."""

    def __init__(self, first: float) -> None:
        self._rate = first

    def note(self, amount: float, seconds: float) -> None:
        """Note how long something took."""
        if seconds > 0:
            self._rate += _SMOOTHING * (amount / seconds - self._rate)

    def seconds(self, amount: float) -> float:
        """How long so much takes."""
        return amount / max(self._rate, 1.0)


def overload(why: str, wait_s: float) -> Refusal:
    """The refusal when the server is overloaded."""
    return Refusal(
        429,
        "overload",
        f"the server is busy: {why}; try again later.",
        retry_after=min(max(math.ceil(wait_s), 1), _LONGEST_RETRY),
    )


class Ticket:
    """The admitted tokens of one request; released once."""

    def __init__(self, admission: Admission, tokens: int, is_large: bool) -> None:
        self._admission, self._tokens, self._is_large = admission, tokens, is_large
        self._lock = Lock()

    def settle(self, tokens: int) -> None:
        """Replace the estimate by what it is."""
        with self._lock:
            self._admission.change(tokens - self._tokens, self._is_large)
            self._tokens = tokens

    def release(self) -> None:
        """Count out; again and again without effect."""
        with self._lock:
            self._admission.change(-self._tokens, self._is_large)
            self._tokens = 0
