"""Named classes with settings, made from a text: `name`, or `name:key=value,key=value`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from importlib.metadata import entry_points
from inspect import isabstract
from typing import Any, Generic, TypeVar, get_type_hints

from blockrank.configfile import parsed
from blockrank.errors import InputError

Made = TypeVar("Made")
_NAME = re.compile(r"[A-Za-z][\w.-]*")
_COMMA = re.compile(r",(?=\s*\w+\s*=)")  # one before the next key; others belong to a value


class Registry(Generic[Made]):
    """Classes of one base, by the names that they have as `name`; the fields of a dataclass are its settings.

    noun: what messages call one. group: entry points of installed packages under which further classes are found.
    passed: first fields, which a caller passes and a text cannot name.
    """

    def __init__(self, noun: str, base: type[Made], group: str, passed: tuple[str, ...] = ()) -> None:
        self._noun, self._base, self._group, self._passed = noun, base, group, passed
        self._kinds: dict[str, type[Made]] = {}

    def add(self, kind: type[Made]) -> type[Made]:
        """Enter a class, and return it: also for use as a decorator. Raises `InputError` where it lacks something, or
        another class has its name."""
        if not (isinstance(kind, type) and issubclass(kind, self._base)) or isabstract(kind):
            raise InputError(
                f"a {self._noun} is a class under {self._base.__name__} with all it asks for, not {kind!r}."
            )
        name = getattr(kind, "name", None)
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise InputError(
                f"the {self._noun} {kind.__qualname__} needs a name of letters, digits and -_., not {name!r}."
            )
        if (other := self._kinds.get(name)) is not None and _place(other) != _place(kind):
            raise InputError(f"the name {name!r} is that of the {self._noun} {_place(other)} already.")
        self._kinds[name] = kind
        return kind

    @property
    def names(self) -> list[str]:
        """All names there are, those of installed packages too."""
        return sorted({*self._kinds, *entry_points(group=self._group).names})

    def recipe(self, text: str) -> Callable[..., Made]:
        """What makes the one that a text asks for, its settings checked.

        Raises `InputError` on an unknown name or key, and on a value that is not of the annotated type.
        """
        name, colon, rest = text.partition(":")
        kind = self._find(name.strip())
        return partial(kind, **(self._settings(kind, name.strip(), rest) if colon else {}))

    def make(self, given: object, *passed: object) -> Made:
        """The one that a text asks for, or one that is made already. Raises `InputError` as `recipe`."""
        if isinstance(given, str):
            return self.recipe(given)(*passed)
        if isinstance(given, self._base) and not passed:
            return given
        raise InputError(f"a {self._noun} is one of {self.names}, or made already, not {given!r}.")

    def _find(self, name: str) -> type[Made]:
        if name in self._kinds:
            return self._kinds[name]
        for entry in entry_points(group=self._group, name=name):
            try:
                return self.add(entry.load())
            except Exception as error:  # whatever a package does when it is imported
                raise InputError(f"{self._noun} {name!r} ({entry.value}) cannot be loaded: {error}") from error
        raise InputError(f"{self._noun} {name!r} is unknown; there are {self.names}.")

    def _settings(self, kind: type[Made], name: str, text: str) -> dict[str, Any]:
        """Keys and values of a text, as the annotations of a class say."""
        where = f"{self._noun} {name!r}"
        known = [item.name for item in fields(kind) if item.init] if is_dataclass(kind) else []
        known = [key for key in known if key not in self._passed]
        hints, found = get_type_hints(kind), dict[str, Any]()
        for part in _COMMA.split(text):
            key, is_pair, value = part.partition("=")
            key = key.strip()
            if not is_pair:
                raise InputError(f"{where}: settings are key=value, not {part.strip()!r}; {_listing(known)}.")
            if key not in known:
                raise InputError(f"{where}: unknown key {key!r}; {_listing(known)}.")
            if key in found:
                raise InputError(f"{where}: the key {key!r} is there twice.")
            found[key] = parsed(hints[key], value, f"{where}: {key}")
        return found


def _listing(keys: list[str]) -> str:
    return f"there are {sorted(keys)}" if keys else "it has no settings"


def _place(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
