"""Reading the fields of a JSON body strictly: a wrong type, an unknown name or a value out of range is refused by name.

A field that is null counts as left out.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from blockrank.serve.refusals import Refusal, invalid

_MOST_SHOWN = 80  # characters
_WHOLE = re.compile(r"[+-]?[0-9]{1,15}(?:\.0{1,15})?")
_FLAGS: dict[object, bool] = {
    True: True,
    False: False,
    "true": True,
    "false": False,
    "1": True,
    "0": False,
}  # 1 is True
# Names of a field in other interfaces.
_OTHER_NAMES = {
    "top_k": ("top_n",), "top_n": ("top_k",), "topn": ("top_n", "top_k"), "k": ("top_n", "top_k"),
    "n": ("top_n", "top_k"), "limit": ("top_n", "top_k"), "passages": ("documents", "texts"),
    "docs": ("documents", "texts"), "candidates": ("documents", "texts"), "texts": ("documents",),
    "documents": ("texts", "text_2"), "q": ("query",), "query": ("text_1",),
    "return_docs": ("return_documents", "return_text"), "explain": ("evidence",),
    "truncate": ("truncation",), "truncation": ("truncate",),
}  # fmt: skip


def kind_of(value: object) -> str:
    """The JSON type of a value."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


class Fields:
    """The fields of one body, or of an object in it; then `within` is its name with a dot at the end.

    known: the names that the dialect has. ignored: names that cannot change a ranking, and why; they are reported in
    `notes`. Any other name is refused at once. Unambiguous values are converted: `"true"`, `2.0`, `"2"`.
    """

    def __init__(
        self,
        body: Mapping[str, Any],
        known: Collection[str],
        ignored: Mapping[str, str] = MappingProxyType({}),
        *,
        within: str = "",
    ) -> None:
        self._values = {name: value for name, value in body.items() if value is not None}
        self._within = within
        self.notes: list[str] = []
        for name in self._values:
            if name not in known and name not in ignored:
                sentence = f"unknown field {shown(within + name)}{_suggestion(name, known)}"
                raise invalid(sentence, shortened(within + name), "field")
            if name not in known:
                self.notes.append(f"{name} changes nothing: {ignored[name]}.")

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def value(self, name: str) -> Any:
        """The value as it came, None where it was left out."""
        return self._values.get(name)

    def text(self, name: str) -> str | None:
        """A string. Raises `Refusal` for anything else, and for invalid Unicode."""
        value = self._values.get(name)
        return None if value is None else check_text(value, self._within + name)

    def integer(self, name: str, least: int) -> int | None:
        """A whole number from `least` on."""
        value = self._values.get(name)
        if value is None:
            return None
        found = _whole(value)
        if found is None:
            raise self._wrong(name, "a whole number", value)
        if found < least:
            raise self._wrong(name, f"at least {least}", value)
        return found

    def number(self, name: str, least: float, most: float) -> float | None:
        """A number in [least, most]."""
        value = self._values.get(name)
        if value is None:
            return None
        if type(value) not in (int, float) or not least <= value <= most:
            raise self._wrong(name, f"a number from {least:g} to {most:g}", value)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        value = self._values.get(name, default)
        # 1 and 0 are keys too: they equal True and False
        found = _FLAGS.get(value.strip().lower() if isinstance(value, str) else value) if _is_scalar(value) else None
        if found is None:
            raise self._wrong(name, "true or false", value)
        return found

    def must_be(self, name: str, allowed: Collection[Any], why: str) -> None:
        """Refuse a value that this server cannot honour."""
        value = self._values.get(name)
        if value is not None and value not in allowed:
            raise invalid(f"{name} {shown(value)} is not supported: {why}.", name)

    def _wrong(self, name: str, wanted: str, value: object) -> Refusal:
        name = self._within + name
        return invalid(f"{name} must be {wanted}, not {in_json(value)}.", name)


def shown(value: object) -> str:
    """A caller's value for an error message: as Python writes it, shortened. The time it takes is bounded too."""
    return shortened(repr(value[: _MOST_SHOWN + 1]) if isinstance(value, str) else reprlib.repr(value))


def shortened(text: str) -> str:
    """The beginning of a text that may be long."""
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def in_json(value: object) -> str:
    """A value of the wrong type for an error message: a scalar itself, else its JSON type."""
    if isinstance(value, bool):
        return str(value).lower()
    return shown(value) if _is_scalar(value) else kind_of(value)


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | int | float)


def _whole(value: object) -> int | None:
    """A value as an integer, None if it is not one."""
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    return None


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
    if len(name) > _MOST_SHOWN:  # longer names are no misspelling, and comparing takes quadratic time
        return "."
    close = [*_OTHER_NAMES.get(name.lower(), ()), *difflib.get_close_matches(name, known, n=1)]
    found = next((item for item in close if item in known), None)
    return f": did you mean {found!r}?" if found else f"; known are {', '.join(sorted(known))}."
