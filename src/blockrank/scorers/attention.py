"""BlockRank: the attention of the signal tokens at one layer is the ranking (method, section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blockrank.engine.capture import Capture, LayerCapture, Wanted
from blockrank.layout import PackedLayout
from blockrank.model import Needs, RankModel
from blockrank.readout.exits import with_exits
from blockrank.readout.signals import head_shares, log_scores, token_shares
from blockrank.scorers.base import LayoutScorer, Scored
from blockrank.scorers.heads import check_heads, loaded_heads
from blockrank.scorers.prompts import Prompts, PromptWriter
from blockrank.spec import HeadSet, RankSpec
from blockrank.types import InputError, RankRequest


@dataclass(frozen=True)
class AttentionScorer(LayoutScorer):
    """Share of the signal tokens' attention that each document gets, as the model's `RankSpec` says to read it.

    heads: a `HeadSet`, or its name or file: in place of the spec's layer and heads these are read, each on its own, and
    a score is their mean, weighted as the set says.
    """

    name = "attention"
    kind = "share"
    heads: HeadSet | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "heads", loaded_heads(self.heads))

    @property
    def reuses_keys(self) -> bool:
        """Keys of one layer are kept."""
        return self.heads is None

    @property
    def _set(self) -> HeadSet | None:
        return loaded_heads(self.heads)

    def adapted(self, spec: RankSpec) -> RankSpec:
        """With a head set: all heads of its highest layer. Raises `InputError` where the spec's read-out is not one of
        single heads, or documents leave early."""
        if (heads := self._set) is None:
            return spec
        spec.check_none_leaves("a head set needs every document at each of its layers")
        if spec.readout.joined_heads or spec.readout.signal_pooling != "arithmetic":
            raise InputError(
                "a head set reads each head on its own: not with RankSpec.joined_heads, nor with "
                "RankSpec.signal_pooling 'geometric'."
            )
        return spec.changed(layer=max(heads.by_layer), heads=None)

    def check(self, model: RankModel) -> None:
        """See `Scorer.check`."""
        super().check(model)
        if (heads := self._set) is not None:
            check_heads(heads, model)

    def needs(self, spec: RankSpec) -> Needs:
        """See `Scorer.needs`."""
        heads = self._set
        return super().needs(spec) if heads is None else Needs(layers=tuple(heads.by_layer))

    def identity(self) -> dict[str, Any]:
        """See `Scorer.identity`. The heads themselves, wherever they come from."""
        heads = self._set
        return {"name": self.name} if heads is None else {"name": self.name, "heads": heads.to_dict()}

    def prompts(self, request: RankRequest, writer: PromptWriter) -> Prompts:
        """See `Scorer.prompts`."""
        if not (writer.spec.prompt.query or writer.spec.prompt.answer):
            raise InputError("the template's query is empty: there are no signal tokens whose attention could be read.")
        return super().prompts(request, writer)

    def check_evidence(self, spec: RankSpec) -> None:
        """See `Scorer.check_evidence`."""
        if self.heads is not None:
            raise InputError("evidence is of the attention at one layer: not with a head set.")
        spec.check_none_leaves("evidence needs every document at the scoring layer")

    @property
    def has_logits(self) -> bool:
        """See `Scorer.has_logits`. Single heads are chosen, not trained."""
        return self.heads is None

    def wanted(self, model: RankModel, layout: PackedLayout) -> Wanted:
        """See `Scorer.wanted`."""
        del layout
        return Wanted.read_out(model.spec)

    def logits(self, model: RankModel, capture: Capture) -> Tensor:
        """See `Scorer.logits`."""
        layer = capture.only
        return log_scores(layer.q_GNH, layer.k_PKH, capture.layout, model.spec, layer.scale)

    def read(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
        """Scores (C,) that sum to one over a request's documents (unless the spec's softmax is over all keys)."""
        if evidence:
            self.check_evidence(model.spec)
        if (heads := self._set) is not None:
            return Scored(_of_heads(model, layout, heads))
        capture = model.read(layout)
        logs_C = self.logits(model, capture)
        if capture.exits:
            logs_C = _all_documents(logs_C, capture, layout)
        return Scored(logs_C.exp(), _evidence(model, capture) if evidence else None)


def _evidence(model: RankModel, capture: Capture) -> Tensor:
    """See `Scored.shares_R`."""
    layer = capture.only
    return token_shares(layer.q_GNH, layer.k_PKH, capture.layout, model.spec, layer.scale)


def _of_heads(model: RankModel, layout: PackedLayout, heads: HeadSet) -> Tensor:
    """(C,) mean of the shares by the heads of a set, layer by layer: keys of one layer alone are held."""
    scores_C = torch.zeros(len(layout.document_segment_C), device=model.device)

    def look(seen: LayerCapture) -> None:
        nonlocal scores_C
        weights = heads.by_layer[seen.layer]
        shares_CN = head_shares(seen.q_GNH, seen.k_PKH, layout, model.spec, seen.scale)[:, list(weights)]
        scores_C = scores_C + shares_CN @ shares_CN.new_tensor(list(weights.values()))

    model.forward(layout, Wanted(tuple(heads.by_layer), observer=look, keys=Wanted.read_out(model.spec).keys))
    return scores_C / heads.total


def _all_documents(logs_C: torch.Tensor, capture: Capture, layout: PackedLayout) -> torch.Tensor:
    """Log scores of all documents of a layout from those that stayed to the end, on the host."""
    assert capture.alive_C is not None, "documents left"
    found = with_exits(logs_C.cpu().numpy(), capture.alive_C, capture.exits, layout.document_request_C)
    return torch.from_numpy(found)
