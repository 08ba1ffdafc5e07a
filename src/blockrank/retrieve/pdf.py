"""PDF files to the text of their pages."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blockrank.types import InputError, MissingExtraError

SUFFIXES = frozenset({".pdf"})
_HYPHENATED = re.compile(r"(?<=[a-z])-\n(?=[a-z])")
_log = logging.getLogger(__name__)


def read_pages(path: Path) -> list[str]:
    """Text of each page, empty if it has none; words hyphenated at the end of a line are joined.

    Raises `InputError` where the file is no PDF, damaged or locked, `MissingExtraError` without the extra.
    """
    try:
        import pypdf
    except ImportError:
        raise MissingExtraError("reading PDF needs pypdf: pip install 'blockrank[search]'.") from None
    with _quiet():
        try:
            return [_HYPHENATED.sub("", page.extract_text()) for page in pypdf.PdfReader(path).pages]
        except Exception as error:  # on a damaged file the parser can raise anything
            _log.info("%s: %s: %s", path, type(error).__name__, error)
            raise InputError(f"{path}: cannot be read as PDF: {error}.") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what pypdf says about each oddity of a file."""
    logger = logging.getLogger("pypdf")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
