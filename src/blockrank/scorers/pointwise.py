"""Each document alone with the query, all documents of a request in one forward.

A causal model reads a document's tokens after instruction and query, and nothing else: under the block mask, where all
documents start at the same position, one forward gives what a prompt for each document would give, and runs instruction
and query once.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

from torch import Tensor

from blockrank.engine import Capture, Wanted
from blockrank.layout import Ints, PackedLayout
from blockrank.model import Needs, RankModel
from blockrank.scorers.base import LayoutScorer, Scored
from blockrank.scorers.prompts import Prompts, PromptWriter
from blockrank.spec import TEMPLATES, RankSpec, Template
from blockrank.spec.templates import SEARCH_TASK
from blockrank.types import InputError, RankRequest


@dataclass(frozen=True)
class AloneScorer(LayoutScorer):
    """Reads what a model makes of the query and one document, at the last token of the document's segment.

    A checkpoint whose spec names the scorer is asked in the words of its template, if that ends in the documents.
    packed: all documents in one prompt under the block mask; else one prompt for each, in full attention, for models
    that attend in other ways too. Scores are the same.
    """

    zero_shot = True
    packed: bool = True

    @abstractmethod
    def template(self, spec: RankSpec) -> Template:
        """The prompt, which ends in the documents (`Template.ends_in_documents`)."""

    def adapted(self, spec: RankSpec) -> RankSpec:
        """See `Scorer.adapted`."""
        return spec.changed(
            template=self.template(spec),
            pattern="block" if self.packed else "causal",
            document_attention="causal",
            query_attention="causal",
            query_reads="own" if self.packed else "all",  # nothing reads the documents: devices may share them
            query_offset=None,
            prune=(),
        )

    def own_prompt(self, spec: RankSpec) -> Template | None:
        """The prompt of a checkpoint that names the scorer, None where it has none that the scorer could read."""
        is_named = spec.scorer.partition(":")[0] == self.name
        return spec.prompt if is_named and spec.prompt.ends_in_documents else None

    def prompts(self, request: RankRequest, writer: PromptWriter) -> Prompts:
        """See `Scorer.prompts`."""
        return super().prompts(request, writer) if self.packed else Prompts(writer.write_each(request))


def last_tokens(layout: PackedLayout) -> Ints:
    """(C,) stream positions of the last token of each document."""
    return layout.ends_S[layout.document_segment_C] - 1


@dataclass(frozen=True)
class PointwiseScorer(AloneScorer):
    """The probability that the model answers `yes` and not `no` when it is asked whether a document fits the query.

    yes, no: texts of one token each. instruction: what is searched for, as Qwen3-Reranker is told it.
    """

    name = "pointwise"
    kind = "probability"
    yes: str = "yes"
    no: str = "no"
    instruction: str = SEARCH_TASK

    def template(self, spec: RankSpec) -> Template:
        """See `AloneScorer.template`."""
        prompt = self.own_prompt(spec) or TEMPLATES["pointwise"]
        told = tuple(piece.replace(SEARCH_TASK, self.instruction) for piece in prompt.instruction)
        if self.instruction != SEARCH_TASK and not any(self.instruction in piece for piece in told):
            raise InputError(
                f"the scorer {self.name!r}: the checkpoint's own prompt has no place for another instruction."
            )
        return replace(prompt, instruction=told)

    def needs(self, spec: RankSpec) -> Needs:
        """See `Scorer.needs`."""
        del spec
        return Needs(logits=True)

    def check(self, model: RankModel) -> None:
        """See `Scorer.check`."""
        super().check(model)
        no, yes = self._answers(model)
        if no == yes:
            raise InputError(f"the scorer {self.name!r}: yes {self.yes!r} and no {self.no!r} are the same token.")

    def read(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
        """Scores (C,) in [0, 1]. Logits are computed for one row a document, of the whole vocabulary: beside the
        document's other tokens that is less than a hundredth of the work."""
        if evidence:
            self.check_evidence(model.spec)
        return Scored(self.logits(model, model.forward(layout, self.wanted(model, layout))).sigmoid())

    def wanted(self, model: RankModel, layout: PackedLayout) -> Wanted:
        """See `Scorer.wanted`."""
        del model
        return Wanted(logits_R=last_tokens(layout))

    def logits(self, model: RankModel, capture: Capture) -> Tensor:
        """Log-odds (C,) of yes against no."""
        assert capture.logits_RV is not None, "logits were asked for"
        no, yes = self._answers(model)
        return capture.logits_RV[:, yes].float() - capture.logits_RV[:, no].float()

    def _answers(self, model: RankModel) -> list[int]:
        """The tokens of no and yes."""
        assert model.tokenizer is not None, "a ranker's model has a tokenizer"
        found = []
        for name, text in (("no", self.no), ("yes", self.yes)):
            ids = model.tokenizer.encode(text)
            if len(ids) != 1:
                raise InputError(
                    f"the scorer {self.name!r}: {name} must be one token of this tokenizer, and {text!r} is {len(ids)}."
                )
            found.append(int(ids[0]))
        return found
