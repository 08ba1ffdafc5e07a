"""What decides the rankings of an evaluation, kept in its folder, so that it goes on only with the same.

An entry is refused where it differs from the one on disk (`keep.settings.Settings.claim`); this module says which
differences do not count. What is entered: `evaluation`, and the identity of each ranker (`keep.identity`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blockrank.keep.files import safe_name
from blockrank.keep.settings import Settings
from blockrank.spec import rewritten

# What becomes of a query over the limit changes no ranking: where such queries are refused, nothing is ranked. What was
# judged decides measures, which are computed again each time; earlier versions kept it among what decides rankings.
_HARMLESS = frozenset({"cut_queries", "long_queries", "judgements"})


class RankingSettings(Settings):
    """What decides rankings: of an evaluation, or of a file of requests."""

    what = "an evaluation"
    later = frozenset({"files", "products"})  # of a `Ranker`'s identity

    def __init__(self, folder: Path, advice: str = "Choose another --output, or start over with --restart.") -> None:
        super().__init__(folder, advice)
        self._folder = folder

    def comparable(self, entry: dict[str, Any]) -> Any:
        """See `Settings.comparable`."""
        return _decisive(rewritten(entry))

    def clear(self) -> None:
        """Forget every entry, and delete the journals and runs that were made with them."""
        for collection in self.entries.get("collections", {}):
            place = self._folder / safe_name(collection)
            for path in (*place.glob("*.journal.jsonl"), *place.glob("runs/*.trec")):
                path.unlink()
        super().clear()


def _decisive(value: Any) -> Any:
    """A value of JSON without what is harmless, however deep it stands."""
    if not isinstance(value, dict):
        return value
    return {key: _decisive(item) for key, item in value.items() if key not in _HARMLESS}
