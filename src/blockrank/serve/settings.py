"""What a server is told before it starts; nothing of it can be changed by a request."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from blockrank.types import InputError

# Routes that answer without the key, word for word: probes of orchestrators and load balancers carry none.
OPEN_PATHS = frozenset({"/livez", "/readyz"})


@dataclass(frozen=True)
class ServeSettings:
    """Limits and options of a server.

    served_name, aliases: what the `model` field of a request may say.
    keys: bearer keys, any of which opens every route; none leaves the server open.
    page: whether the web page is served, to everyone, since a browser's first request carries no key; None serves it
        where there are no keys.
    max_body_bytes, max_documents, max_document_chars, max_query_chars: what a request may bring.
    max_bytes: bodies in the server at once, arriving, waiting and running; one body alone is under its own limit.
    max_requests: requests in the server at once, waiting and running.
    max_queue_tokens: tokens in the server at once, waiting and running; None is sixteen batches. A request that finds
        the server empty is let in whatever its size.
    batch_tokens: tokens of the requests packed into one forward; None chooses by device. A larger request has a forward
        of its own, or several where its documents can be encoded piece by piece.
    batching: whether requests share a forward at all.
    cache_bytes: memory for the keys of documents, a device; 0 keeps none.
    timeout_s: longest time from a request's arrival to its answer; a request may ask for less.
    body_timeout_s: longest time that a body may take to arrive.
    drain_s: longest time that requests under way are waited for at the end.
    ready_s: how old the last forward may be for a device to count as ready; idle devices run a small one in time.
    stall_s: how long a forward may run before its device counts as stalled.
    """

    served_name: str = "blockrank/mini"
    aliases: tuple[str, ...] = ()
    keys: tuple[str, ...] = field(default=(), repr=False)
    page: bool | None = None
    max_body_bytes: int = 16 << 20
    max_documents: int = 1000
    max_document_chars: int = 200_000
    max_query_chars: int = 20_000
    max_bytes: int = 256 << 20
    max_requests: int = 1024
    max_queue_tokens: int | None = None
    batch_tokens: int | None = None
    batching: bool = True
    cache_bytes: int = 256 << 20
    timeout_s: float = 60.0
    body_timeout_s: float = 30.0
    drain_s: float = 30.0
    ready_s: float = 30.0
    stall_s: float = 120.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "cache_bytes":
                if not 0 <= value < math.inf:
                    raise InputError(f"cache_bytes must not be negative, nor without end, and is {value}.")
            elif type(value) in (int, float) and not 0 < value < math.inf:
                raise InputError(f"{item.name} must be positive and finite, not {value}.")
        if not self.served_name.strip() or not all(alias.strip() for alias in self.aliases):
            raise InputError("served_name and aliases must not be empty.")
        if any(not key.strip() or not key.isascii() or key != key.strip() for key in self.keys):
            raise InputError("a key must be ASCII text without white space around it.")

    @property
    def has_page(self) -> bool:
        """Whether the web page is served."""
        return not self.keys if self.page is None else self.page

    @property
    def model_names(self) -> frozenset[str]:
        """What a request may call the model."""
        return frozenset({self.served_name, *self.aliases})
