"""Checks of Host and Origin, so that no foreign web page uses a server through a visitor's browser.

A page can send requests to a server on its visitor's own machine (cross-site requests). If it points a domain name of
its own at that machine, it can read the answers too (DNS rebinding). The first is visible in Origin or Sec-Fetch-Site,
which browsers send and pages cannot forge; the second in Host. Clients other than browsers send neither Origin nor
Sec-Fetch-Site. With keys no check is needed: a page does not have one, and a browser adds none by itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from blockrank.serve.refusals import Refusal
from blockrank.serve.settings import ServeSettings

_ANY = "*"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})  # they change nothing, and without CORS no page reads the answer
_OWN_SITES = frozenset({"same-origin", "none"})
_MISDIRECTED = 421


class HostCheck:
    """Refuses requests with another server's Host, or from a page of another origin."""

    def __init__(self, settings: ServeSettings) -> None:
        self._allowed = tuple(name.lower() for name in settings.allowed_hosts)
        self._bound = settings.bound_host
        self.active = _ANY not in self._allowed and bool(self._allowed or not settings.keys)

    def __call__(self, scope: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        """Raise `Refusal` (421, 403) for a request that is not meant for this server, or not by its caller.

        headers: by names in lower case.
        """
        if not self.active:
            return
        host = headers.get("host")
        if host is not None and not self._is_own(name_of(host), scope):
            raise Refusal(
                _MISDIRECTED, "host",
                "the Host of this request is not a name of this server; --allowed-host NAME lets one in.",
            )  # fmt: skip
        if scope["method"] not in _SAFE_METHODS and not self._is_same_origin(headers, host):
            raise Refusal(
                403, "host",
                "a web page of another origin may not use this server; --allowed-host NAME lets one in.",
            )  # fmt: skip

    def _is_own(self, name: str | None, scope: Mapping[str, Any]) -> bool:
        """Whether a name is this server's. On a loopback address the machine's own names are valid; on another address
        any name is, unless `allowed_hosts` is given: then only those and addresses."""
        if name is None:
            return False
        address = self._bound or (scope.get("server") or ("", None))[0]
        if self._allows(name) or name == address.lower() or _is_loopback_name(name):
            return True
        return not is_loopback(address) and (not self._allowed or _is_address(name))

    def _is_same_origin(self, headers: Mapping[str, str], host: str | None) -> bool:
        """Whether a request comes from a page of this server or not from a browser. Sec-Fetch-Site is preferred to
        Origin: behind a proxy that sends another Host, the page's Origin differs from it."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        source = None if origin is None else origin.lower().partition("://")[2]
        if source and self._allows(name_of(source)):
            return True
        if site is not None:
            return site in _OWN_SITES
        return source is None or (host is not None and source == host.lower())

    def _allows(self, name: str | None) -> bool:
        return name is not None and any(
            name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:])) for allowed in self._allowed
        )


def name_of(host: str) -> str | None:
    """The name in a Host, in lower case without port, brackets and a dot at its end; None where there is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises where it is no number
    except ValueError:
        return None
    return parts.hostname.removesuffix(".") if parts.hostname and parts.netloc == host and "@" not in host else None


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        address = ipaddress.ip_address(host)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_loopback_name(name: str) -> bool:
    return is_loopback(name) or name.endswith(".localhost")  # which browsers resolve themselves


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
