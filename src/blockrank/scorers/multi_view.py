"""MVP (arXiv 2509.07485): an encoder reads each document alone into a few vectors, a decoder looks at all of them once.

Prompt and computation are those of the released code, whose checkpoints are read without a `blockrank.json`. The model
is a T5: its positions are biases inside attention, and its decoder attends to vectors, so that no layout is packed for
it. The library's own two stacks are called, the encoder on batches padded to their longest prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blockrank.layout import TokenisedRequest, plan_alike
from blockrank.model import Needs, RankModel
from blockrank.scorers.base import Scored, Scorer
from blockrank.scorers.prompts import Prompts, PromptWriter, in_full_attention
from blockrank.spec import RankSpec, Template
from blockrank.types import InputError, ModelError, RankRequest

_END = "</s>"


@dataclass(frozen=True)
class MultiViewScorer(Scorer):
    """The product of a document's vectors with those that a decoder makes of all documents' vectors: one pair a view.

    A prompt is view tokens, query and one document, and a document's vectors are what the encoder makes of the view
    tokens. The decoder takes one step for each view and attends to that view's vectors, which have no positions there:
    the order of the candidates has no part in a score. The other candidates have, so that scores compare documents of
    one request alone.

    views: how many view tokens, `<extra_id_0>` and so on; the number that the checkpoint was trained with.
    """

    name = "multi_view"
    kind = "relative"
    zero_shot = True
    views: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views < 1:
            raise InputError(f"views must be positive, not {self.views}.")

    @property
    def _tokens(self) -> list[str]:
        return [f"<extra_id_{view}>" for view in range(self.views)]

    def adapted(self, spec: RankSpec) -> RankSpec:
        """See `Scorer.adapted`."""
        template = Template(
            instruction=(f"{''.join(self._tokens)} | Query: {{query}} | Context:",),
            document=(f"{{text}}{_END}",),
            query=(),
        )
        return in_full_attention(spec, template)

    def needs(self, spec: RankSpec) -> Needs:
        """See `Scorer.needs`."""
        del spec
        return Needs(encoder_decoder=True)

    def check(self, model: RankModel) -> None:
        """See `Scorer.check`."""
        super().check(model)
        assert model.tokenizer is not None, "a ranker's model has a tokenizer"
        if missing := [token for token in self._tokens if token not in model.tokenizer.control_tokens]:
            raise ModelError(
                f"the scorer {self.name!r}: {model.name or 'the model'} has no token {missing[0]}, which is a view."
            )

    def prompts(self, request: RankRequest, writer: PromptWriter) -> Prompts:
        """A prompt for each document alone."""
        return Prompts(writer.write_each(request))

    def score(
        self, model: RankModel, prompts: Sequence[Prompts], *, max_tokens: int, evidence: bool = False
    ) -> list[Scored]:
        """Scores, any numbers; see `Scorer.score`."""
        if evidence:
            self.check_evidence(model.spec)
        vectors_NVD = self._encoded(model, [part for item in prompts for part in item.parts], max_tokens)
        counts = [len(item.parts) for item in prompts]
        return [Scored(_scores(model.module, own_CVD)).cpu() for own_CVD in torch.split(vectors_NVD, counts)]

    def _encoded(self, model: RankModel, parts: Sequence[TokenisedRequest], max_tokens: int) -> Tensor:
        """(N, V, D): what the encoder makes of the V view tokens of each prompt, which are its first."""
        groups = plan_alike([part.length for part in parts], max_tokens)
        found: list[Tensor] = []
        for group in groups:
            if found:
                model.give_turn()
            ids_NL, mask_NL = _padded([parts[index] for index in group], model.module.config.pad_token_id)
            states = model.module.encoder(
                input_ids=torch.from_numpy(ids_NL).to(model.device, non_blocking=True),
                attention_mask=torch.from_numpy(mask_NL).to(model.device, non_blocking=True),
            )
            found.append(states.last_hidden_state[:, : self.views].clone())  # not a view: the other states may go
        places = torch.from_numpy(np.argsort(np.concatenate(groups))).to(model.device)
        return torch.cat(found)[places]


def _padded(parts: Sequence[TokenisedRequest], pad: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(N, L) ids of prompts, padded at the end, and (N, L) which of them are tokens."""
    lengths_N = np.array([part.length for part in parts])
    mask_NL = np.arange(lengths_N.max()) < lengths_N[:, None]
    ids_NL = np.full(mask_NL.shape, pad, dtype=np.int64)
    ids_NL[mask_NL] = np.concatenate([segment.ids for part in parts for segment in part.segments])
    return ids_NL, mask_NL.astype(np.int64)


def _scores(module: Any, vectors_CVD: Tensor) -> Tensor:
    """(C,) float32: the mean over views of each document's product with what one step of the decoder makes of all."""
    vectors_VCD = vectors_CVD.transpose(0, 1)
    start_D = module.shared.weight[module.config.pad_token_id]
    anchors_V1D: Tensor = module.decoder(
        inputs_embeds=start_D.expand(len(vectors_VCD), 1, -1), encoder_hidden_states=vectors_VCD, use_cache=False
    ).last_hidden_state
    return (vectors_VCD.float() * anchors_V1D.float()).sum(2).mean(0)
