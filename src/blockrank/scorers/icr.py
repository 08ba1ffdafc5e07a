"""In-Context Re-ranking: what the query's tokens read of each document, over many layers and heads, less what they read
when there is no query (arXiv 2410.02642)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from blockrank.engine.capture import LayerCapture, Wanted
from blockrank.layout import PackedLayout
from blockrank.model import Needs, RankModel
from blockrank.readout.context import ContextAttention, HeadWeights, document_sums
from blockrank.scorers.base import LayoutScorer, Scored
from blockrank.scorers.heads import check_heads, loaded_heads
from blockrank.scorers.prompts import Prompts, PromptWriter
from blockrank.spec import Exits, HeadSet, Pattern, RankSpec, Readout, Template
from blockrank.types import InputError, ModelError, RankRequest

CONTENT_FREE = "N/A"
_SEPARATOR = "\n\n"
_LATE = {
    "qa": "Answer the following question with the help of the paragraphs above.",
    "ie": "Find what in the paragraphs above is relevant to the following query.",
}
_WINDOW = re.compile(r"(\d+)\.\.(\d+)")
# Under the block pattern: how far behind a document's longest the query stands, at least as long as the instruction.
_BEHIND = 128

Layers = tuple[int, ...]


def icr_template(task: Literal["qa", "ie"]) -> Template:
    """The prompt: documents first, the query last. Separators are pieces of their own and belong to no document."""
    return Template(
        instruction=("Here are some paragraphs:",),
        document=(_SEPARATOR, "[{id}] {text}"),
        query=(_SEPARATOR, f"{_LATE[task]}{_SEPARATOR}Query: {{query}}"),
        id_base=1,
        chat=True,
    )


@dataclass(frozen=True)
class IcrScorer(LayoutScorer):
    """Attention of the query's tokens to each document, for any causal language model, without training.

    A token's value is the model's own attention to it, softmax over the whole context, as the mean over all tokens from
    the late instruction to the end of the prompt, summed over layers and heads. A score is the sum over the document's
    tokens, its number included. It compares documents of one request.

    layers: which are read, as a list or a window "8..11"; all if left out. The forward ends after the highest.
    heads: a `HeadSet`, or its name or file, in place of `layers`. calibrate: take off what the same tokens receive when
    the query is "N/A"; both queries read the same keys, in one forward. token_filter: leave out tokens at least two
    standard deviations below the mean of their document. order: of the documents in the prompt: the first stage's best
    last, next to the query, or first. task: words of the late instruction: answer a question, or find information.
    pattern: "causal", full attention, as models are trained and as in the paper; "block" is an approximation in which
    documents do not read each other, which models without training for it have never seen.
    """

    name = "icr"
    kind = "relative"
    zero_shot = True
    layers: Layers | str | None = None
    heads: HeadSet | str | None = None
    calibrate: bool = True
    token_filter: bool = True
    order: Literal["best_last", "best_first"] = "best_last"
    task: Literal["qa", "ie"] = "qa"
    pattern: Literal["causal", "block"] = "causal"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", _layers(self.layers))
        object.__setattr__(self, "heads", loaded_heads(self.heads))
        if self.layers is not None and self.heads is not None:
            raise InputError("icr takes layers or heads, not both: a head set says which layers it reads.")

    @property
    def _chosen(self) -> Mapping[int, HeadWeights | None] | None:
        """Layers and their heads; None for all of them."""
        if (heads := loaded_heads(self.heads)) is not None:
            return heads.by_layer
        layers = _layers(self.layers)
        return None if layers is None else dict.fromkeys(layers)

    def adapted(self, spec: RankSpec) -> RankSpec:
        """See `Scorer.adapted`: the limits are the checkpoint's, everything else is said here."""
        chosen = self._chosen
        offset = None if self.pattern == "causal" else spec.limits.max_segment_tokens + _BEHIND
        return replace(
            spec,
            readout=Readout(layer=0 if chosen is None else max(chosen), signal_tokens="query"),
            template=icr_template(self.task),
            pattern=Pattern(kind=self.pattern, query_offset=offset),
            exits=Exits(),
        )

    def needs(self, spec: RankSpec) -> Needs:
        """See `Scorer.needs`."""
        del spec
        return Needs(hidden=True) if self._chosen is None else Needs(layers=tuple(self._chosen))

    def check(self, model: RankModel) -> None:
        """See `Scorer.check`."""
        super().check(model)
        loaded = model.module.config.num_hidden_layers
        if self._chosen is None and loaded < model.weights.layers:
            raise ModelError(
                f"{model.name or 'the model'} was loaded with {loaded} of its {model.weights.layers} layers, and the "
                f"scorer {self.name!r} reads all: name the layers."
            )
        if (heads := loaded_heads(self.heads)) is not None:
            check_heads(heads, model)

    def identity(self) -> dict[str, Any]:
        """See `Scorer.identity`. The heads themselves, wherever they come from."""
        heads = loaded_heads(self.heads)
        return {**super().identity(), "heads": None if heads is None else heads.to_dict()}

    def prompts(self, request: RankRequest, writer: PromptWriter) -> Prompts:
        """See `Scorer.prompts`: one prompt; where calibrated, with the content-free query as a second query segment."""
        read = request.readable if self.order == "best_first" else request.readable[::-1]
        prompt = writer.write(request, read=read)
        if not self.calibrate:
            return Prompts((prompt,))
        empty = replace(request, query=CONTENT_FREE, evidence=False)
        other = writer.write(empty, read=prompt.indices[:1]).segments[-1]
        return Prompts((replace(prompt, segments=(*prompt.segments, other)),))

    def read(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
        """Scores (C,): any number; of calibrated ones below zero where a document is read less than without a query."""
        if evidence:
            self.check_evidence(model.spec)
        assert model.tokenizer is not None, "prompts were made with it"
        skipped = len(model.tokenizer.encode(_SEPARATOR))
        received_QT = self._received(model, layout, skipped)
        values_T = received_QT[0] - received_QT[1] if self.calibrate else received_QT[0]
        return Scored(document_sums(values_T, layout, skipped, without_outliers=self.token_filter))

    def _received(self, model: RankModel, layout: PackedLayout, skipped: int) -> Tensor:
        """(Q, T) attention that each token receives of each query segment of its request."""
        chosen = self._chosen
        if chosen is None:
            chosen = dict.fromkeys(range(model.module.config.num_hidden_layers))
        attention = ContextAttention(layout, model.device, skipped)

        def look(seen: LayerCapture) -> None:
            attention.add(seen.q_GNH, seen.k_PKH, seen.scale, chosen[seen.layer])

        model.forward(layout, Wanted(tuple(chosen), observer=look))
        return attention.sums_QT


def _layers(layers: Layers | str | None) -> Layers | None:
    """Layers of a setting, rising. Raises `InputError` where there are none, or a window is written otherwise."""
    if isinstance(layers, str):
        if (window := _WINDOW.fullmatch(layers.strip())) is None:
            raise InputError(f"layers must be a list or a window such as '8..11', not {layers!r}.")
        layers = tuple(range(int(window[1]), int(window[2]) + 1))
    if layers is None:
        return None
    if not layers or min(layers) < 0 or len(set(layers)) < len(layers):
        raise InputError(f"layers must be distinct, at least one, and are counted from 0, not {list(layers)}.")
    return tuple(sorted(layers))
