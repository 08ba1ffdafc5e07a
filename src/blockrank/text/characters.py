"""Which characters a person can see: a text without any of them holds nothing to rank."""

from __future__ import annotations

import unicodedata

_FIRST = 256  # characters checked one by one, before the set of all others is built
# Unicode's Default_Ignorable_Code_Point where the category does not tell (Hangul fillers, variation selectors and what
# is reserved for more of their kind), and the braille pattern without dots.
_INVISIBLE = ((0x115F, 0x1160), (0x2065, 0x2065), (0x2800, 0x2800), (0x3164, 0x3164), (0xFFA0, 0xFFA0),
              (0xFFF0, 0xFFF8), (0xE0000, 0xE0FFF))  # fmt: skip
_NONCHARACTERS = (0xFDD0, 0xFDEF)


def is_readable(text: str) -> bool:
    """Whether a text holds a character that is visible by itself.

    White space, controls, format characters, surrogates, noncharacters, fillers and combining marks do not.
    Private-use characters count as visible: fonts have glyphs for them.
    """
    return any(map(_shows, text[:_FIRST])) or any(map(_shows, set(text[_FIRST:])))


def _shows(character: str) -> bool:
    code = ord(character)
    if character.isspace() or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Mn", "Mc", "Me"):
        return False
    if code & 0xFFFE == 0xFFFE or _NONCHARACTERS[0] <= code <= _NONCHARACTERS[1]:
        return False
    return not any(first <= code <= last for first, last in _INVISIBLE)
