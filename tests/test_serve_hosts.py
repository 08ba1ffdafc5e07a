"""Which Host and Origin a server answers: no web page of others uses it through somebody's browser."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import BODY, Running, running
from starlette.datastructures import Headers

from blockrank import Ranker
from blockrank.serve.hosts import HostCheck, name_of
from blockrank.serve.refusals import Refusal
from blockrank.serve.settings import ServeSettings

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def server(mini: Ranker) -> Iterator[Running]:
    with running(mini, ServeSettings(allowed_hosts=("rank.example.org", "*.example.net"))) as found:
        yield found


@pytest.fixture(scope="module")
def plain(mini: Ranker) -> Iterator[Running]:
    with running(mini) as found:
        yield found


def asked(server: Running, method: str, path: str, headers: dict[str, str], body: Any = None) -> tuple[int, str]:
    """A request with these headers and no others; `PORT` in one is that of the server."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value.replace("PORT", str(server.port)))
        content = b"" if body is None else json.dumps(body).encode()
        connection.putheader("content-length", str(len(content)))
        connection.endheaders(content)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:PORT", 200), ("localhost:PORT", 200), ("[::1]:PORT", 200), ("LOCALHOST", 200), ("localhost.", 200),
        ("127.0.0.2", 200), ("app.localhost", 200),
        ("evil.example", 421), ("evil.example:PORT", 421), ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("evillocalhost", 421), ("10.0.0.7", 421), ("127.0.0.1@evil.example", 421), ("evil.example#127.0.0.1", 421),
        ("localhost:x", 421), ("", 421),
    ],
)  # fmt: skip
def test_a_server_on_loopback_has_the_names_of_loopback(plain: Running, host: str, status: int) -> None:
    """DNS rebinding: a page's own name that points at this machine shows in Host. Every route but probes refuses it."""
    for method, path in (("GET", "/"), ("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/v1/rerank")):
        found, text = asked(plain, method, path, {"host": host, **JSON}, BODY if method == "POST" else None)
        assert found == status, text
        assert status == 200 or "--allowed-host" in text
    for path in ("/livez", "/readyz"):
        assert asked(plain, "GET", path, {"host": host})[0] == 200


def test_names_that_are_allowed(server: Running) -> None:
    for host in ("rank.example.org", "RANK.example.org:443", "a.example.net", "a.b.example.net", "localhost"):
        assert asked(server, "POST", "/v2/rerank", {"host": host, **JSON}, BODY)[0] == 200, host
    for host in ("example.net", "evilexample.net", "rank.example.org.evil.example", "x.rank.example.org"):
        assert asked(server, "POST", "/v2/rerank", {"host": host, **JSON}, BODY)[0] == 421, host
    page = {"origin": "https://rank.example.org", "host": "127.0.0.1:PORT", "sec-fetch-site": "cross-site"}
    assert asked(server, "POST", "/v1/rerank", {**page, **JSON}, BODY)[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # no browser
        ({"origin": "http://127.0.0.1:PORT"}, 200),
        ({"origin": "http://127.0.0.1:PORT", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "https://rank.example.org", "sec-fetch-site": "same-origin"}, 200),  # behind a proxy
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "https://evil.example", "content-type": "text/plain"}, 403),  # simple: no preflight
        ({"origin": "https://evil.example", "content-type": "application/x-www-form-urlencoded"}, 403),
        ({"sec-fetch-site": "cross-site", "content-type": "text/plain"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[127.0.0.1:PORT"}, 403),
        ({"origin": ""}, 403),
    ],
)
def test_a_page_of_another_origin_is_refused(plain: Running, headers: dict[str, str], status: int) -> None:
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        found, text = asked(plain, "POST", path, {"host": "127.0.0.1:PORT", **JSON, **headers}, BODY)
        assert found == status, text
    assert asked(plain, "GET", "/v1/models", {"host": "127.0.0.1:PORT", **headers})[0] == 200


def test_a_form_as_curl_sends_it_is_answered(plain: Running) -> None:
    """The examples of the documentation send no content type of JSON, and no Origin."""
    form = {"host": "localhost:PORT", "content-type": "application/x-www-form-urlencoded", "user-agent": "curl/8"}
    assert asked(plain, "POST", "/v1/rerank", form, BODY)[0] == 200


def refused(chosen: ServeSettings, headers: dict[str, str], server: str = "10.0.0.7", method: str = "POST") -> int:
    scope = {"type": "http", "method": method, "server": (server, 8100)}
    try:
        HostCheck(chosen)(scope, Headers(headers))
    except Refusal as refusal:
        return refusal.status
    return 0


def test_what_is_bound_to_other_addresses_may_have_any_name() -> None:
    """Its names are its network's business, and with keys nothing is checked; foreign pages are refused without."""
    open_, guarded = ServeSettings(bound_host="0.0.0.0"), ServeSettings(bound_host="0.0.0.0", keys=("k",))
    for host in ("blockrank.default.svc.cluster.local", "10.1.2.3:8100", "rank.example.org", "server:8100"):
        for chosen in (open_, guarded):
            assert refused(chosen, {"host": host}) == 0
            assert refused(chosen, {"host": host}, server="127.0.0.1") == 0, "a proxy beside it"
    assert refused(open_, {"host": "10.1.2.3", "origin": "https://evil.example"}) == 403
    assert refused(guarded, {"host": "10.1.2.3", "origin": "https://evil.example"}) == 0
    named = ServeSettings(bound_host="0.0.0.0", keys=("k",), allowed_hosts=("rank.example.org",))
    found = [refused(named, {"host": host}) for host in ("rank.example.org", "10.1.2.3", "localhost", "evil.example")]
    assert found == [0, 0, 0, 421]


def test_the_check_can_be_off() -> None:
    for host in ("127.0.0.1", "0.0.0.0"):
        anything = ServeSettings(bound_host=host, allowed_hosts=("*",))
        assert refused(anything, {"host": "evil.example", "origin": "https://evil.example"}) == 0
    assert refused(ServeSettings(bound_host="127.0.0.1"), {}) == 0, "HTTP/1.0 without Host: no browser"
    assert refused(ServeSettings(bound_host="127.0.0.1"), {"host": "evil.example"}, server="127.0.0.1") == 421
    assert refused(ServeSettings(bound_host="MyBox"), {"host": "mybox:8100"}, server="127.0.1.1") == 0


@settings(max_examples=60)
@given(st.text(max_size=40))
def test_a_name_is_read_from_any_text(text: str) -> None:
    """Nothing that a header may hold makes the check fail, and nothing but loopback's names passes on loopback."""
    try:
        headers = {"host": text, "origin": f"http://{text}"}
        status = refused(ServeSettings(), headers, server="127.0.0.1")
    except UnicodeEncodeError:  # no header
        return
    name = name_of(text)
    assert status in (0, 421)
    if status == 0:
        assert name is not None
        assert name == "localhost" or name.endswith(".localhost") or name == "::1" or name.startswith("127.")
