"""The parts of a `RankSpec`: what reads what, what is read out, which documents leave early, and the limits.

Names of fields are unique over all parts, so that a field can be named without its part (`RankSpec.of`). Error messages
name a field `RankSpec.NAME`; `Pattern.kind` is named `RankSpec.pattern`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blockrank.configfile import check_fields
from blockrank.errors import InputError

Attend = Literal["causal", "bidirectional"]
FLAT_NAMES = {"kind": "pattern"}  # fields whose own name is unclear without the part's
_MOST = 2**31 - 1  # upper bound of counts and positions, far above any real one
_LEAST_FLOAT32, _MOST_FLOAT32 = 2.0**-126, (2 - 2**-23) * 2.0**127


@dataclass(frozen=True)
class Pattern:
    """Which segments read which, and the position of the query.

    kind: "block" (the paper): a document reads the instruction and itself. "causal": full attention, the baseline:
        every segment reads all of its request before it, and positions count on from segment to segment.
    document_attention, query_attention: "causal", or "bidirectional" for models that grew from an encoder.
    query_reads: "all" (the paper), or "own": below the scoring layer the query segment reads only itself and the
        instruction, so that a score depends on no other candidate.
    query_offset: position of the query segment's first token; None continues after the instruction, where documents
        start too. Under the causal pattern positions count on through the documents, and the query starts at
        `query_offset` or after the last document, whichever is higher.
    """

    kind: Literal["block", "causal"] = "block"
    document_attention: Attend = "causal"
    query_attention: Attend = "causal"
    query_reads: Literal["all", "own"] = "all"
    query_offset: int | None = 16384

    def __post_init__(self) -> None:
        check_fields(self, _called)
        if self.query_offset is not None:
            _check_from_zero("query_offset", self.query_offset)
        if self.kind == "block":
            return
        for name, needed in (("document_attention", "causal"), ("query_attention", "causal"), ("query_reads", "all")):
            if (found := getattr(self, name)) != needed:
                raise InputError(f"RankSpec.pattern 'causal' needs {name} {needed!r}; it is {found!r}.")


@dataclass(frozen=True)
class Readout:
    """Where attention is read and how it becomes scores.

    layer: 0-based decoder layer whose attention is read; no layer above it is loaded.
    signal_tokens: how many last tokens of the query segment are read (the paper: 2; the later code: 1), or "query"
        for every token of the query segment.
    heads: which heads are read; None means all.
    joined_heads: read the heads as one wide head: their logits are added before the softmax.
    cosine: "both" compares directions only: logits are `logit_scale` times the cosine of query and key, without the
        model's own `1/sqrt(head_dim)`. "keys" normalises keys alone and divides the query by the root of its width, so
        that a query token's length is its weight. "none" is the model's own product.
    logit_scale: factor on the logits, positive.
    length_norm: exponent p in [0, 1]: a document's attention is divided by (its tokens)^p. 0 adds its tokens up (the
        paper), 1 averages them; values in between keep long documents from being favoured.
    signal_pooling: "arithmetic" averages the shares over heads and signal tokens (the paper); "geometric" averages
        their logarithms and normalises again, so that every signal token must find its evidence.
    softmax_over: "documents" (the paper) or "all": the denominator holds instruction and query keys too (later code).
    """

    layer: int
    signal_tokens: int | Literal["query"] = 2
    heads: tuple[int, ...] | None = None
    joined_heads: bool = False
    cosine: Literal["none", "keys", "both"] = "none"
    logit_scale: float = 1.0
    length_norm: float = 0.0
    signal_pooling: Literal["arithmetic", "geometric"] = "arithmetic"
    softmax_over: Literal["documents", "all"] = "documents"

    def __post_init__(self) -> None:
        check_fields(self, _called)
        _check_from_zero("layer", self.layer)
        if self.signal_tokens != "query":
            if self.signal_tokens < 1:
                raise InputError(f"RankSpec.signal_tokens must be positive or 'query', not {self.signal_tokens!r}.")
            _check_most("signal_tokens", self.signal_tokens)
        self._check_heads()
        self._check_scale()
        if not 0 <= self.length_norm <= 1:
            raise InputError(f"RankSpec.length_norm must lie in [0, 1], not {self.length_norm}.")

    def _check_heads(self) -> None:
        if self.heads is None:
            return
        if not self.heads:
            raise InputError("RankSpec.heads is empty; use null to read all heads.")
        for head in self.heads:
            _check_from_zero("heads", head)
        if len(set(self.heads)) < len(self.heads):
            raise InputError(f"RankSpec.heads names a head twice: {list(self.heads)}.")

    def _check_scale(self) -> None:
        if self.logit_scale == 0:
            raise InputError("RankSpec.logit_scale is 0: every document would get the same score.")
        if self.logit_scale < 0:
            raise InputError(
                f"RankSpec.logit_scale must be positive, not {self.logit_scale}: the least attended would come first."
            )
        if not _LEAST_FLOAT32 <= self.logit_scale <= _MOST_FLOAT32:
            raise InputError(f"RankSpec.logit_scale must be a number that float32 holds, not {self.logit_scale}.")


@dataclass(frozen=True)
class Exits:
    """Documents that leave early.

    prune: (layer, share) pairs: a read-out at that layer keeps only the best-scoring share of the request's original
        documents. Dropped documents rank below kept ones. Empty: every document reaches the scoring layer.
    prune_by: what that read-out uses: "lens" (the default with `prune`) applies the scoring layer's norm and
        projections to the hidden states before the layer; "layer" uses the layer's own queries and keys. None without
        `prune`.
    """

    prune: tuple[tuple[int, float], ...] = ()
    prune_by: Literal["layer", "lens"] | None = None

    def __post_init__(self) -> None:
        check_fields(self, _called)
        for layer, _ in self.prune:
            _check_from_zero("prune", layer)
        layers, shares = [layer for layer, _ in self.prune], [share for _, share in self.prune]
        if layers != sorted(set(layers)):
            raise InputError(f"RankSpec.prune names layers {layers}; they must rise and stay below RankSpec.layer.")
        if shares != sorted(set(shares), reverse=True) or not all(0 < share < 1 for share in shares):
            raise InputError(f"RankSpec.prune keeps shares {shares}; they must fall and lie in (0, 1).")
        if self.prune_by is None and self.prune:
            object.__setattr__(self, "prune_by", "lens")
        elif self.prune_by is not None and not self.prune:
            raise InputError(
                f"RankSpec.prune_by {self.prune_by!r} needs a schedule, and RankSpec.prune has none: give prune too."
            )

    @property
    def shares(self) -> dict[int, float]:
        """Layer -> share of the documents that goes on there."""
        return dict(self.prune)


@dataclass(frozen=True)
class Limits:
    """How long texts may be.

    max_segment_tokens: limit of one document segment, frame included. Longer bodies are cut at the end, and reported.
    max_query_tokens: limit of the query's own tokens.
    long_queries: what happens to a query over that limit: "refuse" raises, "cut" drops its end, logs it and says so in
        the ranking. It is never cut silently.
    """

    max_segment_tokens: int = 384
    max_query_tokens: int = 512
    long_queries: Literal["refuse", "cut"] = "refuse"

    def __post_init__(self) -> None:
        check_fields(self, _called)
        for name in ("max_segment_tokens", "max_query_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"RankSpec.{name} must be positive, not {getattr(self, name)}.")
            _check_most(name, getattr(self, name))


def _called(name: str) -> str:
    return f"RankSpec.{FLAT_NAMES.get(name, name)}"


def _check_from_zero(name: str, value: int) -> None:
    if value < 0:
        raise InputError(f"RankSpec.{name} counts from 0; {value} is negative.")
    _check_most(name, value)


def _check_most(name: str, value: int) -> None:
    if value > _MOST:
        raise InputError(f"RankSpec.{name} must be at most {_MOST}, not {value}.")
