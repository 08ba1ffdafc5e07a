"""Prompts of random tokens, as a scorer makes them of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from blockrank.layout import TokenisedRequest
from blockrank.scorers import Prompts, PromptWriter, Scorer
from blockrank.spec import RankSpec
from blockrank.types import RankRequest


def random_prompts(whole: TokenisedRequest, scorer: Scorer, spec: RankSpec) -> Prompts:
    """The prompts that a scorer makes of a request of random tokens. Raises `InputError` where the spec has none."""
    request = RankRequest("query", ["document"] * len(whole.documents))
    return scorer.prompts(request, cast("PromptWriter", _Writer(whole, spec)))


class _Writer:
    """Writes prompts as `PromptWriter` does, but of tokens that were drawn: `whole` is the one with all documents."""

    write_each = PromptWriter.write_each

    def __init__(self, whole: TokenisedRequest, spec: RankSpec) -> None:
        self.whole, self.spec = whole, spec

    def write(
        self, request: RankRequest, spec: RankSpec | None = None, read: Sequence[int] | None = None
    ) -> TokenisedRequest:
        """See `PromptWriter.write`; a template or limits change nothing."""
        del request, spec
        if read is None:
            return self.whole
        first, *documents, last = self.whole.segments
        return replace(self.whole, segments=(first, *(documents[index] for index in read), last), read=tuple(read))
