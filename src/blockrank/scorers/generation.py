"""Scorers that let the model write an answer, and read it."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from blockrank.decode import Generated, Sampling, generate
from blockrank.layout import TokenisedRequest
from blockrank.model import Needs, RankModel
from blockrank.scorers.base import Scored, Scorer
from blockrank.scorers.prompts import Prompts, in_full_attention
from blockrank.spec import RankSpec, Template


@dataclass(frozen=True)
class GenerationScorer(Scorer):
    """A scorer of one prompt a request, whose scores are in the text that the model writes after it.

    A subclass says how the text is written (`sampling`) and what it means (`read`). What it writes depends on the
    prompt and the settings: the random numbers of a prompt are seeded by `seed` and its own tokens, so that they are
    the same in whatever batch, and when work is resumed.
    """

    zero_shot = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.sampling  # which checks its settings

    @property
    @abstractmethod
    def template(self) -> Template:
        """The prompt."""

    @property
    @abstractmethod
    def sampling(self) -> Sampling:
        """How the text is written."""

    @abstractmethod
    def read(self, answer: Generated, prompt: TokenisedRequest) -> Scored:
        """Scores of the documents of a prompt, on the host, from what was written after it."""

    def adapted(self, spec: RankSpec) -> RankSpec:
        """Its own prompt under full attention. See `Scorer.adapted`."""
        return in_full_attention(spec, self.template)

    def needs(self, spec: RankSpec) -> Needs:
        """See `Scorer.needs`."""
        del spec
        return Needs(generation=True)

    def score(
        self, model: RankModel, prompts: Sequence[Prompts], *, max_tokens: int, evidence: bool = False
    ) -> list[Scored]:
        """See `Scorer.score`."""
        if evidence:
            self.check_evidence(model.spec)
        parts = [item.only for item in prompts]
        seeds = [self._seed(part) for part in parts]
        answers = generate(model, parts, self.sampling, seeds=seeds, max_tokens=max_tokens)
        return [self.read(answer, part) for answer, part in zip(answers, parts, strict=True)]

    def _seed(self, prompt: TokenisedRequest) -> int:
        """The seed of a prompt's random numbers."""
        found = hashlib.blake2b(str(self.seed).encode(), digest_size=8)
        for segment in prompt.segments:
            found.update(segment.ids.tobytes())
        return int.from_bytes(found.digest(), "little")


def last_answer(text: str) -> str | None:
    """What stands in the last `<answer>` of a text, None where there is none.

    One that is not closed goes to the end, less a number there, of which digits may be missing.
    """
    _, opening, rest = text.rpartition("<answer>")
    block, closing, _ = rest.partition("</answer>")
    if not opening:
        return None
    return block if closing else block.rstrip("0123456789.")
