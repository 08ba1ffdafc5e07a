"""What tells one from another: values, files, models and rankers. Work that is resumed goes on only with the same.

A ranker says in `RequestRanker.identity` what decides its scores; `ranker_identity` is what is saved of it. All hashes
are blake2b of twelve bytes, as 24 hexadecimal digits: saved evaluations hold them, so they stay what they are.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from blockrank.errors import InputError
from blockrank.types import RequestRanker

_DIGEST_BYTES = 12
_HASHED_BYTES = 64 << 20  # larger files are told apart by size and time of change
_MODEL_FILES = (".json", ".safetensors", ".model", ".txt", ".jinja")


def hashed(content: bytes) -> str:
    """A short hash of bytes."""
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()


def digest(value: object) -> str:
    """A short hash of a JSON-ready value; the order of keys counts."""
    return hashed(json.dumps(value, ensure_ascii=False).encode())


def file_digest(path: Path) -> str:
    """A short hash of all of a file's content. Raises `InputError` where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, _hash).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.") from None


def file_identity(path: Path) -> str:
    """What tells one version of a file from another: its hash, or size and time of change where it is large."""
    found = path.stat()
    if found.st_size > _HASHED_BYTES:
        return f"{found.st_size} bytes of {found.st_mtime_ns}"
    return file_digest(path)


def model_identity(folder: Path) -> dict[str, str]:
    """File name -> identity of the files of a model's folder that can change its scores."""
    return {path.name: file_identity(path) for path in sorted(folder.iterdir()) if path.suffix in _MODEL_FILES}


def ranker_identity(ranker: RequestRanker) -> dict[str, Any]:
    """What decides the scores of a ranker, as JSON gives it back.

    Raises `InputError` where `ranker.identity()` is no mapping, or holds what JSON does not.
    """
    name = f"{type(ranker).__name__}.identity()"
    found = ranker.identity()
    if not isinstance(found, dict):
        raise InputError(f"{name} must give a dict that JSON can hold, not {found!r}.")
    plain: dict[str, Any] = json_ready(found, name)
    return plain


def json_ready(value: object, name: str) -> Any:
    """A value as JSON gives it back. Raises `InputError`, which begins with `name`, where JSON cannot hold it."""
    try:
        _check(value, name, "")
    except RecursionError:
        raise InputError(f"{name} is nested too deeply, or holds itself.") from None
    return json.loads(json.dumps(value))


def _check(value: object, name: str, place: str) -> None:
    """Raise `InputError` at the first value, `place` in `name`, that would not come back from JSON as it is."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(f"{name}{_at(place)} has the key {key!r}: keys of JSON are strings.")
            _check(item, name, f"{place}.{key}" if place else key)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, name, f"{place}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name}{_at(place)} is {value}: numbers of JSON are finite.")
    elif value is not None and not isinstance(value, str | bool | int | float):
        kind = type(value).__name__
        raise InputError(f"{name}{_at(place)} is of type {kind}, which JSON cannot hold: give its settings instead.")


def _at(place: str) -> str:
    return f": {place}" if place else ""


def _hash() -> Any:
    return hashlib.blake2b(digest_size=_DIGEST_BYTES)
