"""Settings of a server, fixed when it starts; no request can change them."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, get_args, get_type_hints

from blockrank.serve.keys import NO_KEY, is_key
from blockrank.types import InputError

# Exact routes that answer without the key: probes of orchestrators and load balancers carry none.
OPEN_PATHS = frozenset({"/livez", "/readyz"})
_HOST = re.compile(r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
CROWDED = "crowded"  # flag in a request's state: its connection is over the limit, and only `OPEN_PATHS` answer


@dataclass(frozen=True)
class ServeSettings:
    """Limits and options of a server.

    served_name, aliases: the values that the `model` field of a request may have.
    keys: bearer keys, each valid for every route; without any the server is open.
    page: whether the web page is served, to everyone, since a browser's first request carries no key; None serves it
        where there are no keys.
    bound_host: the address that the server listens on; None takes it from each connection.
    allowed_hosts: names beside its own that a request's Host and Origin may have (`*.example.org` for all below one);
        `*` checks neither. Without keys both are checked; with keys only where names are given: see `hosts`.
    max_body_bytes, max_documents, max_document_chars, max_query_chars: what a request may bring.
    max_bytes: bodies in the server at once, arriving, waiting and running; one body alone is under its own limit.
    max_requests: requests in the server at once, waiting and running. max_queue_tokens: tokens in the server at once,
    waiting and running; None is sixteen batches. A request that finds
        the server empty is let in whatever its size.
    batch_tokens: tokens of the requests packed into one forward; None chooses by device. A larger request has a forward
        of its own, or several where its documents can be encoded piece by piece.
    batching: whether requests share a forward at all.
    cache_bytes: memory for the keys of documents, a device; 0 keeps none.
    timeout_s: longest time from a request's arrival to its answer; a request may ask for less.
    header_timeout_s: longest time from a connection's beginning, or from the first byte of a later request, to the end
        of the request's header.
    body_timeout_s: longest time that a body may take to arrive.
    idle_timeout_s: longest time between two requests of a connection.
    write_timeout_s: longest time that an answer may stand still because its client does not read on.
    max_connections: connections at once. One more replaces the one that has kept the server waiting longest; if all are
        being served it gets 503, and probes their answer. Fewer where the system allows fewer descriptors.
    max_unsent_bytes: answers that clients have not read yet; over it the connection without progress for longest is
    dropped. drain_s: longest time to wait for requests in progress at shutdown.
    ready_s: how old the last forward may be for a device to count as ready; idle devices run a small one in time.
    stall_s: how long a forward may run before its device counts as stalled.
    """

    served_name: str = "blockrank/mini"
    aliases: tuple[str, ...] = ()
    keys: tuple[str, ...] = field(default=(), repr=False)
    page: bool | None = None
    bound_host: str | None = None
    allowed_hosts: tuple[str, ...] = ()
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
    header_timeout_s: float = 20.0
    body_timeout_s: float = 30.0
    idle_timeout_s: float = 75.0  # longer than clients' pools keep theirs, so that the client closes first
    write_timeout_s: float = 30.0
    max_connections: int = 1000
    max_unsent_bytes: int = 256 << 20
    drain_s: float = 30.0
    ready_s: float = 30.0
    stall_s: float = 120.0

    def __post_init__(self) -> None:
        for item in fields(self):
            _check_number(item.name, getattr(self, item.name))
        if not self.served_name.strip() or not all(alias.strip() for alias in self.aliases):
            raise InputError("served_name and aliases must not be empty.")
        for name in self.allowed_hosts:
            if not (_HOST.fullmatch(name) or _is_ipv6(name)):
                raise InputError(f"an allowed host is a name without scheme and port, *.NAME or *, not {name!r}.")
        if any(not is_key(key) for key in self.keys):
            raise InputError(f"one of the keys is none: {NO_KEY}.")

    @property
    def has_page(self) -> bool:
        """Whether the web page is served."""
        return not self.keys if self.page is None else self.page

    @property
    def model_names(self) -> frozenset[str]:
        """The names that a request may give for the model."""
        return frozenset({self.served_name, *self.aliases})


def _check_number(name: str, value: Any) -> None:
    """Raise `InputError` where a setting that is a number is none, is not finite or not positive."""
    kinds = _number_kinds()
    if name not in kinds or (value is None and type(None) in kinds[name]):
        return
    whole = float not in kinds[name]
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise InputError(f"{name} must be a{' whole' if whole else ''} number, not {value!r}.")
    if not math.isfinite(value):
        raise InputError(f"{name} must be finite, and is {value}.")
    if value < 0 or (value == 0 and name != "cache_bytes"):
        raise InputError(
            f"{name} must {'not be negative' if name == 'cache_bytes' else 'be positive'}, and is {value}."
        )


@cache
def _number_kinds() -> dict[str, tuple[type, ...]]:
    """The settings that are numbers, with what each may be."""
    hints = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(ServeSettings).items()}
    return {name: kinds for name, kinds in hints.items() if {int, float} & {*kinds}}


def _is_ipv6(name: str) -> bool:
    try:
        ipaddress.IPv6Address(name)
    except ValueError:
        return False
    return True
