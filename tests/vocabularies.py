"""Small tokenizers of every kind that the models in use have, trained on a few lines of several scripts."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "The quick brown fox jumps over the lazy dog; it's 12345 times quicker, isn't it?",
    "Der schnelle braune Fuchs springt über 1.234.567 faule Hunde.\n\n\tFOX_TROT = fooBar(42)  # ok",
    "如果忘记了密码，请点击重置密码链接。 素早い茶色の狐。 빠른 갈색 여우",
    "पानी का गिलास; सेब  और   नाशपाती ... --- === <html> ... aaaaaa bbbb 00000",
    "e\u0301te\u0301 cafe\u0301 \U0001f98a\U0001f415 ÀÉÎ",
] * 3
NAMES = ["[SEP]", "<|im_end|>"]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS_FROM_THE_END = r"\d{1,3}(?=(?:\d{3})*\b)"
KINDS = ("wordpiece", "gpt-2", "llama-3", "digits", "unigram", "sentencepiece")


def _byte_level(regex: str | None) -> Any:
    if regex is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = [pre_tokenizers.Split(Regex(regex), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    return pre_tokenizers.Sequence(parts)


def _trained(backend: Tokenizer, trainer: Any) -> Tokenizer:
    backend.train_from_iterator(LINES, trainer)
    return backend


def _wordpiece() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return _trained(backend, trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]"], show_progress=False))


def _bytes(regex: str | None) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = _byte_level(regex), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(backend, trainers.BpeTrainer(vocab_size=450, initial_alphabet=alphabet, show_progress=False))


def _digits() -> Tokenizer:
    backend = _bytes(LLAMA_3)
    parts = [pre_tokenizers.Split(Regex(DIGITS_FROM_THE_END), "isolated"), _byte_level(LLAMA_3)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return backend


def _unigram() -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return _trained(
        backend,
        trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False),
    )


def _sentencepiece() -> Tokenizer:
    """Trained with words, used without a pre-tokenizer, as Llama's first vocabularies are."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    _trained(backend, trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False))
    backend.pre_tokenizer = None  # type: ignore[assignment]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return backend


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a kind, with two control tokens."""
    made = {
        "wordpiece": _wordpiece, "gpt-2": lambda: _bytes(None), "llama-3": lambda: _bytes(LLAMA_3), "digits": _digits,
        "unigram": _unigram, "sentencepiece": _sentencepiece,
    }[kind]()  # fmt: skip
    made.add_special_tokens([AddedToken(name, special=True) for name in NAMES])
    unknown = "<unk>" if kind == "unigram" else None  # the other models name it themselves
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token=unknown)
