"""Sets of attention heads whose attention ranks: data that belongs to one model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from blockrank.configfile import build, check_fields, read_json
from blockrank.errors import InputError
from blockrank.spec.templates import Template

_FOLDER = Path(__file__).parent / "head_sets"


@dataclass(frozen=True, kw_only=True)
class HeadSet:
    """Heads of one model, and what each counts.

    model: the name of the model that they were found in. layers, heads: how many layers it has, of how many heads each.
    pairs: (layer, head), counted from 0. weights: one positive number a pair; None where all count the same. revision:
    of the model, where it is known. prompt: `prompt_hash` of the prompt that they were found with; where it is empty,
    they are read with any. source: where they come from.

    Raises `InputError` where a pair is not in the model, twice there, or a weight is missing.
    """

    model: str
    layers: int
    heads: int
    pairs: tuple[tuple[int, int], ...]
    weights: tuple[float, ...] | None = None
    revision: str = ""
    prompt: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.model.strip():
            raise InputError("HeadSet.model is empty: heads belong to one model.")
        if not self.pairs:
            raise InputError("HeadSet.pairs is empty: there is no head to read.")
        for layer, head in self.pairs:
            if not (0 <= layer < self.layers and 0 <= head < self.heads):
                raise InputError(
                    f"HeadSet.pairs names layer {layer}, head {head}; the model has {self.layers} layers of "
                    f"{self.heads} heads, counted from 0."
                )
        if len(set(self.pairs)) < len(self.pairs):
            raise InputError("HeadSet.pairs names a head twice.")
        if self.weights is not None and (len(self.weights) != len(self.pairs) or min(self.weights) <= 0):
            raise InputError("HeadSet.weights needs one positive number a pair.")

    @classmethod
    def load(cls, name_or_file: str | Path) -> HeadSet:
        """A built-in set by its name, or one from a JSON file. Raises `InputError` where there is none or it is not
        valid."""
        path = _FOLDER / f"{name_or_file}.json"
        if str(name_or_file) not in head_set_names():
            path = Path(name_or_file)
            if not path.is_file():
                raise InputError(
                    f"head set {str(name_or_file)!r} is neither a file nor built in; built in are {head_set_names()}."
                )
        try:
            found: HeadSet = build(cls, read_json(path), str(path))
        except InputError as error:
            raise InputError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
        return found

    def save(self, path: str | Path) -> None:
        """Write the set as a JSON file that `load` reads."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, without what is not known."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}

    @cached_property
    def by_layer(self) -> dict[int, dict[int, float]]:
        """Layer -> head -> weight, layers and heads rising; where there are no weights, each is 1."""
        weights = self.weights or (1.0,) * len(self.pairs)
        found: dict[int, dict[int, float]] = {}
        for (layer, head), weight in sorted(zip(self.pairs, weights, strict=True)):
            found.setdefault(layer, {})[head] = weight
        return found

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return sum(weight for heads in self.by_layer.values() for weight in heads.values())

    def misfit(self, name: str, layers: int, heads: int, template: Template) -> str | None:
        """Why the set cannot be read of a model with this name, shape and prompt, as a sentence; None where it can.

        The names fit where the last part of the set's is a part of the model's, which may be a path; case is ignored.
        """
        own = PurePath(self.model).name.lower()
        if own not in {part.lower().split("--")[-1] for part in PurePath(name).parts}:
            return f"the heads are those of {self.model}, and the model is {name or 'without a name'}."
        if (self.layers, self.heads) != (layers, heads):
            return (
                f"the heads are of a model with {self.layers} layers of {self.heads} heads, and {name} has {layers} "
                f"layers of {heads}."
            )
        if self.prompt and self.prompt != prompt_hash(template):
            return "the heads were found with another prompt than the one that they would be read with."
        return None


def prompt_hash(template: Template) -> str:
    """What tells the prompt of a template from others."""
    text = json.dumps(asdict(template), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def head_set_names() -> list[str]:
    """The names of the built-in sets."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))
