"""Tiny chat models for rankers that bring a prompt of their own, and what the plain library makes of a text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch
from conftest import random_decoder
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from blockrank import Ranker

CHAT = (
    "{% for m in messages %}{{ '<|im_end|>' + m.role + '\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_end|>assistant\n' }}{% endif %}"
)


@cache
def chat_tokenizer(*, whole_numbers: bool) -> PreTrainedTokenizerFast:
    """A token a byte, but for a letter with the space before it, and numbers up to 99 where they are whole."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    numbers = [(str(one), str(two)) for one in range(1, 10) for two in range(10)] if whole_numbers else []
    merges = [*(("Ġ", letter) for letter in ascii_uppercase), *numbers]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *map("".join, merges)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|im_end|>", eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT
    return tokenizer


def saved_model(folder: Path, kind: str = "qwen3", *, whole_numbers: bool = False) -> Path:
    """A folder with a model that says nothing of how it is read; its logits are wide, so that choices differ."""
    module = random_decoder(kind, head=True, tie_word_embeddings=False)
    module.lm_head.weight.data *= 8
    module.save_pretrained(folder)
    chat_tokenizer(whole_numbers=whole_numbers).save_pretrained(folder)
    return folder


def prompt_text(ranker: Ranker, request: Any) -> str:
    """The exact text that a model sees of a request."""
    assert ranker.model.tokenizer is not None
    ids = [int(token) for segment in ranker.tokenise(request).only.segments for token in segment.ids]
    return str(AutoTokenizer.from_pretrained(ranker.model.name).decode(ids))


@cache
def plain(folder: Path) -> Callable[[str], Tensor]:
    """Next-token logits after a text, as the library itself tokenises it and attends to it."""
    module = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def logits(text: str) -> Tensor:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            return module(ids).logits[0, -1]  # type: ignore[no-any-return]

    return logits
