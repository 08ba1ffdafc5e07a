"""API keys of a server: their form, and reading a file of them."""

from __future__ import annotations

from pathlib import Path

from blockrank.types import InputError

_MOST_BYTES = 1 << 20
NO_KEY = "a key is printable ASCII text without white space around it"


def is_key(text: str) -> bool:
    """Whether a text can be sent in a header as a key."""
    return bool(text) and text.isascii() and text.isprintable() and text == text.strip()


def keys_in(path: Path) -> tuple[str, ...]:
    """The keys in a file, one per line; empty lines do not count.

    Raises `InputError` where it cannot be read, is no text or holds no key, and names a line that cannot be sent in a
    header. No message contains a key.
    """
    lines = [line.strip() for line in _text(path).splitlines()]
    for number, line in enumerate(lines, 1):
        if line and not is_key(line):
            raise InputError(f"{path}:{number} is no key: {NO_KEY}.")
    if not any(lines):
        raise InputError(f"{path} holds no key.")
    return tuple(line for line in lines if line)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            found = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"the key file {path} cannot be read: {error.strerror}.") from None
    if len(found) > _MOST_BYTES:
        raise InputError(f"the key file {path} is larger than {_MOST_BYTES} bytes.")
    try:
        return found.decode("utf-8-sig")  # some editors write a byte order mark at the beginning
    except UnicodeDecodeError:
        raise InputError(f"the key file {path} is no UTF-8 text.") from None
