"""How well the candidates are ordered by one layer, one head, one set of signal tokens alone: the whole grid.

The read-out is that of `blockrank.readout.signals` with the model's own cosine, scale, length norm and pooling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blockrank.analyze.judged import JudgedRequest
from blockrank.analyze.measures import MEASURES, measure
from blockrank.engine.capture import LayerCapture
from blockrank.layout import Ints, PackedLayout
from blockrank.readout.plan import plan_readout
from blockrank.readout.signals import segment_lse
from blockrank.spec import RankSpec
from blockrank.types import ModelError

_SIGNALS = 64  # signal tokens read out at once: bounds memory, not results

Tokens = int | Literal["query"]  # as RankSpec.signal_tokens


@dataclass(frozen=True, slots=True)
class Axes:
    """What the grid holds. singles: how many last tokens are read one by one, the last one first. sets: the sets of
    last tokens, as `RankSpec.signal_tokens` names them."""

    layers: int
    heads: int
    singles: int
    sets: tuple[Tokens, ...]

    @property
    def columns(self) -> int:
        """T: single tokens, then sets."""
        return self.singles + len(self.sets)

    def column(self, tokens: Tokens) -> int:
        """Where a set stands."""
        return self.singles + self.sets.index(tokens)


@dataclass(frozen=True, slots=True)
class QualityGrid:
    """Measures of every read-out alone.

    pooled_QMLT: of all heads together. heads_QMLNT: of each head. Q queries, M measures (`MEASURES`), L layers, N
    heads, T columns of `axes`. NaN where a query segment is too short for a single token.
    """

    axes: Axes
    pooled_QMLT: NDArray[np.float32]
    heads_QMLNT: NDArray[np.float32]


def token_sets(lengths: Sequence[int], own: Tokens | None) -> tuple[Tokens, ...]:
    """The sets of last tokens to try: 1, 2, 4, ... shorter than the usual query segment, the model's own, and all.

    lengths: tokens of the query segments.
    """
    typical = int(np.median(lengths))
    sizes = {1 << power for power in range(typical.bit_length()) if 1 << power < typical} | {1}
    if isinstance(own, int):
        sizes.add(own)
    return (*sorted(sizes), "query")


class GridReader:
    """Observes one forward of a request and measures every read-out: pooled_MLT of all heads together, heads_MLNT of
    each head.

    layout: the request alone, with every token of its query segment as a signal token. spec: how logits are made and
    pooled; its layer, tokens and heads do not matter.
    """

    def __init__(self, layout: PackedLayout, spec: RankSpec, judged: JudgedRequest, axes: Axes) -> None:
        self._layout, self._spec, self._judged, self._axes = layout, spec.changed(heads=None), judged, axes
        shape = (len(MEASURES), axes.layers)
        self.pooled_MLT = np.full((*shape, axes.columns), np.nan, dtype=np.float32)
        self.heads_MLNT = np.full((*shape, axes.heads, axes.columns), np.nan, dtype=np.float32)

    def __call__(self, seen: LayerCapture) -> None:
        """Measure one layer. Raises `ModelError` where its attention is not finite."""
        spec, layer = self._spec, seen.layer
        votes_NGC = token_votes(seen.q_GNH, seen.k_PKH, self._layout, spec.changed(joined_heads=False), seen.scale)
        if not bool(votes_NGC.isfinite().all()):
            raise ModelError(
                f"layer {layer} yields attention that is not finite; the model's weights or dtype are unfit."
            )
        self.heads_MLNT[:, layer] = self._measured(columns(votes_NGC, spec, self._axes))
        if spec.readout.joined_heads:
            votes_NGC = token_votes(seen.q_GNH, seen.k_PKH, self._layout, spec, seen.scale)
        self.pooled_MLT[:, layer] = self._measured(columns(over_heads(votes_NGC, spec), spec, self._axes))[:, 0]

    def _measured(self, scores_NTC: Tensor) -> NDArray[np.float64]:
        return measure(scores_NTC.cpu().numpy(), self._judged.relevance_C, self._judged.ideal)


def token_votes(q_GNH: Tensor, k_PKH: Tensor, layout: PackedLayout, spec: RankSpec, scale: float) -> Tensor:
    """(N, G, C) what every head and signal token of one request says of every document, as a logarithm.

    The log-sum-exp over the document where tokens are pooled geometrically, else the log of its share. N is one where
    the spec joins heads.
    """
    signals = [slice(start, start + _SIGNALS) for start in range(0, len(q_GNH), _SIGNALS)]
    lse_CNG = torch.cat([_lse(q_GNH, k_PKH, layout, part, "document", spec, scale) for part in signals], 2)
    lengths = (layout.ends_S - layout.starts_S)[layout.document_segment_C]
    lse_NGC = (lse_CNG - spec.readout.length_norm * _like(lse_CNG, lengths).log()[:, None, None]).permute(1, 2, 0)
    if spec.readout.signal_pooling == "geometric":
        return lse_NGC
    total_NG = lse_NGC.logsumexp(-1)
    if spec.readout.softmax_over == "all":
        rest_CNG = torch.cat([_lse(q_GNH, k_PKH, layout, part, "other", spec, scale) for part in signals], 2)
        total_NG = torch.logaddexp(total_NG, rest_CNG.logsumexp(0))
    return lse_NGC - total_NG[..., None]


def _like(tensor: Tensor, values: Ints) -> Tensor:
    return torch.from_numpy(values).to(tensor)


def _lse(
    q_GNH: Tensor,
    k_PKH: Tensor,
    layout: PackedLayout,
    part: slice,
    kind: Literal["document", "other"],
    spec: RankSpec,
    scale: float,
) -> Tensor:
    """(C, N, G) log-sum-exps of some signal tokens over the documents, or over the other segments that have rows."""
    some = replace(layout, signal_G=layout.signal_G[part], signal_request_G=layout.signal_request_G[part])
    filled = layout.ends_S > layout.starts_S
    segments = np.flatnonzero(layout.is_document_S if kind == "document" else ~layout.is_document_S & filled)
    readout = plan_readout(q_GNH[part], k_PKH, some, spec, scale)
    return segment_lse(readout, segments, np.zeros_like(segments))


def over_heads(votes_NGC: Tensor, spec: RankSpec) -> Tensor:
    """(1, G, C) votes of all heads together."""
    if spec.readout.signal_pooling == "geometric":
        return votes_NGC.mean(0, keepdim=True)
    return votes_NGC.logsumexp(0, keepdim=True)


def columns(votes_NGC: Tensor, spec: RankSpec, axes: Axes) -> Tensor:
    """(N, T, C) scores by each single token and each set of last tokens, in the order of `axes`; NaN where there is no
    such token. Scores order the documents as the pooled read-out does; they are not normalised."""
    heads, signals, documents = votes_NGC.shape
    back_NGC = votes_NGC.flip(1)  # the last token first
    sums_NGC = back_NGC.cumsum(1) if spec.readout.signal_pooling == "geometric" else back_NGC.logcumsumexp(1)
    scores_NTC = votes_NGC.new_full((heads, axes.columns, documents), torch.nan)
    singles = min(axes.singles, signals)
    scores_NTC[:, :singles] = back_NGC[:, :singles]
    sizes = [signals if size == "query" else min(size, signals) for size in axes.sets]
    scores_NTC[:, axes.singles :] = sums_NGC[:, [size - 1 for size in sizes]]
    return scores_NTC
