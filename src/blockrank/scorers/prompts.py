"""What a scorer makes of a request: the prompts that are run for it, as tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from blockrank.layout import Memo, PromptTokenizer, Segment, TokenisedRequest
from blockrank.spec import RankSpec, Template
from blockrank.types import Cut, RankRequest


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of one request, in the order that its scorer wants them; mostly one.

    A document may stand in several of them, or in none where nothing of it can be read.
    """

    parts: tuple[TokenisedRequest, ...]

    @property
    def only(self) -> TokenisedRequest:
        """The prompt, of a request that has one."""
        [part] = self.parts
        return part

    @property
    def length(self) -> int:
        """Tokens over all prompts."""
        return sum(part.length for part in self.parts)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(part.length for part in self.parts)

    @property
    def query_cut(self) -> int:
        """Tokens that the query lost."""
        return max(part.query_cut for part in self.parts)

    @property
    def documents(self) -> tuple[Segment, ...]:
        """A segment for each of `indices`: what was read of the document where it stands first, or lost most."""
        return self.parts[0].documents if len(self.parts) == 1 else tuple(self._first().values())

    @property
    def indices(self) -> Sequence[int]:
        """The candidates of which any prompt has something, by their index in the request: in the order of the prompt
        where there is one, else rising. Scores are in this order."""
        return self.parts[0].indices if len(self.parts) == 1 else tuple(self._first())

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """The documents that lost tokens."""
        found = zip(self.indices, self.documents, strict=True)
        return tuple(Cut(index, segment.cut, segment.cut_is_estimate) for index, segment in found if segment.cut)

    def _first(self) -> dict[int, Segment]:
        """A segment of each candidate, by its index: the first, or one of which more was cut."""
        found: dict[int, Segment] = {}
        for part in self.parts:
            for index, segment in zip(part.indices, part.documents, strict=True):
                if index not in found or segment.cut > found[index].cut:
                    found[index] = segment
        return dict(sorted(found.items()))


def in_full_attention(spec: RankSpec, template: str | Template) -> RankSpec:
    """The spec under which a prompt of a scorer's own is read as any causal model was trained: every token reads all
    before it, segments stand one after the other, and no document leaves early."""
    return spec.changed(
        template=template,
        pattern="causal",
        document_attention="causal",
        query_attention="causal",
        query_reads="all",
        query_offset=None,
        prune=(),
    )


def under_prompt(spec: RankSpec, *templates: str) -> RankSpec:
    """The spec under which a prompt is read that a checkpoint may know nothing of: with the first of the built-in
    templates, in full attention. A spec with one of them stays as it is."""
    return spec if spec.template in templates else in_full_attention(spec, templates[0])


@dataclass(frozen=True, slots=True)
class PromptWriter:
    """Writes prompts in the tokens of one model, within the limits of one request.

    spec: how its prompts are written if nothing else is said. memo: keeps segments that have been tokenised. between:
    called now and then, between documents; what it raises ends the work. answer: indices of the candidates that are
    listed behind a prompt, in training, best first; the prompt ends before an answer if left out.
    """

    tokenizer: PromptTokenizer
    spec: RankSpec
    memo: Memo[Segment] | None = None
    between: Callable[[], None] | None = None
    answer: tuple[int, ...] | None = None

    def write(
        self, request: RankRequest, spec: RankSpec | None = None, read: Sequence[int] | None = None
    ) -> TokenisedRequest:
        """One prompt. spec: another template or other limits than the writer's. read: indices of the candidates that it
        holds, in this order; all that can be read if left out.

        A candidate of which there is no token in this tokenizer has no segment; the `indices` of what is written tell.
        Raises `InputError` as `PromptTokenizer.tokenise_request`, and where none of them has a segment.
        """
        return self.tokenizer.tokenise_request(
            request, spec or self.spec, self.answer, memo=self.memo, between=self.between, read=read
        )

    def write_each(self, request: RankRequest, spec: RankSpec | None = None) -> tuple[TokenisedRequest, ...]:
        """A prompt for each document alone, of those that can be read; numbers in them are those of one prompt for all.

        Raises `InputError` as `write`.
        """
        whole = self.write(request, spec)
        first, *documents, last = whole.segments
        return tuple(
            replace(whole, segments=(first, document, last), read=(index,))
            for index, document in zip(whole.indices, documents, strict=True)
        )
