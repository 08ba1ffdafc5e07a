"""`RankSpec`, saved as `blockrank.json` beside the weights, and files of it that earlier releases wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from blockrank.configfile import build, check_fields, checked, read_json
from blockrank.errors import InputError, ModelError
from blockrank.spec.parts import FLAT_NAMES, Exits, Limits, Pattern, Readout
from blockrank.spec.templates import TEMPLATES, Template

SPEC_FILE = "blockrank.json"
SPEC_VERSION = 2  # version 1 named all fields in one table; it is still read


@dataclass(frozen=True, kw_only=True)
class RankSpec:
    """How to build the prompt of a checkpoint, where to read its attention and how to turn it into scores.

    readout: which layer, heads and tokens are read, and how they become scores.
    template: name of a built-in template, or a `Template`.
    pattern: what reads what. exits: which documents leave early. limits: how long texts may be.
    scorer: what makes prompts and scores where the caller names none, as `--scorer` takes it.
    notes: free text; two specs that differ in nothing else are equal.

    `RankSpec.of(layer=3, pattern="causal")` makes one from fields by their own names, whichever part they belong to,
    and `spec.changed(long_queries="cut")` a copy. Raises `InputError` where a value has the wrong type or is invalid.
    """

    readout: Readout
    template: str | Template = "blockrank"
    pattern: Pattern = field(default_factory=Pattern)
    exits: Exits = field(default_factory=Exits)
    limits: Limits = field(default_factory=Limits)
    scorer: str = "attention"
    notes: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.template, str) and self.template not in TEMPLATES:
            raise InputError(f"RankSpec.template {self.template!r} is unknown; built in are {sorted(TEMPLATES)}.")
        if not self.scorer.strip():
            raise InputError("RankSpec.scorer is empty; 'attention' is the default.")
        layers = list(self.exits.shares)
        if layers and layers[-1] >= self.readout.layer:
            raise InputError(
                f"RankSpec.prune names layers {layers}; they must rise and stay below layer {self.readout.layer}."
            )

    @classmethod
    def of(cls, /, **named: Any) -> RankSpec:
        """A spec from fields by their own names, whichever part they belong to; `pattern` is `Pattern.kind`.

        Raises `InputError` on an unknown name, without a layer, or where a value has the wrong type or is invalid.
        """
        own, parts = _sorted(named)
        if "layer" not in named:
            raise InputError("RankSpec: 'layer' is missing.")
        return cls(**own, **{name: kind(**parts.get(name, {})) for name, kind in _PARTS.items()})

    def changed(self, /, **named: Any) -> RankSpec:
        """A copy with some fields changed, named as in `of`. `prune=()` also resets `prune_by` to None."""
        if "prune" in named and not named["prune"]:
            named = {"prune_by": None, **named}
        own, parts = _sorted(named)
        return replace(self, **own, **{name: replace(getattr(self, name), **values) for name, values in parts.items()})

    @property
    def fields(self) -> dict[str, Any]:
        """All fields by the names that `of` takes."""
        found = {name: getattr(getattr(self, part), field) for name, (part, field) in _HOMES.items()}
        return {**found, **{name: getattr(self, name) for name in _OWN}}

    @property
    def prompt(self) -> Template:
        """The template itself."""
        return TEMPLATES[self.template] if isinstance(self.template, str) else self.template

    @property
    def documents_stand_alone(self) -> bool:
        """Whether a document's keys depend only on its own text and the instruction, and nothing below the scoring
        layer depends on them, so that they can be computed once and used for many queries."""
        prompt = self.prompt
        apart = self.pattern.kind == "block" and self.pattern.query_reads == "own"
        is_free = not (prompt.reads_query_first or prompt.counts_documents)
        return apart and is_free and not prompt.numbers_documents

    @property
    def leaves_early(self) -> bool:
        """Whether documents leave before the scoring layer."""
        return bool(self.exits.prune)

    @property
    def reuses_documents(self) -> bool:
        """Whether documents may be computed separately and their keys reused: they stand alone, and all of them reach
        the scoring layer."""
        return self.documents_stand_alone and not self.leaves_early

    def check_none_leaves(self, what: str) -> None:
        """Raise `InputError` where documents leave early. what: the reason, such as "evidence needs every document"."""
        if self.leaves_early:
            raise InputError(f"{what}: not with RankSpec.prune.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; a built-in template is written as its name."""
        found: dict[str, Any] = json.loads(json.dumps({"version": SPEC_VERSION, **asdict(self)}))
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RankSpec:
        """Inverse of `to_dict`; reads version 1 too. Raises `InputError` on an unknown key, or a value of the wrong
        type or out of range."""
        values = dict(values)
        in_parts = any(name in values for name in ("readout", "exits", "limits"))
        version = checked(int, values.pop("version", 2 if in_parts else 1), "RankSpec.version")
        if version == 1:
            return cls.of(**_without_idle(values))
        if version != SPEC_VERSION:
            raise InputError(f"RankSpec version {version!r} is not supported; this release reads 1 and {SPEC_VERSION}.")
        found: RankSpec = build(cls, values, "RankSpec")
        return found

    def save(self, folder: str | Path) -> Path:
        """Write `blockrank.json` into `folder` and return its path."""
        path = Path(folder) / SPEC_FILE
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> RankSpec:
        """Read `blockrank.json` from `folder`. Raises `ModelError` where it is missing or not valid."""
        path = Path(folder) / SPEC_FILE
        if not path.is_file():
            raise ModelError(
                f"{Path(folder)} has no {SPEC_FILE}, so nothing says which layer and tokens to read: "
                "name a published checkpoint as its spec, or a scorer that needs none, such as 'first_token' or "
                "'pointwise', or pass spec=RankSpec.of(...)."
            )
        try:
            values = read_json(path)
        except InputError as error:
            raise ModelError(str(error)) from None
        try:
            return cls.from_dict(values)
        except InputError as error:
            raise ModelError(f"{path} is not a valid RankSpec: {error}") from None


_PARTS: dict[str, Any] = {"readout": Readout, "pattern": Pattern, "exits": Exits, "limits": Limits}
_OWN = ("template", "scorer", "notes")
# The name of a field that belongs to a part -> that part and the field's name there.
_HOMES = {FLAT_NAMES.get(item.name, item.name): (part, item.name) for part in _PARTS for item in fields(_PARTS[part])}


def _sorted(named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Divide fields given by their own names into those of the spec itself and those of each part."""
    own: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name, value in named.items():
        if name in _HOMES:
            part, inner = _HOMES[name]
            parts.setdefault(part, {})[inner] = value
        elif name in _OWN:
            is_table = name == "template" and isinstance(value, dict)
            own[name] = build(Template, value, "RankSpec [template]") if is_table else value
        else:
            raise InputError(f"RankSpec: unknown key {name!r}; there are {sorted([*_HOMES, *_OWN])}.")
    return own, parts


def _without_idle(values: dict[str, Any]) -> dict[str, Any]:
    """Fields of version 1 without an idle `prune_by`: version 1 wrote it even where no document left."""
    if values.get("prune", ()) in ([], ()) and values.get("prune_by") == "lens":
        return {name: value for name, value in values.items() if name != "prune_by"}
    return values


def rewritten(values: Any) -> Any:
    """Saved settings with every spec of an earlier version, at any depth, rewritten in the current form.

    A value under the key "spec" that is not a spec is left unchanged.
    """
    if isinstance(values, list):
        return [rewritten(item) for item in values]
    if not isinstance(values, dict):
        return values
    return {name: _rewritten_spec(item) if name == "spec" else rewritten(item) for name, item in values.items()}


def _rewritten_spec(values: Any) -> Any:
    try:
        return RankSpec.from_dict(values).to_dict() if isinstance(values, dict) else values
    except InputError:
        return values
