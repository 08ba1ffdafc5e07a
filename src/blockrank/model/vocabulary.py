"""Whether a tokenizer is the one of its model, and whether a spec's prompt can be written with it.

A library that finds no vocabulary makes an empty one, and a tokenizer of another model yields ids as good as any: both
rank noise, without a word. No weight is needed to tell.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from blockrank.errors import listed
from blockrank.layout import PromptTokenizer
from blockrank.layout.prompt import fill
from blockrank.spec import RankSpec, Template
from blockrank.types import ModelError

_log = logging.getLogger(__name__)
_FAST_FILE = "tokenizer.json"
_OTHER_FILES = ("*.model", "*.tiktoken", "tekken.json")  # whole vocabularies, whatever the class calls its own
# Tables are padded to round numbers of rows, or have spare rows for new tokens: over a tenth in no published model.
_FEWEST_TOKENS, _FEW_TOKENS, _SPARE_ROWS = 0.5, 0.9, 1024
# A vocabulary knows at least one of these: it is enough to read one script.
_SAMPLES = (
    "the water of a river", "A C G T 0 1 2 3", "вода в реке", "το νερό του ποταμού", "مياه النهر", "המים בנהר",
    "मैं नदी का पानी हूँ", "নদীর জল", "ஆற்று நீர்", "น้ำในแม่น้ำ", "ջուր գետում", "წყალი მდინარეში",
    "河里的水", "川の水です", "강의 물입니다",
)  # fmt: skip
_LEAST_READ = 0.5  # share of a sample's characters
# What is a control token wherever it is one; a tokenizer that lacks it reads it as some letters and brackets.
_CONTROL = re.compile(r"<\|\w+\|>|\[(?:CLS|SEP|MASK|PAD)\]|</?s>|<(?:bos|eos|pad|mask|start_of_turn|end_of_turn)>")


def check_files(folder: Path, tokenizer: Any) -> None:
    """Raise `ModelError` where a folder holds no vocabulary for the class of a tokenizer that was read from it."""
    if (folder / _FAST_FILE).is_file() or any(path.is_file() for name in _OTHER_FILES for path in folder.glob(name)):
        return
    names = [name for key, name in tokenizer.vocab_files_names.items() if key != "tokenizer_file"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        files = f"{_FAST_FILE}, nor {listed(missing)}" if missing else _FAST_FILE
        raise ModelError(f"model folder {str(folder)!r} has no {files}: there is no tokenizer to read text with.")


def check_vocabulary(tokenizer: PromptTokenizer, library: Any, config: PreTrainedConfig, source: str | Path) -> None:
    """Raise `ModelError` where a tokenizer (ours, and the library's own) cannot be that of a model: ids without an
    embedding, far fewer tokens than embeddings, or no script of which it knows the characters; log where it has oddly
    few tokens."""
    rows = embedding_rows(config)
    named = f"the tokenizer of {str(source)!r}"
    # Control tokens may lie beyond: no text yields them, and what a prompt names is looked at by `check_prompt`.
    control = tokenizer.control_tokens
    beyond = {token: i for token, i in library.get_vocab().items() if i >= rows and token not in control}
    if beyond:
        token, highest = max(beyond.items(), key=lambda item: item[1])
        raise ModelError(
            f"{named} has the token {token!r} with id {highest}, but the model has {rows} embeddings: it is the "
            "tokenizer of another model."
        )
    tokens = len(library)
    if tokens < _FEW_TOKENS * rows and rows - tokens > _SPARE_ROWS:
        sentence = f"{named} has {tokens} tokens, but the model has {rows} embeddings"
        if tokens < _FEWEST_TOKENS * rows:
            raise ModelError(f"{sentence}: it is broken, or that of another model.")
        _log.warning("%s: it may be that of another model.", sentence)
    if not any(_read_share(library, sample, source) >= _LEAST_READ for sample in _SAMPLES):
        raise ModelError(f"{named} knows too few characters to read a text in any script: it is broken.")


def _read_share(library: Any, text: str, source: str | Path) -> float:
    """Share of a text's characters, white space left out, under tokens other than the unknown one."""
    try:
        encoding = library.backend_tokenizer.encode(text, add_special_tokens=False)
    except Exception as error:  # the package has no type of its own for what it refuses
        raise ModelError(f"the tokenizer of {str(source)!r} cannot encode: {error}.") from None
    known = zip(encoding.ids, encoding.offsets, strict=True)
    read = {at for i, span in known if i != library.unk_token_id for at in range(*span)}
    written = {at for at, character in enumerate(text) if not character.isspace()}
    return len(read & written) / len(written)


def check_prompt(tokenizer: PromptTokenizer, config: PreTrainedConfig, spec: RankSpec) -> None:
    """Raise `ModelError` where the prompt of a spec cannot be written with a tokenizer: it names a control token that
    there is not, or one without an embedding; or a document at its limit runs past the model's positions."""
    prompt, rows, frame = tokenizer.written(spec.prompt), embedding_rows(config), {}
    control = tokenizer.control_tokens
    # What the tokenizer's own chat template writes may look like a control token and be plain text, as in Zephyr's.
    ours = _pieces(spec.prompt)
    for kind, pieces in _pieces(prompt).items():
        closing = prompt.answer_end if prompt.answer and kind == "query" else ""
        named = _CONTROL.findall(" ".join([*ours[kind], closing]))
        if missing := [name for name in named if name not in control]:
            raise ModelError(
                f"the spec's template names {missing[0]}, which this tokenizer has not as a control token."
            )
        ids = [i for piece in pieces for i in tokenizer.encode(piece).tolist()]
        if ids and max(ids) >= rows:
            raise ModelError(
                f"the template's {kind} holds a token with id {max(ids)}; the model has {rows} embeddings."
            )
        frame[kind] = len(ids)
    if (table := getattr(config, "max_position_embeddings", None)) is not None:
        _check_positions(frame, table, spec)


def _pieces(prompt: Template) -> dict[str, list[str]]:
    """What a template writes in each kind of segment where the caller's texts are empty."""
    empty = {"query": "", "text": "", "id": "0", "count": "0"}
    parts = {"instruction": prompt.instruction, "document": prompt.document, "query": (*prompt.query, prompt.answer)}
    return {kind: [fill(piece, empty).text for piece in pieces] for kind, pieces in parts.items()}


def _check_positions(frame: dict[str, int], table: int, spec: RankSpec) -> None:
    """What can be known before a request comes. frame: tokens of each segment without what the caller puts in; table:
    positions that the model has."""
    most, instruction = spec.limits.max_segment_tokens, frame["instruction"]
    if frame["document"] >= most:
        raise ModelError(
            f"max_segment_tokens is {most}, but {frame['document']} of a document's are the template's own."
        )
    if instruction + most > table:
        raise ModelError(
            f"max_segment_tokens is {most}, but the model has {table} positions, of which the instruction takes "
            f"{instruction}: {max(table - instruction, 0)} are left."
        )
    start = max(instruction, spec.pattern.query_offset or 0)
    if start + frame["query"] >= table:
        raise ModelError(
            f"the query begins at position {start} and the model has {table}: lower query_offset or take a shorter "
            "template."
        )


def embedding_rows(config: PreTrainedConfig) -> int:
    """Rows of the model's table of embeddings."""
    return int(config.get_text_config().vocab_size)
