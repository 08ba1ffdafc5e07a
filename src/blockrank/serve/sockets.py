"""The socket that a server listens on."""

from __future__ import annotations

import os
import socket

from blockrank.types import BlockrankError

BACKLOG = 2048  # connections that the system queues (backlog)


class ServerError(BlockrankError):
    """The server could not start, or stopped because it could not serve any more."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises `ServerError` where that is not possible."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With an explicit protocol: only for such sockets does asyncio disable Nagle's algorithm, which delays an
        # answer's body by up to 40 ms, until its head is acknowledged.
        listener = socket.socket(family, kind, socket.IPPROTO_TCP)
    except OSError as error:
        raise _cannot_listen(host, port, error) from None
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from None
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> ServerError:
    return ServerError(f"cannot listen on {host}, port {port}: {error.strerror or error}.")
