"""Requests that get no ranking: one exception with a status, a cause for the metrics and a sentence for the caller."""

from __future__ import annotations

from typing import Literal, get_args

from blockrank.types import BlockrankError

Cause = Literal[
    "key",  # no key, or another
    "host",  # under another server's name, or from a web page of others
    "route",  # no such route or method
    "body",  # over the limit of bytes, or slower than the limit of time
    "json",  # not JSON
    "empty",  # no query, or no documents
    "field",  # a field that the dialect does not have
    "invalid",  # anything else that cannot be ranked
    "limit",  # over a limit of documents or characters
    "model",  # another model than the one served
    "overload",  # too much waiting
    "crowded",  # too many connections
    "loading",
    "draining",
    "failed",  # a device is lost
    "deadline",
    "disconnect",
    "memory",
    "not_finite",
    "internal",
]
CAUSES: tuple[Cause, ...] = get_args(Cause)


class Refusal(BlockrankError):  # noqa: N818
    """A request that gets no ranking.

    status: of HTTP. param: the field at fault, if one is. retry_after: seconds after which asking again may help.
    """

    def __init__(
        self, status: int, cause: Cause, sentence: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.cause, self.sentence = status, cause, sentence
        self.param, self.retry_after = param, retry_after


def draining() -> Refusal:
    """The refusal while the server shuts down."""
    return Refusal(503, "draining", "the server is shutting down.", retry_after=5)


def invalid(sentence: str, param: str | None = None, cause: Cause = "invalid") -> Refusal:
    """A body that cannot be ranked."""
    return Refusal(422, cause, sentence, param=param)
