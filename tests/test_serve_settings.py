"""Settings of a server: numbers that are numbers, keys and the file they come from."""

from __future__ import annotations

import math
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from blockrank import InputError
from blockrank.cli import app
from blockrank.cli.serve import read_keys
from blockrank.serve.hosts import is_loopback
from blockrank.serve.keys import keys_in
from blockrank.serve.settings import ServeSettings

NUMBERS = [
    item.name for item in fields(ServeSettings) if isinstance(item.default, int | float) and item.default is not True
]
WHOLE = [name for name in NUMBERS if isinstance(getattr(ServeSettings(), name), int)] + [
    "batch_tokens",
    "max_queue_tokens",
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, True, "1", [1]])
def test_a_number_is_finite_and_positive(value: Any) -> None:
    for name in {*NUMBERS, *WHOLE}:
        with pytest.raises(InputError, match=f"^{name} must be |^{name} must not be negative"):
            ServeSettings(**{name: value})
    for name in WHOLE:
        with pytest.raises(InputError, match=f"^{name} must be a whole number, not 1.5"):
            ServeSettings(**{name: 1.5})


def test_zero_is_a_cache_and_nothing_else() -> None:
    assert ServeSettings(cache_bytes=0).cache_bytes == 0
    for name in {*NUMBERS} - {"cache_bytes"}:
        with pytest.raises(InputError, match=f"^{name} must be positive, and is 0"):
            ServeSettings(**{name: 0})


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999"])
@pytest.mark.parametrize(
    "command",
    [
        ["serve", "--max-body-mib"], ["serve", "--cache-mib"], ["serve", "--timeout"], ["serve", "--drain"],
        ["serve", "--write-timeout"], ["eval", "no-such-folder", "--reuse-memory"], ["bench", "--ragged"],
    ],
)  # fmt: skip
def test_options_are_finite(command: list[str], value: str) -> None:
    found = CliRunner().invoke(app, [*command, value], env={"COLUMNS": "200"})
    assert found.exit_code == 2, found.output
    assert command[-1] in found.stderr


@pytest.mark.parametrize(
    "name",
    [
        "http://a.org",
        "a.org:80",
        "cafe:8080",
        "a.org/x",
        "",
        " ",
        "a b",
        "*.",
        "*x.org",
        "a.*",
        "m\u00fcller.de",
        "[::1]",
    ],
)
def test_an_allowed_host_is_a_name(name: str) -> None:
    """One that no Host can equal would let nobody in, in silence."""
    with pytest.raises(InputError, match="an allowed host is a name"):
        ServeSettings(allowed_hosts=("a.org", name))
    found = CliRunner().invoke(app, ["serve", "--allowed-host", name])
    assert (found.exit_code, found.stderr.count("\n")) == (1, 1)


def test_allowed_hosts() -> None:
    names = ("*", "a", "a.org", "*.a.org", "10.0.0.1", "::1", "fe80::1", "xn--mller-kva.de", "my_host")
    assert ServeSettings(allowed_hosts=names).allowed_hosts == names
    assert is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("::ffff:10.0.0.1")


# Keys


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no key"), (b"\n \n\t\n", "holds no key"), ("schl\u00fcssel".encode("latin-1"), "is no UTF-8 text"),
        ("secret".encode("utf-16"), "is no UTF-8 text"), (b"good\n\nschl\xc3\xbcssel\n", ":3 is no key"),
        (b"a\0b\n", ":1 is no key"), (b"x" * (2 << 20), "is larger than"), (b"\xef\xbb\xbf\n", "holds no key"),
    ],
)  # fmt: skip
def test_a_key_file_that_holds_no_keys(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(InputError, match=told) as caught:
        keys_in(path)
    assert str(path) in str(caught.value)
    assert "schl" not in str(caught.value), "a key is never shown"
    found = CliRunner().invoke(app, ["serve", "--key-file", str(path)])
    assert (found.exit_code, found.stderr.count("\n"), "Traceback" in found.stderr) == (1, 1, False)


def test_a_key_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file"), (tmp_path / "keys" / "x", "")):
        with pytest.raises(InputError, match=f"the key file .* cannot be read: {why}"):
            keys_in(path)
    closed = tmp_path / "closed"
    closed.write_text("k")
    closed.chmod(0)
    if not os.access(closed, os.R_OK):
        with pytest.raises(InputError, match="Permission denied"):
            keys_in(closed)


def test_keys_as_editors_write_them(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"\xef\xbb\xbfone\r\n two three \r\n\r\n")
    assert read_keys(path, {}) == ("one", "two three")
    with pytest.raises(InputError, match="BLOCKRANK_API_KEY is no key"):
        read_keys(None, {"BLOCKRANK_API_KEY": "schl\u00fcssel"})
    with pytest.raises(InputError, match="printable ASCII"):
        ServeSettings(keys=("a\nb",))
