"""From the bytes of a body to the JSON object in it, with a bound on the work that a body can cause.

Python's parser holds the GIL until it ends; it is fast on long texts and slow on many small values. So the values are
counted first, by operations on bytes that take milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from itertools import accumulate
from threading import Lock
from typing import Any, NoReturn

from blockrank.serve.fields import kind_of, shown
from blockrank.serve.refusals import Refusal, invalid

# Takes 0.1 s at most. A thousand documents with id, title and text are 7,000.
MOST_VALUES = 250_000
_DEEPEST = 32  # arrays and objects in each other
_LONGEST_NAME = 256  # characters
_LONGEST_NUMBER = 100
_LARGE_BYTES = 1 << 16
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NO_BRACKETS = bytes(set(range(256)) - _STEPS.keys())
_large_turn = Lock()  # large bodies are parsed one at a time, so that other threads run in between


def read_json(body: bytes) -> dict[str, Any]:
    """The object that a body holds.

    Raises `Refusal` where it is no JSON, or no object; where it is nested too deeply or holds too many values; and for
    ambiguous JSON: a name that occurs twice in an object, is empty, is invalid Unicode or is too long, and numbers out
    of range.
    """
    objects = _Objects()
    try:
        with _large_turn if len(body) > _LARGE_BYTES else contextlib.nullcontext():
            encoding = json.detect_encoding(body)
            text = body.decode(encoding)
            _check_structure(body if encoding.startswith("utf-8") else text.encode())
            found = json.loads(
                text, object_pairs_hook=objects, parse_constant=_no_number, parse_int=_whole, parse_float=_real
            )
    except (ValueError, RecursionError) as error:  # also what is no Unicode
        raise Refusal(400, "json", f"the body is not valid JSON: {_reason(error)}.") from None
    if not isinstance(found, dict):
        raise Refusal(400, "json", f"the body must be a JSON object, not {kind_of(found)}.")
    objects.check(found)
    return found


def _check_structure(body: bytes) -> None:
    """Raise `Refusal` where a body holds too many values or nests them too deeply, from its marks outside strings."""
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    count = bare.count(b'"') // 2
    if count <= MOST_VALUES:
        outside = b"".join(bare.split(b'"')[::2])
        opened = outside.count(b"[") + outside.count(b"{")
        count = opened + outside.count(b",") + outside.count(b":")
    if count > MOST_VALUES:
        raise invalid(f"the body holds about {count} names and values and the limit is {MOST_VALUES}.", cause="limit")
    if outside.count(b"]") + outside.count(b"}") <= opened:  # else it is no JSON
        steps = map(_STEPS.__getitem__, outside.translate(None, _NO_BRACKETS))
        if (depth := max(accumulate(steps), default=0)) > _DEEPEST:
            sentence = f"the body is nested too deeply: {depth} levels, and the limit is {_DEEPEST}."
            raise Refusal(400, "json", sentence)


class _Objects:
    """Builds objects from names and values, and remembers the first one with invalid names."""

    def __init__(self) -> None:
        self._fault: tuple[dict[str, Any], str, str | None] | None = None

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """One object."""
        made = dict(pairs)
        if self._fault is None and (len(made) < len(pairs) or not all(map(_is_name, made))):
            self._fault = made, *_fault_of([name for name, _ in pairs])
        return made

    def check(self, found: Mapping[str, Any]) -> None:
        """Raise `Refusal` for the object with invalid names, naming its place in the parsed body."""
        if self._fault is not None:
            culprit, sentence, name = self._fault
            raise invalid(f"{_place(found, culprit)} {sentence}", name, "field")


def _is_name(name: str) -> bool:
    return 0 < len(name) <= _LONGEST_NAME and (name.isascii() or not _surrogates(name))


def _surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _fault_of(names: Iterable[str]) -> tuple[str, str | None]:
    """What is wrong with the names of an object, and which name it is."""
    seen = set[str]()
    for name in names:
        if not name:
            return "has a field without a name.", None
        if len(name) > _LONGEST_NAME:
            return f"has a field name of {len(name)} characters and the limit is {_LONGEST_NAME}.", None
        if _surrogates(name):
            return f"has the field name {shown(name)}, which is not valid Unicode text.", None
        if name in seen:
            return f"has the field {shown(name)} twice: it is not clear which of them counts.", name
        seen.add(name)
    raise AssertionError("one of them will not do")


def _place(found: Mapping[str, Any], culprit: object) -> str:
    """Path of an object in a body: the field, and the index in its list."""
    for name, value in found.items():
        if _holds(value, culprit):
            place = shown(name)[1:-1]
            if isinstance(value, list):
                return f"{place}[{next(i for i, item in enumerate(value) if _holds(item, culprit))}]"
            return place
    return "the body"


def _holds(value: object, culprit: object) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is culprit or any(_holds(item, culprit) for item in inside)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _whole(digits: str) -> int:
    return int(_bounded(digits))


def _real(digits: str) -> float:
    if math.isinf(found := float(_bounded(digits))):
        raise invalid(f"the body has the number {digits}, which is out of range.")
    return found


def _bounded(digits: str) -> str:
    if len(digits) > _LONGEST_NUMBER:
        raise invalid(
            f"the body has a number of {len(digits)} characters and the limit is {_LONGEST_NUMBER}.", cause="limit"
        )
    return digits


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
