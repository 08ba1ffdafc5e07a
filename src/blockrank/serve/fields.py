"""Reading the fields of a JSON body strictly: a wrong type, an unknown name or a value out of range is refused by name.

A field that is null counts as left out.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

from blockrank.serve.refusals import invalid

_MOST_SHOWN = 80  # characters
# What other interfaces call a field.
_OTHER_NAMES = {
    "top_k": "top_n", "topn": "top_n", "k": "top_n", "n": "top_n", "limit": "top_n", "passages": "documents",
    "docs": "documents", "candidates": "documents", "q": "query", "return_text": "return_documents",
    "return_docs": "return_documents", "explain": "evidence",
}  # fmt: skip


def kind_of(value: object) -> str:
    """What a JSON value is, in JSON's words."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


class Fields:
    """The fields of one body. `known`: the names that the dialect has; any other is refused at once."""

    def __init__(self, body: Mapping[str, Any], known: Collection[str]) -> None:
        self._values = {name: value for name, value in body.items() if value is not None}
        for name in self._values:
            if name not in known:
                raise invalid(f"unknown field {shown(name)}{_suggestion(name, known)}", shown(name), "field")

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def value(self, name: str) -> Any:
        """The value as it came, None where it was left out."""
        return self._values.get(name)

    def text(self, name: str) -> str | None:
        """A string. Raises `Refusal` for anything else, and for what is no valid Unicode."""
        value = self._values.get(name)
        return None if value is None else check_text(value, name)

    def integer(self, name: str, least: int) -> int | None:
        """A whole number from `least` on."""
        value = self._values.get(name)
        if value is None:
            return None
        if type(value) is not int:
            raise invalid(f"{name} must be a whole number, not {kind_of(value)}.", name)
        if value < least:
            raise invalid(f"{name} must be at least {least}, not {value}.", name)
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        value = self._values.get(name, default)
        if type(value) is not bool:
            raise invalid(f"{name} must be true or false, not {kind_of(value)}.", name)
        return value

    def must_be(self, name: str, allowed: Collection[Any], why: str) -> None:
        """Refuse a value that this server cannot honour."""
        value = self._values.get(name)
        if value is not None and value not in allowed:
            raise invalid(f"{name} {shown(value)} is not supported: {why}.", name)


def shown(value: object) -> str:
    """A caller's value in a sentence: as Python writes it. Of a long one the beginning is looked at, and no more."""
    text = repr(value[: _MOST_SHOWN + 1]) if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def check_text(value: object, name: str) -> str:
    """A string that is valid Unicode. Raises `Refusal` naming it otherwise."""
    if not isinstance(value, str):
        raise invalid(f"{name} must be a string, not {kind_of(value)}.", name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        at = error.start
        raise invalid(
            f"{name} holds a lone surrogate (U+{ord(value[at]):04X}) at character {at}: it is not valid Unicode text.",
            name,
        ) from None
    return value


def _suggestion(name: str, known: Collection[str]) -> str:
    close = [_OTHER_NAMES.get(name.lower(), ""), *difflib.get_close_matches(name, known, n=1)]
    found = next((item for item in close if item in known), None)
    return f": did you mean {found!r}?" if found else f"; known are {', '.join(sorted(known))}."
