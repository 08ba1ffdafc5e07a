"""E2Rank: documents are embedded alone, the query together with the best of them; a score is a cosine.

The prompts are those of the evaluation script of Alibaba-NLP/E2Rank (`src/eval.py`), whose checkpoints are read without
a `blockrank.json`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from blockrank.engine import Capture, Wanted
from blockrank.layout import PackedLayout, Segment, TokenisedRequest, pack, plan_batches
from blockrank.model import Needs, RankModel
from blockrank.scorers.base import Scored, Scorer
from blockrank.scorers.prompts import Prompts, PromptWriter, in_full_attention
from blockrank.spec import RankSpec, Template
from blockrank.types import InputError, RankRequest

_INSTRUCTION = "Given a web search query and some relevant documents, rerank the documents that answer the query:"
_NO_QUERY = Segment("query", np.zeros(0, dtype=np.int64), 0)


@dataclass(frozen=True)
class EmbeddingScorer(Scorer):
    """The cosine of each document's vector with that of a chat in which the first candidates stand before the query.

    A vector is the last hidden state of the last token. A document's depends on nothing but its text; the query's on
    the candidates that it is read with too, so that scores compare documents of one request alone.

    top: how many of the candidates, from the first, stand before the query. instruction: what the chat begins with.
    end: the token that a document's vector is read at; empty for its own last one.
    """

    name = "embedding"
    kind = "relative"
    zero_shot = True
    top: int = 20
    instruction: str = _INSTRUCTION
    end: str = "<|endoftext|>"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top < 1:
            raise InputError(f"top must be positive, not {self.top}.")

    def adapted(self, spec: RankSpec) -> RankSpec:
        """See `Scorer.adapted`."""
        chat = Template(
            instruction=(f"{self.instruction}\nDocuments:\n",),
            document=("[{id}] {text}\n",),
            query=("Search Query: {query}",),
            id_base=1,
            chat=True,
        )
        return in_full_attention(spec, chat)

    def needs(self, spec: RankSpec) -> Needs:
        """See `Scorer.needs`."""
        del spec
        return Needs(hidden=True)

    def check(self, model: RankModel) -> None:
        """See `Scorer.check`."""
        super().check(model)
        assert model.tokenizer is not None, "a ranker's model has a tokenizer"
        if self.end and (count := len(model.tokenizer.encode(self.end))) != 1:
            raise InputError(
                f"the scorer {self.name!r}: end must be one token of this tokenizer, and {self.end!r} is {count}."
            )

    def prompts(self, request: RankRequest, writer: PromptWriter) -> Prompts:
        """The chat, and each document alone."""
        documents = self._alone(request, writer)
        first = [index for part in documents for index in part.indices][: self.top]
        return Prompts((writer.write(request, read=first), *documents))

    def _alone(self, request: RankRequest, writer: PromptWriter) -> list[TokenisedRequest]:
        """A prompt for each document, which nothing stands before and only `end` behind."""
        template = Template(instruction=(), document=(f"{{text}}{self.end}",), query=("{query}",))
        written = writer.write_each(request, writer.spec.changed(template=template))
        return [replace(part, segments=(*part.segments[:-1], _NO_QUERY)) for part in written]

    def reuses(self, spec: RankSpec) -> bool:
        """A document's vector depends on its own tokens alone."""
        del spec
        return True

    def wanted(self, model: RankModel, layout: PackedLayout) -> Wanted:
        """See `Scorer.wanted`."""
        del model
        return Wanted(hidden_R=layout.last_B)

    def logits(self, model: RankModel, capture: Capture) -> Tensor:
        """Cosines (C,): of each document alone with the chat before it. See `Scorer.logits`."""
        del model
        vectors_PD, chat_P = _directions(capture), torch.from_numpy(_starts_chat(capture.layout))
        owner_P = (chat_P.cumsum(0) - 1).to(vectors_PD.device)
        alone_P = (~chat_P).to(vectors_PD.device)
        queries_BD, documents_CD = vectors_PD[~alone_P], vectors_PD[alone_P]
        return (documents_CD * queries_BD[owner_P[alone_P]]).sum(1)

    def score(
        self, model: RankModel, prompts: Sequence[Prompts], *, max_tokens: int, evidence: bool = False
    ) -> list[Scored]:
        """Scores in [-1, 1], see `Scorer.score`. Equal documents are computed once, and not at all where a store holds
        their vectors."""
        if evidence:
            self.check_evidence(model.spec)
        chats = [item.parts[0] for item in prompts]
        keys = [[_key(part, model) for part in item.parts[1:]] for item in prompts]
        alone = {
            key: part
            for item, own in zip(prompts, keys, strict=True)
            for key, part in zip(own, item.parts[1:], strict=True)
        }
        held = model.store.find(list(alone)) if model.store is not None else {}
        new = {key: part for key, part in alone.items() if key not in held}
        queries_BD, new_ND = _vectors(model, [*chats, *new.values()], max_tokens).tensor_split([len(chats)])
        vectors = {**held, **{key: new_ND[place : place + 1] for place, key in enumerate(new)}}
        if model.store is not None:
            for key in new:
                model.store.write(key, vectors[key])
        return [
            Scored((torch.cat([vectors[key] for key in own]) @ query_D).cpu())
            for own, query_D in zip(keys, queries_BD, strict=True)
        ]


def _starts_chat(layout: PackedLayout) -> NDArray[np.bool_]:
    """(P,) which prompts of a layout are chats: documents alone have no instruction."""
    starts_S, ends_S = layout.starts_S, layout.ends_S
    chat_P: NDArray[np.bool_] = (ends_S > starts_S)[layout.instruction_segment_B]
    return chat_P


def _directions(capture: Capture) -> Tensor:
    """(P, D) float32: the vector of each prompt, of length 1."""
    assert capture.hidden_RD is not None, "hidden states were asked for"
    return F.normalize(capture.hidden_RD.float(), dim=1)


def _key(document: TokenisedRequest, model: RankModel) -> bytes:
    """All that a document's vector depends on beside the weights."""
    found = hashlib.blake2b(f"vector|{model.arithmetic}|".encode(), digest_size=16)
    for segment in document.segments:
        found.update(segment.ids.tobytes())
    return found.digest()


def _vectors(model: RankModel, parts: Sequence[TokenisedRequest], max_tokens: int) -> Tensor:
    """(N, D) float32, of length 1: the last hidden state of each prompt's last token."""
    found: list[Tensor] = []
    for batch in plan_batches([part.length for part in parts], max_tokens):
        if found:
            model.give_turn()
        layout = pack(parts[batch], model.spec)
        found.append(_directions(model.forward(layout, Wanted(hidden_R=layout.last_B))))
    return torch.cat(found)
