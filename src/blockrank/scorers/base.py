"""The scorer seam: from a request to prompts, and from those and a model to one score per document."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from blockrank.configfile import check_fields
from blockrank.engine.capture import Capture, Wanted
from blockrank.layout import PackedLayout, PromptTokenizer, TokenisedRequest, pack, plan_batches
from blockrank.model import Needs, RankModel
from blockrank.scorers.prompts import Prompts, PromptWriter
from blockrank.spec import RankSpec
from blockrank.types import InputError, ModelError, RankRequest, ScoreKind


@dataclass(frozen=True, slots=True)
class Scored:
    """What a scorer says of some documents.

    scores_C: one score per document, float32. shares_R: where it was asked for, the part of its document's attention
    that each token of the documents received; the parts of a document sum to one.

    Of scorers that read what the model wrote: unscored_C: True for the documents of which it said nothing; they have no
    score, whatever stands there, and come last. repaired: how many of its answers could not be taken as they were.
    warnings: sentences that say what became of them, for whoever sees the ranking.
    """

    scores_C: Tensor
    shares_R: Tensor | None = None
    unscored_C: Tensor | None = None
    repaired: int = 0
    warnings: tuple[str, ...] = ()

    def cpu(self) -> Scored:
        """The same on the host."""
        shares_R, unscored_C = (None if part is None else part.cpu() for part in (self.shares_R, self.unscored_C))
        return replace(self, scores_C=self.scores_C.cpu(), shares_R=shares_R, unscored_C=unscored_C)

    def apart(self, prompts: Sequence[TokenisedRequest]) -> list[Scored]:
        """The parts of several prompts that follow each other in a layout."""
        written = self.unscored_C is not None or self.repaired or self.warnings
        assert not written, "what was written belongs to one prompt"
        rows_BM = [[len(segment.ids) for segment in prompt.documents] for prompt in prompts]
        scores_BC = torch.split(self.scores_C, [len(rows) for rows in rows_BM])
        if self.shares_R is None:
            return [Scored(scores_C) for scores_C in scores_BC]
        return [
            Scored(*parts) for parts in zip(scores_BC, torch.split(self.shares_R, [*map(sum, rows_BM)]), strict=True)
        ]


class Scorer(ABC):
    """Makes its own prompts of a request, and scores the documents in them.

    A subclass sets `name` and `kind` (see `ScoreKind`) and, as a frozen dataclass, has its settings as fields. It holds
    nothing else: one serves many requests, from several threads. zero_shot: whether it reads checkpoints that say
    nothing of how they are read; all that it reads them by is then in `adapted`.
    """

    name: ClassVar[str]
    zero_shot: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the settings of a dataclass, which alone comes here, against their annotations."""
        check_fields(self)

    @property
    @abstractmethod
    def kind(self) -> ScoreKind:
        """What its scores are."""

    def adapted(self, spec: RankSpec) -> RankSpec:
        """The spec under which it reads a checkpoint: with a template, a pattern or limits of its own.

        What it gives for a spec that it has adapted is that spec. The model is checked under it when it is loaded.
        """
        return spec

    def worded(self, spec: RankSpec, tokenizer: PromptTokenizer) -> RankSpec:
        """The spec by which its prompts are written with a tokenizer, where its template depends on that."""
        del tokenizer
        return spec

    def needs(self, spec: RankSpec) -> Needs:
        """What of a checkpoint is loaded for it: the spec's layer if nothing else is said."""
        return Needs(layers=(spec.readout.layer,))

    def check(self, model: RankModel) -> None:
        """Raise `ModelError` or `InputError` where it cannot read a model, before any request comes."""
        needs, there = self.needs(model.spec), model.weights.module.config.num_hidden_layers
        if needs.head and not model.weights.has_head:
            raise ModelError(
                f"{model.name or 'the model'} has no language-model head, or was loaded without it: the scorer "
                f"{self.name!r} needs it."
            )
        if needs.encoder_decoder != model.module.config.is_encoder_decoder:
            reads = "an encoder-decoder" if needs.encoder_decoder else "a model that is no encoder-decoder"
            raise ModelError(f"the scorer {self.name!r} reads {reads}, and {model.name or 'the model'} is none.")
        if needs.score and not hasattr(model.module, "score"):
            raise ModelError(
                f"{model.name or 'the model'} has no head that gives one score, or was loaded without it: the scorer "
                f"{self.name!r} needs it."
            )
        if (depth := needs.depth(model.spec.readout.layer)) > there:
            raise ModelError(
                f"{model.name or 'the model'} has {there} layers, and the scorer {self.name!r} reads layer {depth - 1}."
            )

    @property
    def reuses_keys(self) -> bool:
        """Whether it reads documents at the spec's layer alone, so that their keys may be kept for later requests."""
        return False

    def check_evidence(self, spec: RankSpec) -> None:
        """Raise `InputError` where it cannot say where a score comes from."""
        del spec
        raise InputError(f"the scorer {self.name!r} gives no evidence.")

    def prompts(self, request: RankRequest, writer: PromptWriter) -> Prompts:
        """The prompts of a request: one with all its documents if nothing else is said.

        Raises `InputError` on what cannot be read.
        """
        return Prompts((writer.write(request),))

    def reuses(self, spec: RankSpec) -> bool:
        """Whether a store is of use to it: what it computes of a document may serve many requests."""
        return self.reuses_keys and spec.reuses_documents

    @abstractmethod
    def score(
        self, model: RankModel, prompts: Sequence[Prompts], *, max_tokens: int, evidence: bool = False
    ) -> list[Scored]:
        """For the prompts of each request one score per document, on the host, in the order of their `indices`.

        max_tokens: of prompts that share a forward; a longer one runs alone. evidence: whether the parts of each
        document's tokens are wanted too.
        """

    @property
    def has_logits(self) -> bool:
        """Whether `wanted` and `logits` say something of its scores: then they can be trained."""
        return type(self).logits is not Scorer.logits

    def wanted(self, model: RankModel, layout: PackedLayout) -> Wanted:
        """What a forward of the prompts of some requests must hand out for `logits`; in training an answer may follow
        a prompt. Asked of scorers that have logits."""
        raise NotImplementedError

    def logits(self, model: RankModel, capture: Capture) -> Tensor:
        """(C,) float32, differentiable, of the candidates of those requests in the order of `Prompts.indices`:
        logarithms of shares where scores are shares, else any numbers whose sigmoid or softmax says how relevant
        documents are."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """What tells it from others in a record: its name and settings, JSON-ready. Settings that are None are left
        out, as in records from before there were such settings."""
        kind: Any = type(self)
        keys = [item.name for item in fields(kind)] if is_dataclass(kind) else []
        return {"name": self.name, **{key: value for key in keys if (value := getattr(self, key)) is not None}}


class LayoutScorer(Scorer):
    """A scorer that reads packed layouts, each prompt for itself: mostly one forward and a read-out."""

    @abstractmethod
    def read(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
        """Score the documents of a packed layout, in its order."""

    def combined(self, prompts: Prompts, parts: Sequence[Scored]) -> Scored:
        """The scores of a request from those of its prompts; of a document in several prompts the mean.

        That is for scores that mean the same in every prompt. Where they do not, as shares and orders, a scorer of
        several prompts combines them in its own way.
        """
        if len(parts) == 1:
            return parts[0]
        assert self.kind in ("logit", "probability"), f"{self.kind} scores of several prompts have no mean"
        at = torch.tensor([index for part in prompts.parts for index in part.indices])
        places = torch.searchsorted(torch.tensor(prompts.indices), at)
        sums, counts = torch.zeros(2, len(prompts.indices), dtype=torch.float64)
        sums.index_add_(0, places, torch.cat([part.scores_C for part in parts]).double())
        counts.index_add_(0, places, torch.ones(len(places), dtype=torch.float64))
        return Scored((sums / counts).float())

    def score(
        self, model: RankModel, prompts: Sequence[Prompts], *, max_tokens: int, evidence: bool = False
    ) -> list[Scored]:
        """See `Scorer.score`."""
        parts = [part for item in prompts for part in item.parts]
        found: list[Scored] = []
        for batch in plan_batches([part.length for part in parts], max_tokens):
            if found:
                model.give_turn()
            layout = pack(parts[batch], model.spec)
            found += self.read(model, layout, evidence=evidence).cpu().apart(parts[batch])
        scored = iter(found)
        return [self.combined(item, _next(scored, len(item.parts))) for item in prompts]


def _next(scored: Iterator[Scored], count: int) -> list[Scored]:
    return [next(scored) for _ in range(count)]
