"""What to measure: the model, the shapes, the peers; and how a command line says it."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from blockrank.spec import EMBEDDED
from blockrank.types import InputError

HF_FULL = "hf-full"
FP8, INT8 = "fp8", "int8"
DTYPES = ("float32", "bfloat16", "float16", FP8, INT8)
LAYERS = ("fused", "library")
Schedule = tuple[tuple[int, float], ...]
_SHAPE = re.compile(r"(\d+)x(\d+)", re.ASCII)
_EXIT = re.compile(r"(\d+):(\d+(?:\.\d*)?|\.\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Shape:
    """How many documents, of how many tokens each. Raises `InputError` where either is below 1."""

    documents: int
    length: int

    def __post_init__(self) -> None:
        for name, value in (("documents", self.documents), ("length", self.length)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, not {value}.")

    def __str__(self) -> str:
        return f"{self.documents} documents of {self.length} tokens"

    @property
    def short(self) -> str:
        """As `read_shapes` takes it."""
        return f"{self.documents}x{self.length}"


def grid(documents: Iterable[int], lengths: Iterable[int]) -> tuple[Shape, ...]:
    """Every number of documents at every length, length by length, each shape once."""
    pairs = itertools.product(lengths, tuple(documents))
    return tuple(dict.fromkeys(Shape(number, length) for length, number in pairs))


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What a benchmark runs over.

    model: "embedded", a name of `KNOWN_SHAPES`, a folder or a hub name. shapes: what is measured, in this order; `grid`
    makes a full one. instruction, query: tokens of these segments; instruction None means 60, or 0 for a model whose
    prompt has none. ragged: lengths are drawn from [1 - ragged, 1 + ragged] x length. repeats: of each shape;
    peer_repeats: of each peer, None means as many. against: peers, "hf-full" or a command with the fields {documents}
    and {length}. device, dtype, backend, layers: as `load_model` takes them, None chooses. scorer: by name,
    with settings if need be, None takes the attention. prune, prune_by: in place of
    what the model's `RankSpec` says, None leaves it. seed: of the tokens.

    Raises `InputError` where a value is out of range, and for a peer that is no command of this machine.
    """

    model: str = EMBEDDED
    shapes: Sequence[Shape] = grid((10, 30, 100), (96, 208))
    instruction: int | None = None
    query: int = 40
    ragged: float = 0.0
    repeats: int = 5
    peer_repeats: int | None = None
    against: Sequence[str] = ()
    device: str | None = None
    dtype: str | None = None
    backend: str | None = None
    layers: str | None = None
    scorer: str | None = None
    prune: Schedule | None = None
    prune_by: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shapes:
            raise InputError("shapes must hold at least one.")
        for name, value, least in (
            ("instruction", self.instruction, 0), ("query", self.query, 1), ("repeats", self.repeats, 1),
            ("peer_repeats", self.peer_repeats, 1),
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
    def peers(self) -> list[str]:
        """The peers, each once."""
        return list(dict.fromkeys(self.against))

    @property
    def spec_changes(self) -> dict[str, Any]:
        """Fields of the model's spec that are to be other than it says."""
        given = {"prune": self.prune, "prune_by": self.prune_by}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def command(self) -> str:
        """The command line that asks for this."""
        words = ["blockrank", "bench", self.model, *_shape_words(self.shapes)]
        given: dict[str, object] = {"instruction": self.instruction, "query": self.query, "ragged": self.ragged or None}
        given |= {"repeats": self.repeats, "peer-repeats": self.peer_repeats, "device": self.device}
        given |= {"dtype": self.dtype, "backend": self.backend, "layers": self.layers, "scorer": self.scorer}
        given |= {"prune": schedule_text(self.prune) if self.prune is not None else None, "prune-by": self.prune_by}
        given |= {"seed": self.seed or None}
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


def read_shapes(text: str) -> tuple[Shape, ...]:
    """The shapes of "100x96,500x208". Raises `InputError` where there is anything but documents x tokens."""
    found = [_SHAPE.fullmatch(part.strip()) for part in text.split(",")]
    if not all(found):
        raise InputError(
            f"shapes must be documents x tokens, separated by commas, such as 100x96,500x208, not {text!r}."
        )
    return tuple(Shape(int(pair[1]), int(pair[2])) for pair in found if pair)


def read_schedule(text: str) -> Schedule:
    """The pairs of "6:0.5,10:0.25", as `RankSpec.prune`; whether a spec takes them is not looked at.

    Raises `InputError` where there is anything but layer:share.
    """
    found = [_EXIT.fullmatch(part.strip()) for part in text.split(",")]
    if not all(found):
        raise InputError(f"prune must be layer:share, separated by commas, such as 6:0.5,10:0.25, not {text!r}.")
    return tuple((int(pair[1]), float(pair[2])) for pair in found if pair)


def schedule_text(schedule: Schedule) -> str:
    """Inverse of `read_schedule`."""
    return ",".join(f"{layer}:{share}" for layer, share in schedule)


def _shape_words(shapes: Sequence[Shape]) -> list[str]:
    """The options that ask for shapes: as a grid where they are one."""
    documents = dict.fromkeys(shape.documents for shape in shapes)
    lengths = dict.fromkeys(shape.length for shape in shapes)
    if tuple(shapes) == grid(documents, lengths):
        return ["--documents", ",".join(map(str, documents)), "--length", ",".join(map(str, lengths))]
    return ["--shapes", ",".join(shape.short for shape in shapes)]


def command_words(peer: str) -> list[str]:
    """A command as its words; no shell reads it. Raises `InputError` where it is none, or cannot be found."""
    try:
        words = shlex.split(peer)
    except ValueError as error:
        raise InputError(f"against {peer!r} is no command: {error}.") from None
    if not words or shutil.which(words[0]) is None:
        raise InputError(f"against {peer!r} is neither {HF_FULL} nor a command that can be found.")
    return words
