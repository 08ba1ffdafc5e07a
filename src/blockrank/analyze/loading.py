"""A model with all its layers, and how it is to be prompted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blockrank.analyze.settings import DEFAULT_TEMPLATE
from blockrank.model import RankModel, load_config, load_model, resolve_spec
from blockrank.spec import BUILT_IN_SPECS, SPEC_FILE, RankSpec
from blockrank.types import InputError, ModelError

_ROOM = 2048  # positions for a query segment behind the query offset


@dataclass(frozen=True, slots=True)
class Analysed:
    """A model with every layer it has.

    name: as it was asked for. model: its spec reads the last layer, all heads. own: the spec that the checkpoint
    brought, None where it brought none. base: what is kept of a spec whatever is chosen (prompt, limits, how logits are
    made and pooled).
    """

    name: str
    model: RankModel
    own: RankSpec | None
    base: RankSpec

    @property
    def layers(self) -> int:
        """L."""
        return self.model.spec.readout.layer + 1

    @property
    def heads(self) -> int:
        """N."""
        return int(self.model.module.config.num_attention_heads)


def load_analysed(
    name: str | Path,
    *,
    template: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    backend: str | None = None,
    probe: bool = True,
) -> Analysed:
    """Load all layers of a checkpoint: a folder, a hub name, or "embedded" for the embedded model.

    template: the prompt of a checkpoint without `blockrank.json`; everything else is then `RankSpec`'s default. Raises
    `InputError` where both a template and a spec are given, `ModelError` as `load_model` does.
    """
    own = _own_spec(name)
    if own is not None and template is not None:
        raise InputError(f"{name} says itself how it is prompted ({SPEC_FILE}); a template is for models that do not.")
    config = load_config(name)
    base = own or _default_spec(template or DEFAULT_TEMPLATE, getattr(config, "max_position_embeddings", None))
    # Queries over the limit are cut and counted: they must not end the analysis.
    spec = base.changed(layer=config.num_hidden_layers - 1, heads=None, long_queries="cut", prune=(), prune_by=None)
    model = load_model(name, spec=spec, device=device, dtype=dtype, backend=backend, probe=probe)
    return Analysed(str(name), model, own, base)


def _own_spec(source: str | Path) -> RankSpec | None:
    """The checkpoint's own spec. Raises `ModelError` where it has one that cannot be read."""
    if Path(source).is_dir() and not (Path(source) / SPEC_FILE).is_file():
        return BUILT_IN_SPECS.get(str(source))
    try:
        return resolve_spec(source, None)
    except ModelError:
        if Path(source).is_dir():
            raise
        return None  # whether there is such a model at all is found out when it is loaded


def _default_spec(template: str, positions: int | None) -> RankSpec:
    """`RankSpec`'s defaults; the query stands right behind the instruction where the table has no room elsewhere."""
    spec = RankSpec.of(layer=0, template=template)
    offset = spec.pattern.query_offset
    if offset is not None and positions is not None and offset + _ROOM > positions:
        spec = spec.changed(query_offset=None)
    return spec
