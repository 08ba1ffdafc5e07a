"""A JSON array of objects read one at a time: files of gigabytes that are a single array, as DPR's are."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from typing import Any

from blockrank.configfile import distinct
from blockrank.data.files import Source, byte_pieces, source_name
from blockrank.types import InputError

_SPACE = " \t\r\n"
_FIRST = 1 << 16  # bytes read when an object is cut off, twice as many each time
_MOST = 1 << 26  # characters of one object; without a limit a broken one would be looked for through the whole file


def json_array(source: Source) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Number (from 1) and value of each object of a file that is one JSON array; never the whole file in memory.

    Raises `InputError` naming the file and the object where it is no array of objects or is broken.
    """
    text = _Text(source)
    if text.peek() != "[":
        raise InputError(f"{source_name(source)}: a JSON array is needed.")
    text.skip()
    number = 0
    while text.peek() != "]":
        number += 1
        if number > 1 and text.peek() != ",":
            raise InputError(f"{source_name(source)}: ',' or ']' is needed after object {number - 1}.")
        if number > 1:
            text.skip()
        value = text.value(f"{source_name(source)}: object {number}")
        if not isinstance(value, dict):
            raise InputError(f"{source_name(source)}: object {number}: a JSON object is needed.")
        yield number, value
    text.skip()
    if text.peek():
        raise InputError(f"{source_name(source)}: there is more after the end of the array.")


class _Text:
    """The text of a source, of which only what has not been decoded yet is held."""

    def __init__(self, source: Source) -> None:
        self._name, self._at, self._held = source_name(source), 0, ""
        self._bytes = byte_pieces(source)
        self._decoder, self._json = (
            codecs.getincrementaldecoder("utf-8-sig")(),
            json.JSONDecoder(object_pairs_hook=distinct),
        )

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self._at < len(self._held) and self._held[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._held) or not self._more():
                return self._held[self._at : self._at + 1]

    def skip(self) -> None:
        """Pass the character that `peek` gave."""
        self._at += 1

    def value(self, where: str) -> Any:
        """The JSON value that begins here. Raises `InputError` where it is broken."""
        self.peek()
        wanted = 0
        while True:
            try:
                value, self._at = self._json.raw_decode(self._held, self._at)
            except RecursionError:
                raise InputError(f"{where}: not valid JSON: nested too deeply.") from None
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            except ValueError as error:
                # What is cut off looks broken: read twice as much before the next attempt, so that it stays linear.
                wanted = max(2 * wanted, _FIRST)
                if len(self._held) - self._at > _MOST or not self._more(wanted):
                    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                    raise InputError(f"{where}: not valid JSON: {reason}.") from None
            else:
                return value

    def _more(self, count: int = 1) -> bool:
        """Read at least `count` bytes where there are so many; whether there were any."""
        pieces, read = [self._held[self._at :]], 0
        try:
            for piece in self._bytes:
                pieces.append(self._decoder.decode(piece))
                read += len(piece)
                if read >= count:
                    break
            else:
                self._decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            raise InputError(f"{self._name}: not valid UTF-8.") from None
        self._held, self._at = "".join(pieces), 0
        return read > 0
