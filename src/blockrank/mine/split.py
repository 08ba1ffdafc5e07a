"""Training data divided by query: linked rows are never divided over two parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from blockrank.data import json_objects, named, packed_file, text_lines
from blockrank.mine.pool import text_key
from blockrank.types import InputError


def assign(families: Sequence[int], shares: Mapping[str, float], seed: int = 0) -> list[str]:
    """The part of each row: rows of one family are in the same part, and parts have about their share of rows.

    families: a number for each row. Families are drawn in random order, the large ones first; each goes to the part
    that is furthest below its share. Raises `InputError` where the shares are invalid.
    """
    if not shares or not all(0 < share < float("inf") for share in shares.values()):
        raise InputError("shares must name at least one part, each with a share above zero.")
    sizes = Counter(families)
    order = list(sizes)
    np.random.default_rng(seed).shuffle(order)
    total = sum(shares.values())
    wanted = {part: len(families) * share / total for part, share in shares.items()}
    held = dict.fromkeys(shares, 0)
    chosen: dict[int, str] = {}
    for family in sorted(order, key=lambda family: -sizes[family]):  # stable: random among equal sizes
        part = max(wanted, key=lambda part: (wanted[part] - held[part]) / wanted[part])
        chosen[family] = part
        held[part] += sizes[family]
    return [chosen[family] for family in families]


def families_of(rows: Sequence[tuple[int, int | None]]) -> list[int]:
    """A number for each row, equal for rows that are linked by equal queries or groups, directly or through other rows.

    rows: a key of the query and one of the group, None where there is none.
    """
    parents = list(range(len(rows)))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    first: dict[tuple[str, int], int] = {}
    for row, (query, group) in enumerate(rows):
        keys = [("query", query)] if group is None else [("query", query), ("group", group)]
        for key in keys:
            parents[root(row)] = root(first.setdefault(key, row))
    return [root(row) for row in range(len(rows))]


def split_file(
    source: str | Path, folder: str | Path, shares: Mapping[str, float], *, seed: int = 0, name: str | None = None
) -> dict[str, int]:
    """Divide a file of JSON lines with `query` and perhaps `group` over files `NAME.PART.jsonl` of a folder.

    Lines are copied as they are, in order; all files appear together or none does. The file is read twice. Returns the
    rows of each part; a part may be empty if families are large. name: by default that of the source; parts are
    compressed like it.

    Raises `InputError` on a broken line, a source without rows, or a place that cannot be written.
    """
    rows = []
    for number, value in json_objects(source):
        with named(f"{source}:{number}"):
            if not isinstance(value.get("query"), str):
                raise InputError("there is no 'query' that is a text.")
        group = value.get("group")
        rows.append((text_key(value["query"]), None if group in (None, "") else text_key(repr(group))))
    if not rows:
        raise InputError(f"{source}: there are no rows in it.")
    parts = assign(families_of(rows), shares, seed)
    packing = ".gz" if str(source).endswith((".gz", ".xz")) else ""
    stem = name or Path(source).name.removesuffix(".gz").removesuffix(".xz").removesuffix(".jsonl")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}.") from None
    with ExitStack() as stack:  # all files are renamed at its end
        files = {
            part: stack.enter_context(packed_file(Path(folder) / f"{stem}.{part}.jsonl{packing}")) for part in shares
        }
        lines = (text for _, text in text_lines(source) if text.strip())
        for part, line in zip(parts, lines, strict=True):
            files[part].write(f"{line}\n".encode())
    return {part: parts.count(part) for part in shares}
