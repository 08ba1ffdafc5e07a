"""What every dialect can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from blockrank.serve.calls import Call, TokenCounts
from blockrank.serve.refusals import Refusal
from blockrank.serve.settings import ServeSettings
from blockrank.types import Ranking


class Dialect(Protocol):
    """One interface."""

    name: ClassVar[str]

    def read(self, body: Mapping[str, Any], settings: ServeSettings, request_id: str) -> Call:
        """The call in a body. Raises `Refusal` where it cannot be served."""

    def answer(self, call: Call, ranking: Ranking, read: TokenCounts) -> Any:
        """The body of an answer."""

    def refusal(self, refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
        """Status and body of a refusal."""
