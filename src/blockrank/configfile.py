"""Objects of JSON, files of settings in JSON or TOML, and their values checked against annotated dataclasses.

What is wrong is one sentence; of a file it begins with the file, and with its line where that is known.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from blockrank.errors import InputError, listed

_LONG_KEY = re.compile(r"\b(?:[\w-]+\s*\.\s*){100}")
_UNIONS = (UnionType, Union)  # what `|` makes of classes, and with `Literal`


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `InputError` where the file cannot be read or is not UTF-8, and as
    `json_object`."""
    return json_object(_text(path), file=path)


def json_object(text: str, *, file: str | Path | None = None) -> dict[str, Any]:
    """The object that a text in JSON holds.

    Raises `InputError` where it is no JSON, nested too deeply, no object, or names a key twice; the sentence begins
    with the file, and with its line where that is known, if a file is given.
    """
    place = "" if file is None else f"{file}: "
    try:
        value = json.loads(text, object_pairs_hook=distinct)
    except json.JSONDecodeError as error:
        place = "" if file is None else f"{file}:{error.lineno}: "
        raise InputError(f"{place}not valid JSON: {error.msg} at column {error.colno}.") from None
    except RecursionError:
        raise InputError(f"{place}not valid JSON: nested too deeply.") from None
    except InputError as error:
        raise InputError(f"{place}{error}") from None
    except ValueError:  # an integer of thousands of digits
        raise InputError(f"{place}not valid JSON: a number has too many digits.") from None
    if not isinstance(value, dict):
        raise InputError(f"{place}a JSON object is needed, not {_called(value)}.")
    return value


def read_toml(path: str | Path) -> dict[str, Any]:
    """The table in a TOML file. Raises `InputError` as `read_json`."""
    text = _text(path)
    if (found := _LONG_KEY.search(text)) is not None:  # the parser's time and memory would grow with the square
        line = text.count("\n", 0, found.start()) + 1
        raise InputError(f"{path}:{line}: not valid TOML: nested too deeply.")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}.") from None
    except RecursionError:
        raise InputError(f"{path} is not valid TOML: nested too deeply.") from None
    except ValueError:
        raise InputError(f"{path} is not valid TOML: a number has too many digits.") from None


def _text(path: str | Path) -> str:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not valid UTF-8.") from None


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of a key that is there twice readers keep the one or the other."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise InputError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice.")
    return found


def build(kind: Any, raw: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a mapping, nested ones too. Raises `InputError` that begins with `where`: an unknown key, one
    that is missing, or a value of another type."""
    known = {item.name: item for item in fields(kind)}
    if unknown := sorted(set(raw) - set(known)):
        raise InputError(f"{where}: unknown key {unknown[0]!r}; there are {sorted(known)}.")
    if missing := [name for name, item in known.items() if _is_needed(item) and name not in raw]:
        raise InputError(f"{where}: {listed([*map(repr, missing)])} {'is' if len(missing) == 1 else 'are'} missing.")
    hints, values = _hints(kind), {}
    for name, value in raw.items():
        table = _table(hints[name])
        if table is not None and isinstance(value, dict):
            value = build(table, value, f"{where} [{name}]")
        values[name] = checked(hints[name], value, f"{where}: {name}")
    return kind(**values)


def _is_needed(item: Field[Any]) -> bool:
    return item.init and item.default is MISSING and item.default_factory is MISSING


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _table(hint: Any) -> Any:
    """The dataclass of an annotation, None where it has none."""
    return next((item for item in (hint, *get_args(hint)) if is_dataclass(item)), None)


def checked(hint: Any, value: Any, name: str) -> Any:
    """The value, sequences as tuples and numbers as Python's own, if it is of the annotated type.

    An integer is a float too; a truth value is no number, and what is not finite is none either. Raises `InputError`
    with `name`.
    """
    found = _plain(value)
    if not _fits(hint, found):
        raise InputError(f"{name} must be {_words(hint)}, not {value!r}.")
    return found


def parsed(hint: Any, text: str, name: str) -> Any:
    """A value written as text, of the annotated type: in JSON, a list without its brackets too, else the text itself.

    Raises `InputError` as `checked`.
    """
    for written in (text, f"[{text}]"):
        try:
            value = _plain(json.loads(written))
        except (ValueError, RecursionError):
            continue
        if _fits(hint, value):
            return value
    return checked(hint, text, name)


def check_fields(instance: Any, called: Callable[[str], str] | None = None) -> None:
    """Bring every field of a frozen dataclass into the form of `checked`; an `InputError` names class and field, or
    the field as `called` does."""
    kind: Any = type(instance)
    hints = _hints(kind)
    for name in (item.name for item in fields(kind)):
        value = checked(hints[name], getattr(instance, name), called(name) if called else f"{kind.__name__}.{name}")
        object.__setattr__(instance, name, value)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Integral):  # such as numpy's
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _fits(hint: Any, value: Any) -> bool:
    kind, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if kind in _UNIONS:
        return any(_fits(item, value) for item in arguments)
    if kind is Literal:
        return any(type(value) is type(item) and value == item for item in arguments)
    if kind is tuple:
        return isinstance(value, tuple) and _fit_all(arguments, value)
    if kind is list:
        return isinstance(value, tuple) and _fit_all((*arguments, ...), value)
    if kind is dict:
        return isinstance(value, dict) and all(_fits(arguments[1], item) for item in value.values())
    if isinstance(hint, type) and issubclass(hint, Enum):  # written by its name
        return isinstance(value, str)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint)


def _fit_all(hints: Sequence[Any], values: Sequence[Any]) -> bool:
    """Whether each value is of its annotation; one before an ellipsis counts for all."""
    if hints[1:] == (...,):
        return all(_fits(hints[0], value) for value in values)
    return len(hints) == len(values) and all(map(_fits, hints, values))


def _words(hint: Any) -> str:
    """The type as a message calls it."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind in _UNIONS:
        return " or ".join(dict.fromkeys(_words(item) for item in arguments if item is not type(None)))
    if kind is Literal:
        return repr(arguments[0]) if len(arguments) == 1 else f"one of {arguments}"
    if kind in (tuple, list):
        if kind is list or arguments[1:] == (...,):
            return f"a list of which each is {_words(arguments[0])}"
        return f"a list of {' and '.join(map(_words, arguments))}"
    if kind is dict:
        return "a table" if arguments[1] is Any else f"a table of which each value is {_words(arguments[1])}"
    names = {str: "a string", int: "an integer", float: "a finite number", bool: "true or false", dict: "a table"}
    if is_dataclass(hint):
        return "a table"
    of_python = isinstance(hint, type) and not issubclass(hint, Enum)  # enumerations are written by their names
    return names.get(hint, f"a {hint.__name__}" if of_python else "a string")


def _called(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
