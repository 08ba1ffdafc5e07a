"""What was cut to fit and what else the caller should know, counted over many rankings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from blockrank.cli.console import note
from blockrank.types import Ranking


@dataclass(slots=True)
class Cuts:
    """Counts documents and queries that were cut to fit, and requests with warnings, for one sentence each at the end.

    warning: the sentence of the first.
    """

    limit: int
    documents: int = 0
    cut: int = 0
    most: int = 0
    queries: int = 0
    estimated: bool = False
    warned: int = 0
    warning: str = ""

    def counted(self, rankings: Iterable[Ranking]) -> Iterator[Ranking]:
        """Pass complete rankings on and count."""
        for ranking in rankings:
            self.documents += len(ranking)
            self.queries += ranking.query_cut_tokens > 0
            self.cut += sum(entry.cut_tokens > 0 for entry in ranking)
            self.most = max(self.most, *(entry.cut_tokens for entry in ranking), 0)
            self.estimated |= any(entry.cut_is_estimate for entry in ranking)
            if ranking.warnings:
                self.warned += 1
                self.warning = self.warning or f"query_id {ranking.query_id!r}: {' '.join(ranking.warnings)}"
            yield ranking

    def add(self, other: Cuts) -> None:
        """Add what was counted elsewhere, or before."""
        self.documents += other.documents
        self.cut += other.cut
        self.most = max(self.most, other.most)
        self.queries += other.queries
        self.estimated |= other.estimated
        self.warned += other.warned
        self.warning = self.warning or other.warning

    def report(self) -> None:
        """Report how many were cut; nothing where none was."""
        if self.cut:
            note(
                f"{self.cut} of {self.documents} documents were cut to fit {self.limit} tokens "
                f"(at most {'about ' * self.estimated}{self.most} tokens were left out); --verbose lists them."
            )
        if self.queries:
            note(f"{self.queries} queries were cut to fit; --verbose lists them.")
        if self.warned:
            note(self.warning)
        if self.warned > 1:
            note(f"{self.warned} requests have such warnings; --json and --verbose list them.")
