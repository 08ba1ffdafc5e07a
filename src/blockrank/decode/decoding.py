"""Document ids decoded by a model with its language-model head, under the mask of its own pattern."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from blockrank.attention import get_backend
from blockrank.decode.answers import Form, Grammar, answer_tokens
from blockrank.decode.search import advance_all, capacity_of, searches_of, step_layout
from blockrank.engine.capture import Wanted
from blockrank.engine.rows import RowBuffers
from blockrank.layout import Ints, PackedLayout, TokenisedRequest, pack, plan_batches
from blockrank.model import RankModel
from blockrank.spec import RankSpec
from blockrank.types import InputError, ModelError, RankRequest

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
    _check(model)
    assert model.tokenizer is not None, "ids need a tokenizer"
    counts = np.bincount(layout.document_request_C, minlength=layout.requests).tolist()
    tokens = answer_tokens(model.tokenizer, model.spec.prompt, max(counts))
    grammars = {count: Grammar(tokens, count, form, top) for count in set(counts)}
    searches = searches_of(layout, [grammars[count] for count in counts], beams)
    rows = RowBuffers(capacity_of(searches))
    with _inferring(model.module):
        prefill, steps = _models(model)
        ends = np.array([search.prompt[1] - 1 for search in searches])
        logits = _logits(prefill, layout, ends, rows)
        copies = advance_all(searches, logits, None)
        while copies is not None:
            rows.copy(*copies)
            step = step_layout(searches)
            logits = _logits(steps, step, step.ends_S - 1, rows)
            copies = advance_all(searches, logits, step)
    found = []
    for search in searches:
        best = search.finished if form == "first" else search.finished[:1]
        ids, logs = zip(*((beam.state.ids, beam.marks) for beam in best), strict=True)
        found.append(Decoded(sum(ids, ()), sum(logs, ()), search.grammar.count))
    return found


def check_spec(spec: RankSpec, what: str = "decoding") -> None:
    """Raise `InputError` where a spec does not allow decoding, or something else that asks for the next token."""
    spec.check_none_leaves(f"{what} needs every document in every layer")
    for field, needed in (("query_reads", "all"), ("query_attention", "causal")):
        if (value := getattr(spec.pattern, field)) != needed:
            raise InputError(f"{what} needs RankSpec.{field} {needed!r}; it is {value!r}.")


def check_search(beams: int, form: Form, top: int | None) -> None:
    """Raise `InputError` where a search cannot be as it is asked for."""
    if beams < 1:
        raise InputError(f"beams must be positive, not {beams}.")
    if top is not None and form != "full":
        raise InputError(f"top ends a list of all ids, form 'full'; the form is {form!r}.")
    if top is not None and top < 1:
        raise InputError(f"top must be positive, not {top}.")


def _check(model: RankModel) -> None:
    """Raise where a model or its spec does not allow decoding."""
    if not model.weights.has_head:
        raise ModelError(
            f"{model.name or 'the model'} was loaded without a language-model head, which decoding needs: load it with "
            "needs=Needs(generation=True)."
        )
    check_spec(model.spec)


def _logits(model: RankModel, layout: PackedLayout, at: Ints, rows: RowBuffers) -> torch.Tensor:
    """(A, V) next-token logits at stream positions."""
    logits_AV = model.forward(layout, Wanted(logits_R=at), rows=rows).logits_RV
    assert logits_AV is not None, "asked for"
    return logits_AV


def _models(model: RankModel) -> tuple[RankModel, RankModel]:
    """The model with the backends of prompt and steps, for inference in the type that attention will see.

    Steps read many rows with few tokens. A backend that gathers rows segment by segment (`varlen`) would copy a
    prompt's for each beam, so that the first of the table takes its place.
    """
    device = model.device.type
    casts = torch.is_autocast_enabled(device) and model.decoder is None  # fused layers choose their types themselves
    dtype = torch.get_autocast_dtype(device) if casts else model.dtype
    default = get_backend(None, model.device, dtype)
    runs = model.backend.unavailable(model.device, dtype) is None
    prefill = model.with_backend(model.backend if runs else default)
    return prefill, prefill.with_backend(default) if prefill.backend.name == "varlen" else prefill


@contextmanager
def _inferring(module: nn.Module) -> Iterator[None]:
    """The module as it infers: no gradients, no dropout; afterwards it is as it was."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part in training:
            part.training = True
