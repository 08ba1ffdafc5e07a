"""What to measure: the model, the grid of shapes, the peers."""

from __future__ import annotations

import itertools
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from blockrank.types import InputError

EMBEDDED = "embedded"
HF_FULL = "hf-full"
FP8 = "fp8"
DTYPES = ("float32", "bfloat16", "float16", FP8)
LAYERS = ("fused", "library")


@dataclass(frozen=True, slots=True)
class Shape:
    """One point of the grid: how many documents, of how many tokens each."""

    documents: int
    length: int

    def __str__(self) -> str:
        return f"{self.documents} documents of {self.length} tokens"


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What a benchmark runs over.

    model: "embedded", a name of `KNOWN_SHAPES`, a folder or a hub name. documents, lengths: the grid; a length is in
    tokens a document. instruction, query: tokens of these segments; instruction None means 60, or 0 for a model whose
    prompt has none. ragged: lengths are drawn from [1 - ragged, 1 + ragged] x length. against: peers, "hf-full" or a
    command with the fields {documents} and {length}. device, dtype, backend, layers: as `load_model` takes them, None
    chooses. seed: of the tokens.

    Raises `InputError` where a value is out of range, and for a peer that is no command of this machine.
    """

    model: str = EMBEDDED
    documents: Sequence[int] = (10, 30, 100)
    lengths: Sequence[int] = (96, 208)
    instruction: int | None = None
    query: int = 40
    ragged: float = 0.0
    repeats: int = 5
    against: Sequence[str] = ()
    device: str | None = None
    dtype: str | None = None
    backend: str | None = None
    layers: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values in (("documents", self.documents), ("length", self.lengths)):
            if not values or min(values) < 1:
                raise InputError(f"{name} must be whole numbers from 1 on, not {','.join(map(str, values))!r}.")
        for name, value, least in (
            ("instruction", self.instruction, 0), ("query", self.query, 1), ("repeats", self.repeats, 1),
        ):  # fmt: skip
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, not {value}.")
        if not 0 <= self.ragged < 1:
            raise InputError(f"ragged must lie in [0, 1), not {self.ragged}.")
        for name, word, known in (("dtype", self.dtype, DTYPES), ("layers", self.layers, LAYERS)):
            if word is not None and word not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, not {word!r}.")
        for peer in self.against:
            if peer != HF_FULL:
                command_words(peer)

    @property
    def shapes(self) -> list[Shape]:
        """The grid, length by length."""
        pairs = itertools.product(self.lengths, self.documents)
        return list(dict.fromkeys(Shape(documents, length) for length, documents in pairs))

    @property
    def peers(self) -> list[str]:
        """The peers, each once."""
        return list(dict.fromkeys(self.against))

    @property
    def command(self) -> str:
        """The command line that asks for this."""
        words = ["blockrank", "bench", self.model]
        words += ["--documents", ",".join(map(str, self.documents)), "--length", ",".join(map(str, self.lengths))]
        given: dict[str, object] = {"instruction": self.instruction, "query": self.query, "ragged": self.ragged or None}
        given |= {"repeats": self.repeats, "device": self.device, "dtype": self.dtype, "backend": self.backend}
        given |= {"layers": self.layers, "seed": self.seed or None}
        for name, value in given.items():
            words += [f"--{name}", str(value)] if value is not None else []
        for peer in self.peers:
            words += ["--against", peer]
        return shlex.join(words)


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """The numbers of "10,100,500". Raises `InputError` where there is anything but numbers from 1 on."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"{name} must be whole numbers from 1 on, separated by commas, not {text!r}.")
    return tuple(map(int, parts))


def command_words(peer: str) -> list[str]:
    """A command as its words; no shell reads it. Raises `InputError` where it is none, or cannot be found."""
    try:
        words = shlex.split(peer)
    except ValueError as error:
        raise InputError(f"against {peer!r} is no command: {error}.") from None
    if not words or shutil.which(words[0]) is None:
        raise InputError(f"against {peer!r} is neither {HF_FULL} nor a command that can be found.")
    return words
