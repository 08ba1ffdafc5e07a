"""What was cut to fit, counted over many rankings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from blockrank.cli.console import note
from blockrank.types import Ranking


@dataclass(slots=True)
class Cuts:
    """Counts documents and queries that were cut to fit, for one sentence each at the end."""

    limit: int
    documents: int = 0
    cut: int = 0
    most: int = 0
    queries: int = 0

    def counted(self, rankings: Iterable[Ranking]) -> Iterator[Ranking]:
        """Pass complete rankings on and count."""
        for ranking in rankings:
            self.documents += len(ranking)
            self.queries += ranking.query_cut_tokens > 0
            self.cut += sum(entry.cut_tokens > 0 for entry in ranking)
            self.most = max(self.most, *(entry.cut_tokens for entry in ranking), 0)
            yield ranking

    def add(self, documents: int, cut: int, most: int, queries: int) -> None:
        """Add what was counted before."""
        self.documents += documents
        self.cut += cut
        self.most = max(self.most, most)
        self.queries += queries

    def report(self) -> None:
        """Say how many were cut; nothing where none was."""
        if self.cut:
            note(
                f"{self.cut} of {self.documents} documents were cut to fit {self.limit} tokens "
                f"(at most {self.most} tokens were left out); --verbose lists them."
            )
        if self.queries:
            note(f"{self.queries} queries were cut to fit; --verbose lists them.")
