"""Labels as the next token: the logit of each document's label where the answer begins, in one forward."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from string import ascii_uppercase
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from blockrank.decode import check_spec
from blockrank.engine.capture import Capture, Wanted
from blockrank.layout import Ints, PackedLayout, PromptTokenizer
from blockrank.model import Needs, RankModel
from blockrank.scorers.base import LayoutScorer, Scored
from blockrank.scorers.prompts import Prompts, PromptWriter
from blockrank.spec import RankSpec, Template
from blockrank.types import InputError, RankRequest


def label_tokens(tokenizer: PromptTokenizer, template: Template, lead: str, most: int) -> list[int]:
    """The token of each label right after the answer's opening, for up to `most` documents.

    lead: what stands between opening and label. Ends before the first label that is not one token there, or is the
    token of another: "10" begins as "1" does where a tokenizer splits numbers, and no logit could tell them apart.
    """
    opened, found = tokenizer.encode(template.answer).tolist(), list[int]()
    for place in range(min(most, len(ascii_uppercase)) if template.ids == "letters" else most):
        parts = [template.answer, lead + template.id(place), template.answer_end]
        opening, label, _ = (ids.tolist() for ids in tokenizer.encode_parts(parts))
        if opening != opened or len(label) != 1 or label[0] in found:
            break
        found += label
    return found


def label_log_shares(logits_BV: Tensor, tokens: list[int], counts_B: Ints) -> Tensor:
    """Logarithms (C,) of the shares of the documents of all requests: each request's softmax over the labels of its own
    documents.

    logits_BV: of the next token; tokens: of the labels in their order; counts_B: how many of them a request has.
    """
    z_BM = logits_BV[:, tokens].float()
    real_BM = torch.from_numpy(np.arange(len(tokens)) < counts_B[:, None]).to(z_BM.device)
    return z_BM.masked_fill(~real_BM, -torch.inf).log_softmax(1)[real_BM]


@dataclass(frozen=True)
class LabelScorer(LayoutScorer):
    """Asks for the best document by its label; the next token's probabilities among the labels order all of them."""

    kind = "share"
    zero_shot = True
    lead: ClassVar[str] = ""

    @abstractmethod
    def template(self, tokenizer: PromptTokenizer, spec: RankSpec) -> str | Template:
        """The template of its prompts with a tokenizer; spec: as it has adapted it."""

    def worded(self, spec: RankSpec, tokenizer: PromptTokenizer) -> RankSpec:
        """See `Scorer.worded`."""
        return spec.changed(template=self.template(tokenizer, spec))

    def needs(self, spec: RankSpec) -> Needs:
        """See `Scorer.needs`."""
        del spec
        return Needs(logits=True)

    def check(self, model: RankModel) -> None:
        """See `Scorer.check`."""
        super().check(model)
        assert model.tokenizer is not None, "labels need a tokenizer"
        self._tokens(model.tokenizer, model.spec, 2)

    def prompts(self, request: RankRequest, writer: PromptWriter) -> Prompts:
        """See `Scorer.prompts`."""
        self._tokens(writer.tokenizer, writer.spec, len(request.readable))
        return Prompts((writer.write(request, self.worded(writer.spec, writer.tokenizer)),))

    def read(self, model: RankModel, layout: PackedLayout, *, evidence: bool = False) -> Scored:
        """Shares (C,) that sum to one over a request's documents."""
        if evidence:
            self.check_evidence(model.spec)
        return Scored(self.logits(model, model.forward(layout, self.wanted(model, layout))).exp())

    def wanted(self, model: RankModel, layout: PackedLayout) -> Wanted:
        """See `Scorer.wanted`."""
        del model
        return Wanted(logits_R=layout.opened_B)

    def logits(self, model: RankModel, capture: Capture) -> Tensor:
        """See `Scorer.logits`."""
        assert model.tokenizer is not None, "labels need a tokenizer"
        assert capture.logits_RV is not None, "asked for"
        counts_B = np.bincount(capture.layout.document_request_C, minlength=capture.layout.requests)
        tokens = self._tokens(model.tokenizer, model.spec, int(counts_B.max()))
        return label_log_shares(capture.logits_RV, tokens, counts_B)

    def _tokens(self, tokenizer: PromptTokenizer, spec: RankSpec, count: int) -> list[int]:
        """The tokens of the labels of `count` documents. Raises `InputError` where there are not so many."""
        check_spec(spec, f"the scorer {self.name!r}")
        template = self.worded(spec, tokenizer).prompt
        if not (template.answer and template.numbers_documents):
            raise InputError(
                f"the scorer {self.name!r} needs a template that names documents, and an answer's opening."
            )
        found = label_tokens(tokenizer, template, self.lead, count)
        if len(found) == count:
            return found
        reach = f"this tokenizer has {len(found)} {template.ids} that are one token each"
        if len(found) < 2:
            raise InputError(
                f"{reach} after {template.answer!r}: the scorer {self.name!r} cannot tell documents apart."
            )
        size = min(len(found), 20)
        raise InputError(
            f"{count} documents are more than the scorer {self.name!r} can tell apart ({reach}): rank fewer at once, "
            f"with the strategy 'sliding:size={size},step={size // 2}'."
        )
