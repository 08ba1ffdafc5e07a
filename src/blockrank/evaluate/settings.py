"""What decides the rankings of an evaluation, kept in its folder, so that it goes on only with the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from blockrank.configfile import read_json
from blockrank.data import atomic_file
from blockrank.spec import rewritten
from blockrank.types import InputError, RequestRanker

SETTINGS_FILE = "settings.json"
_LOCK_FILE = ".lock"
_HASHED_BYTES = 64 << 20  # larger files are told apart by size and time of change
_MODEL_FILES = (".json", ".safetensors", ".model", ".txt", ".jinja")
# What becomes of a query over the limit changes no ranking: where such queries are refused, nothing is ranked. What was
# judged decides measures, which are computed again each time; earlier versions kept it among what decides rankings.
_HARMLESS = frozenset({"cut_queries", "long_queries", "judgements"})


class Settings:
    """The settings file of a folder: sections of named entries. What is new is added, what differs is refused."""

    def __init__(self, folder: Path, advice: str = "Choose another --output, or start over with --restart.") -> None:
        self._advice = advice
        self._path = folder / SETTINGS_FILE
        self.entries: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            self.entries = _read(self._path)
        elif any(not item.name.startswith(".") for item in folder.iterdir()):
            raise InputError(f"{folder} is not empty and holds no evaluation: choose another --output.")

    def claim(self, section: str, name: str, values: Mapping[str, Any]) -> None:
        """Enter `values`, or raise `InputError` saying what differs from those entered before and decides rankings."""
        wanted = _decisive(rewritten(json.loads(json.dumps(values))))
        known = self.entries.setdefault(section, {})
        if name not in known:
            known[name] = wanted
            self._write()
        elif found := _differences(_decisive(rewritten(known[name])), wanted):
            told = "; ".join(found[:3])
            raise InputError(f"{self._path.parent} was made with other settings of {name}: {told}. {self._advice}")

    def note(self, section: str, name: str, values: Mapping[str, Any]) -> None:
        """Enter `values` that decide no ranking, whatever was there."""
        entry = self.entries.setdefault(section, {}).setdefault(name, {})
        if entry != (wanted := {**entry, **json.loads(json.dumps(values))}):
            self.entries[section][name] = wanted
            self._write()

    def find(self, section: str, name: str) -> Mapping[str, Any]:
        """An entry, empty where there is none."""
        found: Mapping[str, Any] = self.entries.get(section, {}).get(name, {})
        return found

    def clear(self) -> None:
        """Forget every entry, and delete the journals and runs that were made with them."""
        folder = self._path.parent
        for collection in self.entries.get("collections", {}):
            place = folder / safe_name(collection)
            for path in (*place.glob("*.journal.jsonl"), *place.glob("runs/*.trec")):
                path.unlink()
        self.entries = {}
        self._write()

    def _write(self) -> None:
        with atomic_file(self._path) as stream:
            stream.write((json.dumps(self.entries, indent=1, ensure_ascii=False) + "\n").encode())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, made where it is missing, against a second process; the system lets go when this one ends.

    Raises `InputError` where another process holds it. Where the system has no such locks nothing is held.
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
            raise InputError(f"{folder}: another evaluation is running in this folder.") from None
        yield


def safe_name(name: str) -> str:
    """The name of a collection as the name of a folder."""
    return name.replace("/", "_").replace("\\", "_").lstrip(".") or "_"


def digest(value: object) -> str:
    """A short hash of a JSON-ready value; the order of keys counts."""
    return _hash(json.dumps(value, ensure_ascii=False).encode())


def file_identity(path: Path) -> str:
    """What tells one version of a file from another: its hash, or size and time of change where it is large."""
    found = path.stat()
    if found.st_size > _HASHED_BYTES:
        return f"{found.st_size} bytes of {found.st_mtime_ns}"
    return _hash(path.read_bytes())


def model_identity(folder: Path) -> dict[str, str]:
    """File name -> identity of the files of a model's folder that can change its scores."""
    return {path.name: file_identity(path) for path in sorted(folder.iterdir()) if path.suffix in _MODEL_FILES}


@runtime_checkable
class Identified(Protocol):
    """A ranker that knows itself what decides its scores."""

    def identity(self) -> dict[str, Any]:
        """JSON-ready, as `ranker_identity` gives it."""


def ranker_identity(ranker: RequestRanker) -> dict[str, Any]:
    """What decides the scores of a ranker once it is loaded."""
    from blockrank.ranker import Ranker

    if isinstance(ranker, Identified):
        return ranker.identity()
    if not isinstance(ranker, Ranker):
        return {"ranker": type(ranker).__name__}
    model = ranker.model
    return {
        "spec": ranker.spec.to_dict(),
        "scorer": ranker.scorer.identity(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "backend": model.backend.name,
        "max_tokens": ranker.max_tokens,
        "revision": getattr(model.module.config, "_commit_hash", None),
    }


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def _read(path: Path) -> dict[str, dict[str, Any]]:
    sections = read_json(path)
    if not all(
        isinstance(section, dict) and all(isinstance(e, dict) for e in section.values())
        for section in sections.values()
    ):
        raise InputError(f"{path}: these are no settings of an evaluation.")
    return sections


def _decisive(value: Any) -> Any:
    """A value of JSON without what is harmless, however deep it stands."""
    if not isinstance(value, dict):
        return value
    return {key: _decisive(item) for key, item in value.items() if key not in _HARMLESS}


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """`name: old, now new` for each value that differs, down to the leaves of nested mappings."""
    if isinstance(old, dict) and isinstance(new, dict):
        lead = f"{name}." if name else ""
        keys = dict.fromkeys([*old, *new])
        return [line for key in keys for line in _differences(old.get(key), new.get(key), lead + key)]
    return [] if old == new else [f"{name} was {old!r}, now {new!r}"]
