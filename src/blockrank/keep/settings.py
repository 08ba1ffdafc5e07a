"""The settings file of a folder of results, so that work in it goes on only with the same; and the folder's lock."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from blockrank.configfile import read_json
from blockrank.errors import InputError
from blockrank.keep.files import atomic_file
from blockrank.keep.identity import json_ready

SETTINGS_FILE = "settings.json"
_LOCK_FILE = ".lock"


class Settings:
    """The settings file of a folder: sections of named entries. What is new is added, what differs is refused.

    advice: how the sentence of a refusal ends. A subclass says what the folder holds, in `what`; in `comparable` what
    of an entry counts, whichever version wrote it; and in `later` which keys earlier versions did not write: where an
    entry lacks one, it is added.
    """

    what: ClassVar[str] = "what is there"
    later: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, folder: Path, advice: str) -> None:
        self._advice = advice
        self._path = folder / SETTINGS_FILE
        self.entries: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            self.entries = self._read()
        elif any(not item.name.startswith(".") for item in folder.iterdir()):
            raise InputError(f"{folder} is not empty and holds no settings of {self.what}: choose another --output.")

    def comparable(self, entry: dict[str, Any]) -> Any:
        """What counts of an entry, in the form of today."""
        return entry

    def claim(self, section: str, name: str, values: Mapping[str, Any]) -> None:
        """Enter `values`, or raise `InputError` saying what differs from those entered before, or is not for JSON."""
        wanted = self.comparable(json_ready(dict(values), name))
        known = self.entries.setdefault(section, {})
        if name not in known:
            known[name] = wanted
            self._write()
            return
        whole = _completed(known[name], wanted, self.later)
        if found := _differences(self.comparable(whole), wanted):
            told = "; ".join(found[:3])
            raise InputError(f"{self._path.parent} was made with other settings of {name}: {told}. {self._advice}")
        if whole != known[name]:
            known[name] = whole
            self._write()

    def note(self, section: str, name: str, values: Mapping[str, Any]) -> None:
        """Enter `values` that are never compared, whatever was there."""
        entry = self.entries.setdefault(section, {}).setdefault(name, {})
        if entry != (wanted := {**entry, **json_ready(dict(values), name)}):
            self.entries[section][name] = wanted
            self._write()

    def find(self, section: str, name: str) -> Mapping[str, Any]:
        """An entry, empty where there is none."""
        found: Mapping[str, Any] = self.entries.get(section, {}).get(name, {})
        return found

    def clear(self) -> None:
        """Forget every entry."""
        self.entries = {}
        self._write()

    def _read(self) -> dict[str, dict[str, Any]]:
        sections = read_json(self._path)
        if not all(
            isinstance(section, dict) and all(isinstance(entry, dict) for entry in section.values())
            for section in sections.values()
        ):
            raise InputError(f"{self._path}: these are no settings of {self.what}.")
        return sections

    def _write(self) -> None:
        with atomic_file(self._path) as stream:
            stream.write((json.dumps(self.entries, indent=1, ensure_ascii=False) + "\n").encode())


@contextmanager
def locked(folder: Path, work: str = "evaluation") -> Iterator[None]:
    """Hold a folder, made where it is missing, against a second process; the system lets go when this one ends.

    Raises `InputError` where another process holds it, for `work`. Where the system has no such locks nothing is held.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / _LOCK_FILE).open("ab")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}.") from None
    with stream:
        try:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except OSError:
            raise InputError(f"{folder}: another {work} is running in this folder.") from None
        yield


def _completed(old: Any, new: Any, later: frozenset[str]) -> Any:
    """`old` with what `new` has, however deep, under those keys of `later` that `old` lacks."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return old
    added = {key: value for key, value in new.items() if key in later and key not in old}
    return {key: _completed(value, new.get(key), later) for key, value in old.items()} | added


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """`name: old, now new` for each value that differs, down to the leaves of nested mappings."""
    if isinstance(old, dict) and isinstance(new, dict):
        lead = f"{name}." if name else ""
        keys = dict.fromkeys([*old, *new])
        return [line for key in keys for line in _differences(old.get(key), new.get(key), lead + key)]
    return [] if old == new else [f"{name} was {old!r}, now {new!r}"]
