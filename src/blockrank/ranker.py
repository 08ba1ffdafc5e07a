"""`Ranker`: requests in, rankings out. One path for one request and for a thousand."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blockrank.layout import TokenisedRequest, pack
from blockrank.model import RankModel, load_model
from blockrank.scorers import AttentionScorer, Scorer
from blockrank.spec import RankSpec
from blockrank.types import InputError, ModelError, Ranking, RankRequest, RequestRanker

if TYPE_CHECKING:
    from blockrank.layout import Segment

DEFAULT_MAX_TOKENS = 32_768
_WINDOW = 64  # requests tokenised ahead when batches are cut from a stream
_log = logging.getLogger(__name__)


class Ranker(RequestRanker):
    """Ranks documents in context with a language model.

        ranker = Ranker.from_pretrained()
        ranking = ranker.rank("who wrote Dracula", ["Bram Stoker ...", "Mary Shelley ..."])

    max_tokens: tokens of the requests packed into one forward; a larger single request still runs, alone.
    """

    def __init__(self, model: RankModel, scorer: Scorer | None = None, max_tokens: int = DEFAULT_MAX_TOKENS) -> None:
        if max_tokens < 1:
            raise InputError(f"max_tokens must be positive, not {max_tokens}.")
        self.model, self.max_tokens = model, max_tokens
        self.scorer: Scorer = scorer if scorer is not None else AttentionScorer()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        spec: RankSpec | str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        backend: str | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        probe: bool = True,
    ) -> Ranker:
        """Load a checkpoint: a folder with `blockrank.json`, a hub name, or None for the embedded model.

        spec: overrides the checkpoint's own (a `RankSpec` or the name of a built-in one). device, dtype, backend: None
        chooses by the machine; `dtype="bfloat16"` halves the time on processors that compute in it. probe: see
        `blockrank.probe`. Raises `ModelError` where the checkpoint cannot serve.
        """
        model = load_model(name_or_path, spec=spec, device=device, dtype=dtype, backend=backend, probe=probe)
        return cls(model, max_tokens=max_tokens)

    @property
    def spec(self) -> RankSpec:
        """How the model is read."""
        return self.model.spec

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        """Rank a stream of requests lazily, in order, packing as many into a forward as `max_tokens` allows."""
        stream = iter(requests)
        while window := list(islice(stream, _WINDOW)):
            tokenised = [self.tokenise(request) for request in window]
            for batch in plan_batches([item.length for item in tokenised], self.max_tokens):
                yield from self._rank_batch(window[batch], tokenised[batch])

    def tokenise(self, request: RankRequest) -> TokenisedRequest:
        """The request's segments as tokens, within the limits of the spec; logs what was cut."""
        assert self.model.tokenizer is not None, "a ranker's model has a tokenizer"
        try:
            tokenised = self.model.tokenizer.tokenise_request(request, self.spec)
        except InputError as error:
            raise InputError(f"{error} (query_id {request.query_id!r})") from None
        if tokenised.query_cut:
            _log.warning("query_id %r: the query lost its last %d tokens.", request.query_id, tokenised.query_cut)
        for index, segment in enumerate(tokenised.documents):
            if segment.cut:
                self._log_cut(request, index, segment)
        return tokenised

    def _log_cut(self, request: RankRequest, index: int, segment: Segment) -> None:
        _log.warning(
            "query_id %r: documents[%d] (doc_id %r) was cut from %d to %d tokens of its own (max_segment_tokens %d).",
            request.query_id, index, request.candidates[index].doc_id,
            segment.body_tokens + segment.cut, segment.body_tokens, self.spec.max_segment_tokens,
        )  # fmt: skip

    def _rank_batch(self, requests: Sequence[RankRequest], tokenised: Sequence[TokenisedRequest]) -> list[Ranking]:
        """Rankings of requests that were planned to share a forward."""
        scores_C = self._scores(requests, tokenised)
        rankings, at = [], 0
        for request, item in zip(requests, tokenised, strict=True):
            scores = scores_C[at : at + len(item.documents)]
            at += len(item.documents)
            if not bool(scores.isfinite().all()):
                raise ModelError(
                    f"query_id {request.query_id!r}: the model's scores are not finite; its weights or dtype are unfit."
                )
            cuts, tokens = [s.cut for s in item.documents], [s.body_tokens for s in item.documents]
            rankings.append(Ranking.from_scores(request, scores.tolist(), tokens, cuts, item.query_cut))
        return rankings

    def _scores(self, requests: Sequence[RankRequest], tokenised: Sequence[TokenisedRequest]) -> Tensor:
        """Scores (C,) of packed requests, on the host: one forward, or two by halves where memory does not suffice."""
        try:
            with torch.inference_mode():
                return self.scorer.score(self.model, pack(tokenised, self.spec)).cpu()
        except torch.OutOfMemoryError:
            if len(requests) == 1:
                raise ModelError(
                    f"query_id {requests[0].query_id!r}: its {tokenised[0].length} tokens do not fit into the memory "
                    f"of {self.model.device}; rank fewer documents at once or lower max_segment_tokens."
                ) from None
        # Outside the handler: the traceback, which holds the tensors of the failed forward, is gone.
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        _log.info("%d requests do not fit into memory together; they run in two halves.", len(requests))
        half = len(requests) // 2
        parts = (slice(0, half), slice(half, None))
        return torch.cat([self._scores(requests[part], tokenised[part]) for part in parts])

    def with_spec(self, **changes: object) -> Ranker:
        """A ranker over the same weights whose spec differs in the given fields (same layer or below)."""
        spec = replace(self.spec, **changes)  # type: ignore[arg-type]
        model = RankModel(self.model.module, self.model.hf_tokenizer, spec, self.model.backend, self.model.name)
        return Ranker(model, self.scorer, self.max_tokens)


def plan_batches(lengths: Sequence[int], budget: int) -> list[slice]:
    """Consecutive requests grouped by tokens, not by count; one that exceeds the budget goes alone."""
    slices, start, total = [], 0, 0
    for index, length in enumerate(lengths):
        if index > start and total + length > budget:
            slices.append(slice(start, index))
            start, total = index, 0
        total += length
    return [*slices, slice(start, len(lengths))] if lengths else []
