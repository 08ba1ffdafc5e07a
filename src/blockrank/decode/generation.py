"""Free text after a prompt, token by token: the texts of a batch of prompts are written together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from blockrank.decode.sampling import Sampling, choose
from blockrank.decode.steps import Range, check_model, inference_models, inferring, next_logits, segments_layout
from blockrank.engine.rows import RowBuffers
from blockrank.layout import PackedLayout, TokenisedRequest, pack, plan_batches
from blockrank.model import RankModel
from blockrank.types import InputError, ModelError

_SPARE = 4  # tokens that are decoded before those that a stop string can be in, for a character that they share


@dataclass(frozen=True, slots=True)
class Generated:
    """What was written after one prompt.

    text: up to and including the stop string that ended it, without the token that says the end. tokens: all that were
    generated. reached_limit: whether it was ended by a limit: `max_new_tokens`, or the model's last position.
    """

    text: str
    tokens: tuple[int, ...]
    reached_limit: bool


def generate(
    model: RankModel,
    prompts: Sequence[TokenisedRequest],
    sampling: Sampling,
    *,
    seeds: Sequence[int] | None = None,
    max_tokens: int = 32_768,
) -> list[Generated]:
    """Continue each prompt until the model ends it, a stop string is complete, or a limit is reached.

    model: loaded with `needs=Needs(generation=True)`; it may be in training, and is left as it was. seeds: of each
    prompt's own random numbers, for a temperature above 0; numbers from 0 on, zeros if left out. A text depends on its
    prompt and seed, not on what shares the batch (but for the rounding of sums). max_tokens: of prompts and texts to
    come that share a batch, for which memory is set aside; a longer one runs alone.

    Raises `InputError` where the spec does not allow it or a prompt leaves no position for an answer, `ModelError`
    where the model has no head, or its logits are not finite.
    """
    check_model(model)
    assert model.tokenizer is not None, "texts need a tokenizer"
    seeds = [0] * len(prompts) if seeds is None else seeds
    found: list[Generated] = []
    with inferring(model.module):
        for batch in plan_batches([prompt.length + sampling.max_new_tokens for prompt in prompts], max_tokens):
            if found:
                model.give_turn()
            found += _generate_batch(model, prompts[batch], seeds[batch], sampling)
    return found


@dataclass(slots=True)
class _Writing:
    """A text in the making.

    prompt: the rows of its prompt; position: of its first token; base: its first row; limit: most tokens.
    """

    prompt: Range
    position: int
    base: int
    limit: int
    random: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    ended: bool = False

    @property
    def is_live(self) -> bool:
        """Whether it goes on."""
        return not self.ended and len(self.tokens) < self.limit

    @property
    def last_row(self) -> int:
        """Where the row of its last token belongs."""
        return self.base + len(self.tokens) - 1


def _generate_batch(
    model: RankModel, prompts: Sequence[TokenisedRequest], seeds: Sequence[int], sampling: Sampling
) -> list[Generated]:
    """The texts of prompts that share all forwards."""
    layout = pack(prompts, model.spec)
    writings = _writings(model, layout, seeds, sampling)
    cached_rows = writings[-1].base + writings[-1].limit
    rows = RowBuffers(cached_rows + len(writings))
    ending = Ending(model.weights.hf_tokenizer, end_tokens(model), sampling.stop)
    prefill, steps = inference_models(model)
    _take(writings, next_logits(prefill, layout, layout.last_B, rows), sampling, ending)
    while live := [writing for writing in writings if writing.is_live]:
        model.give_turn()
        step = _step_layout(live, len(writings), cached_rows)
        logits_AV = next_logits(steps, step, step.ends_S - 1, rows)
        rows.copy(cached_rows + step.starts_S, np.array([writing.last_row for writing in live]))
        _take(live, logits_AV, sampling, ending)
    return [Generated(ending.text(one.tokens), tuple(one.tokens), not one.ended) for one in writings]


def _writings(model: RankModel, layout: PackedLayout, seeds: Sequence[int], sampling: Sampling) -> list[_Writing]:
    """A text to come for each prompt of a layout; their rows follow those of all prompts."""
    ends = (layout.last_B + 1).tolist()
    room, base, found = _positions(model), layout.tokens, []
    for start, end, seed in zip([0, *ends[:-1]], ends, seeds, strict=True):
        position = int(layout.positions_T[end - 1]) + 1
        limit = sampling.max_new_tokens if room is None else min(sampling.max_new_tokens, room - position)
        if limit < 1:
            raise InputError(
                f"the prompt reaches position {position - 1} and the model has {room}: there is no room for an answer; "
                "rank fewer documents at once, shorten the query or lower max_segment_tokens."
            )
        found.append(_Writing((start, end), position, base, limit, np.random.default_rng(seed)))
        base += limit
    return found


def _positions(model: RankModel) -> int | None:
    """How many positions a text can reach, None where nothing ends them: the table's, and those within the narrowest
    sliding window, beyond which a packed layout would read too much."""
    config = model.module.config
    windows = [getattr(config, "sliding_window", None)]
    if model.decoder is not None:
        windows = [block.window for block in model.decoder.blocks]
    ends = [end for end in (getattr(config, "max_position_embeddings", None), *windows) if end is not None]
    return min(ends, default=None)


def _step_layout(live: Sequence[_Writing], requests: int, cached_rows: int) -> PackedLayout:
    """The last token of each text that goes on."""
    return segments_layout(
        [one.tokens[-1:] for one in live],
        [(one.prompt, (one.base, one.last_row)) for one in live],
        [one.position + len(one.tokens) - 1 for one in live],
        requests=requests,
        cached_rows=cached_rows,
    )


def _take(live: Sequence[_Writing], logits_AV: torch.Tensor, sampling: Sampling, ending: Ending) -> None:
    """Give each text its next token. Raises `ModelError` where logits are not finite."""
    draws = [one.random.random() for one in live] if sampling.temperature else [0.0] * len(live)
    draws_A = torch.tensor(draws, dtype=torch.float32).to(logits_AV.device, non_blocking=True)
    for one, token in zip(live, choose(logits_AV, sampling, draws_A).tolist(), strict=True):
        if token < 0:
            raise ModelError("the model's logits are not finite; its weights or dtype are unfit.")
        one.tokens.append(token)
        one.ended = ending.is_reached(one.tokens)


class Ending:
    """Tells where texts end: at a token that says so, or behind a stop string.

    tokenizer: a Hugging Face tokenizer. tokens: those that end a text. stop: strings that do.
    """

    def __init__(self, tokenizer: Any, tokens: frozenset[int], stop: tuple[str, ...]) -> None:
        self._tokenizer, self._tokens, self._stop = tokenizer, tokens, stop
        # A token is a byte at least, so that a stop string lies in so many of the last ones.
        self._tail = max((len(one.encode()) for one in stop), default=0) + _SPARE

    def is_reached(self, tokens: Sequence[int]) -> bool:
        """Whether a text is complete with its last token."""
        if tokens[-1] in self._tokens:
            return True
        if not self._stop:
            return False
        return self._stops(self._decoded(tokens[-self._tail :])) and self._stops(self._decoded(tokens))

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, up to its end. Tokens are decoded together: a character may be made of several."""
        text = self._decoded(tokens[:-1] if tokens[-1] in self._tokens else tokens)
        ends = [text.find(one) + len(one) for one in self._stop if one in text]
        return text[: min(ends, default=len(text))]

    def _stops(self, text: str) -> bool:
        return any(one in text for one in self._stop)

    def _decoded(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def end_tokens(model: RankModel) -> frozenset[int]:
    """The tokens that end a text, by the checkpoint's generation settings, its config and its tokenizer."""
    module, found = model.module, set()
    holders: list[Any] = [getattr(module, "generation_config", None), module.config, model.weights.hf_tokenizer]
    for holder in holders:
        tokens = getattr(holder, "eos_token_id", None)
        found |= {tokens} if isinstance(tokens, int) else set(tokens or ())
    return frozenset(found)
