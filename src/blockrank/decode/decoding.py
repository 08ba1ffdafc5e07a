"""Document ids decoded by a model with its language-model head, under the mask of its own pattern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from blockrank.decode.answers import Form, Grammar, answer_tokens
from blockrank.decode.search import advance_all, capacity_of, searches_of, step_layout
from blockrank.decode.steps import check_model, inference_models, inferring, next_logits
from blockrank.engine.rows import RowBuffers
from blockrank.layout import PackedLayout, TokenisedRequest, pack, plan_batches
from blockrank.model import RankModel
from blockrank.types import InputError, RankRequest

DEFAULT_BEAMS = 10  # the paper's, for lists


@dataclass(frozen=True, slots=True)
class Decoded:
    """What was decoded for one request of `candidates` documents.

    generated: indices of the candidates whose ids were generated, best first. log_probs: for the form "first" the
    log-probability that the answer begins with that id; for the others that it begins with the ids up to that one.
    They are among the answers allowed, and never rise. unread: indices of the candidates that had nothing to read.
    """

    generated: tuple[int, ...]
    log_probs: tuple[float, ...]
    candidates: int
    unread: tuple[int, ...] = ()

    @property
    def order(self) -> tuple[int, ...]:
        """All candidates: those generated, then the others in the order of the request, those unread last."""
        last = {*self.generated, *self.unread}
        others = (index for index in range(self.candidates) if index not in last)
        return (*self.generated, *others, *self.unread)


def decode(
    model: RankModel,
    requests: Sequence[RankRequest | TokenisedRequest],
    *,
    beams: int = DEFAULT_BEAMS,
    form: Form = "first",
    top: int | None = None,
    max_tokens: int = 32_768,
) -> list[Decoded]:
    """Generate document ids after the template's answer opening, for each request.

    model: loaded with `needs=Needs(generation=True)`; it may be in training, and is left as it was. requests: as texts
    or tokens; an answer that follows the opening, as in training, is left out. beams: 1 decodes greedily. form: "first"
    generates the first id alone, of which `beams` different ones are found (all, by probability, where there are as
    many beams as candidates); "list" generates the best list, in which each id stands at most once and which ends where
    the model ends it; "full" a list in which each id stands once, of which `top` ends the writing after so many.
    max_tokens: of prompts packed into one forward.

    Raises `InputError` where the spec, the template or the tokenizer does not allow it, `ModelError` where the model
    has no head, or its logits are not finite.
    """
    assert model.tokenizer is not None, "texts and ids need a tokenizer"
    prompts = [
        _without_answer(item)
        if isinstance(item, TokenisedRequest)
        else model.tokenizer.tokenise_request(item, model.spec)
        for item in requests
    ]
    found: list[Decoded] = []
    for batch in plan_batches([prompt.length for prompt in prompts], max_tokens):
        found += decode_layout(model, pack(prompts[batch], model.spec), beams=beams, form=form, top=top)
    return [_of_request(*parts) for parts in zip(found, requests, prompts, strict=True)]


def _of_request(decoded: Decoded, request: RankRequest | TokenisedRequest, prompt: TokenisedRequest) -> Decoded:
    """What was decoded, in indices of the request: a document of which nothing can be read has no number."""
    if isinstance(request, TokenisedRequest):
        return decoded
    unread = tuple(sorted(set(range(len(request.candidates))) - set(prompt.indices)))
    generated = tuple(prompt.indices[place] for place in decoded.generated)
    return replace(decoded, generated=generated, candidates=len(request.candidates), unread=unread)


def _without_answer(request: TokenisedRequest) -> TokenisedRequest:
    *others, query = request.segments
    return replace(request, segments=(*others, replace(query, ids=query.ids[: query.signal_end])))


def decode_layout(
    model: RankModel, layout: PackedLayout, *, beams: int, form: Form, top: int | None = None
) -> list[Decoded]:
    """Decode the requests of a packed layout, all together; see `decode`."""
    check_search(beams, form, top)
    check_model(model)
    assert model.tokenizer is not None, "ids need a tokenizer"
    counts = np.bincount(layout.document_request_C, minlength=layout.requests).tolist()
    tokens = answer_tokens(model.tokenizer, model.spec.prompt, max(counts))
    grammars = {count: Grammar(tokens, count, form, top) for count in set(counts)}
    searches = searches_of(layout, [grammars[count] for count in counts], beams)
    rows = RowBuffers(capacity_of(searches))
    with inferring(model.module):
        prefill, steps = inference_models(model)
        ends = np.array([search.prompt[1] - 1 for search in searches])
        logits = next_logits(prefill, layout, ends, rows)
        copies = advance_all(searches, logits, None)
        while copies is not None:
            rows.copy(*copies)
            step = step_layout(searches)
            logits = next_logits(steps, step, step.ends_S - 1, rows)
            copies = advance_all(searches, logits, step)
    found = []
    for search in searches:
        best = search.finished if form == "first" else search.finished[:1]
        ids, logs = zip(*((beam.state.ids, beam.marks) for beam in best), strict=True)
        found.append(Decoded(sum(ids, ()), sum(logs, ()), search.grammar.count))
    return found


def check_search(beams: int, form: Form, top: int | None) -> None:
    """Raise `InputError` where a search cannot be as it is asked for."""
    if beams < 1:
        raise InputError(f"beams must be positive, not {beams}.")
    if top is not None and form != "full":
        raise InputError(f"top ends a list of all ids, form 'full'; the form is {form!r}.")
    if top is not None and top < 1:
        raise InputError(f"top must be positive, not {top}.")
