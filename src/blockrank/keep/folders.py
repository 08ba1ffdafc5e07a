"""Derived files kept on disk: a folder that is fresh and whole, or not there at all.

A kept folder's name carries a digest of everything it was made from, so its content never changes and a fresh one is
found by name. It is filled under another name and moved to its place; a manifest, written last, holds the name, and the
size and checksum of each file. Kept folders lie in the user's own cache folder, never beside the data, which may come
from anybody; what belongs to another user, or what others may write in, is not trusted.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blockrank.keep.files import part_of
from blockrank.keep.identity import digest

CACHE_VARIABLE = "BLOCKRANK_CACHE"  # names another cache folder
FORMER_FOLDER = ".blockrank"  # beside the data, where indices were kept once
_PRIVATE = 0o700
_MANIFEST = "manifest.json"
_ABANDONED_AFTER = 24 * 3600  # seconds until an unfinished folder is taken to be of a process that was killed
_FORMER_DIGESTS = "-[0-9a-f]{16}-[0-9a-f]{32}"  # of names that are never looked for again
_ATTEMPTS = 5  # to move a folder into place while other processes do the same
_log = logging.getLogger(__name__)


def cache_folder(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path | None:
    """Where this user's programs keep what can be made again; None where no home is known.

    `BLOCKRANK_CACHE` names another folder. Paths that are not absolute do not count.
    """
    if (own := environment.get(CACHE_VARIABLE, "")) and Path(own).is_absolute():
        return Path(own)
    home = environment.get("HOME", "")
    choices = [environment.get("XDG_CACHE_HOME", "")]
    if platform == "win32":
        choices.append(environment.get("LOCALAPPDATA", ""))
    elif home:
        choices.append(f"{home}/Library/Caches" if platform == "darwin" else f"{home}/.cache")
    return next((Path(choice) / "blockrank" for choice in choices if choice and Path(choice).is_absolute()), None)


def index_folder() -> Path | None:
    """Where indices are kept unless a caller names a folder."""
    cache = cache_folder()
    return None if cache is None else cache / "indices"


def is_private(folder: Path) -> bool:
    """Whether a folder is there, belongs to this user, and nobody else may write in it, as far as the system tells."""
    try:
        state = folder.stat()
    except OSError:
        return False
    if not hasattr(os, "geteuid"):
        return stat.S_ISDIR(state.st_mode)
    return stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid() and not state.st_mode & 0o022


def tell_of_former(folder: Path, place: Path | None) -> None:
    """Log that an index beside the data is not used any more."""
    if (former := folder / FORMER_FOLDER).is_dir():
        _log.warning(
            "%s is no longer used and can be removed: indices are kept in %s.", former, place or "memory alone"
        )


@dataclass(frozen=True, slots=True)
class KeptFolder:
    """The place of one kept folder.

    place: the folder that holds kept folders. kind: `bm25`, `passages` ... owner: what it was made from, for a name of
    its own; fingerprint: the state of that, with every setting and version. Both are JSON-ready.
    """

    place: Path
    kind: str
    owner: object
    fingerprint: object

    @property
    def _name(self) -> str:
        return f"{self.kind}-{digest(self.owner)}-"

    @property
    def path(self) -> Path:
        """Where it is, if it is there."""
        return self.place / f"{self._name}{digest(self.fingerprint)}"

    def is_whole(self) -> bool:
        """Whether it is there, this user's own, and as it was written."""
        if not self.path.exists():
            return False
        for folder in (self.place, self.path):
            if not is_private(folder):
                _log.warning("%s is not used: it belongs to another user, or others may write in it.", folder)
                return False
        whole = is_whole(self.path)
        if not whole:
            _log.warning("%s is damaged: it is made anew.", self.path)
        return whole

    def remove(self) -> None:
        """Remove it, if it is there."""
        shutil.rmtree(self.path, ignore_errors=True)

    def write(self, fill: Callable[[Path], None]) -> None:
        """Make the folder: `fill` writes its files. Replaces a damaged one and removes what is out of date.

        Raises `OSError` where the place cannot be written; nothing is left behind then.
        """
        self.place.mkdir(_PRIVATE, parents=True, exist_ok=True)
        if not is_private(self.place):
            raise PermissionError(f"{self.place} belongs to another user, or others may write in it")
        part = part_of(self.path)
        part.mkdir(_PRIVATE)
        try:
            fill(part)
            files = {path.name: _checked(path) for path in sorted(part.iterdir())}
            manifest = {"name": self.path.name, "files": files}
            (part / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            self._move(part)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._tidy()

    def _move(self, part: Path) -> None:
        """Put a finished folder in its place. Another process may have been faster, or may be doing the same."""
        for _ in range(_ATTEMPTS):
            try:
                os.rename(part, self.path)
                return
            except OSError:
                if not self.path.exists():
                    raise
            if self.is_whole():
                return
            with suppress(FileNotFoundError):
                aside = part_of(self.path)
                os.rename(self.path, aside)
                shutil.rmtree(aside, ignore_errors=True)
        raise OSError(f"{self.path} cannot be replaced")

    def earlier(self) -> list[Path]:
        """Folders of the same kind and owner in another state, none where others may write in the place."""
        if not is_private(self.place):
            return []
        names = re.compile(re.escape(self._name) + "[0-9a-f]{24}")
        with suppress(OSError):
            return [path for path in self.place.iterdir() if names.fullmatch(path.name) and path != self.path]
        return []

    def _tidy(self) -> None:
        """Remove earlier states, what earlier versions named otherwise, and what killed processes left."""
        former = re.compile(re.escape(self.kind) + _FORMER_DIGESTS)
        for path in (*self.earlier(), *(path for path in self.place.iterdir() if former.fullmatch(path.name))):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.place.glob(f".{self._name}*.part"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
                    shutil.rmtree(path, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """Whether a kept folder is this user's own, has its name, and every file is there as it was written."""
    if not is_private(folder):
        return False
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        if manifest["name"] != folder.name:
            return False
        files = manifest["files"].items()
        return all([size, checksum] == _checked(folder / name) for name, (size, checksum) in files)
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return False


def _checked(path: Path) -> list[int]:
    """Size and checksum of a file."""
    size = checksum = 0
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
    return [size, checksum]
