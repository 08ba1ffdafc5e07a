"""Everything that knows Hugging Face: load a model cut after the last layer needed, and run a layout through it.

The seam is one function in the library's own attention registry, with no mask function of that name, so that no mask
is ever built. The layout's plan travels as a model keyword argument, which also survives checkpoint recomputation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as hf_logging

from blockrank.attention import AttentionBackend, get_backend
from blockrank.layout import PackedLayout, PromptTokenizer
from blockrank.spec import BUILT_IN_SPECS, SPEC_FILE, RankSpec
from blockrank.types import InputError, ModelError
from blockrank.weights import is_int8, read_int8

SEAM = "blockrank"
EMBEDDED_MODEL = Path(__file__).parent / "models" / "mini"
# Keyword arguments that models pass along and that cannot change attention under a packed layout.
_HARMLESS = frozenset(
    {"position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "return_dict",
     "is_causal", "layer_idx", "position_embeddings", "past_key_values", "num_items_in_batch"}
)  # fmt: skip
# Regularisers that would act inside attention or make a packed training step depend on its neighbours.
_DROPOUTS = ("attention_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob", "resid_pdrop", "embd_pdrop")


class _Done(Exception):
    """Raised by the seam at the scoring layer once queries and keys are in hand: nothing above is needed."""


@dataclass(slots=True)
class Pass:
    """One forward through the seam: what to attend with, what to capture, and what was captured."""

    backend: AttentionBackend
    plan: Any
    layer: int
    signal_G: Tensor
    stop: bool
    longest_position: int
    q_GNH: Tensor | None = None
    k_PKH: Tensor | None = None
    scale: float = 1.0
    layers_seen: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Capture:
    """What a forward yields. q_GNH, k_PKH: queries of the signal tokens and keys of all rows at the scoring layer;
    scale: the factor the model puts on logits; hidden_TD and logits: where they were asked for."""

    q_GNH: Tensor
    k_PKH: Tensor
    scale: float
    hidden_TD: Tensor | None = None
    logits: Tensor | None = None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    blockrank: Pass | None = None,
    **extras: Any,
) -> tuple[Tensor, None]:
    """The seam, called by every layer. query, key, value: (1, heads, T, head_dim); returns (1, T, N, H) and no
    weights. Refuses what it cannot honour instead of ignoring it."""
    if blockrank is None:
        raise ModelError(f"{type(module).__name__} does not hand the layout on to its attention function.")
    _refuse_extras(module, blockrank, attention_mask, dropout, extras)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    q_TNH, k_PKH, v_PKH = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise ModelError(f"{type(module).__name__} does not say which layer it is.")
    blockrank.layers_seen.append(layer)
    if layer == blockrank.layer:
        blockrank.q_GNH, blockrank.k_PKH = q_TNH.index_select(0, blockrank.signal_G), k_PKH
        blockrank.scale = float(scale)
        if blockrank.stop:
            raise _Done
    out_TNH = blockrank.backend.attend(q_TNH, k_PKH, v_PKH, blockrank.plan, float(scale))
    return out_TNH[None], None


def _refuse_extras(
    module: nn.Module, current: Pass, attention_mask: Tensor | None, dropout: float, extras: dict[str, Any]
) -> None:
    """Raise `ModelError` for anything that would change attention and that the backend does not declare."""
    name = type(module).__name__
    if attention_mask is not None:
        raise ModelError(f"{name} builds an attention mask of its own beside the layout.")
    if dropout:
        raise ModelError(f"{name} asks for attention dropout {dropout}; set it to 0 in the model's config.")
    for key, value in extras.items():
        if value is None or value is False or key in _HARMLESS or key in current.backend.honours:
            continue
        if key == "sliding_window" and value > current.longest_position:
            continue  # the window is wider than the prompt: it never binds
        raise ModelError(
            f"{name} passes {key}={_brief(value)} to attention, which the {current.backend.name} backend cannot honour."
        )


def _brief(value: object) -> str:
    return f"tensor{tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


AttentionInterface.register(SEAM, _attend)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the library's own report on unused upper layers: loading is checked here, sentence by sentence."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


class RankModel:
    """A Hugging Face decoder with its tokenizer, `RankSpec` and attention backend.

    `module` is the (cut) model; `tokenizer` a `PromptTokenizer`; `hf_tokenizer` the library's own.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        hf_tokenizer: Any,
        spec: RankSpec,
        backend: AttentionBackend,
        name: str = "",
    ) -> None:
        self.module, self.hf_tokenizer, self.spec, self.backend, self.name = module, hf_tokenizer, spec, backend, name
        self.tokenizer = PromptTokenizer(hf_tokenizer) if hf_tokenizer is not None else None
        self._check_spec()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.module.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.module.dtype

    def use_backend(self, name: str | None, dtype: torch.dtype) -> None:
        """Switch the attention backend; `dtype` is what attention will see (autocast's type in training)."""
        self.backend = get_backend(name, self.device, dtype)

    def _check_spec(self) -> None:
        config = self.module.config
        if self.spec.layer >= config.num_hidden_layers:
            raise ModelError(
                f"the spec reads layer {self.spec.layer}, but {self.name or 'the model'} has "
                f"{config.num_hidden_layers} layers (counted from 0)."
            )
        bad = [head for head in self.spec.heads or () if not 0 <= head < config.num_attention_heads]
        if bad:
            raise ModelError(f"the spec reads heads {bad}, but the model has {config.num_attention_heads} heads.")

    def check_positions(self, layout: PackedLayout) -> None:
        """Raise `InputError` where the prompt runs past the model's position table."""
        table = getattr(self.module.config, "max_position_embeddings", None)
        highest = int(layout.positions_T.max())
        if table is not None and highest >= table:
            raise InputError(
                f"the prompt reaches position {highest} and {self.name or 'the model'} has {table}: shorten the query, "
                "lower max_segment_tokens or the spec's query_offset."
            )

    def forward(
        self,
        layout: PackedLayout,
        *,
        stop: bool = True,
        label_T: Tensor | None = None,
        hidden: bool = False,
        module: nn.Module | None = None,
    ) -> Capture:
        """Run a packed layout.

        stop: end at the scoring layer, as soon as queries and keys are captured. label_T: stream positions whose
        next-token logits are wanted (the model must have its head). hidden: also return the last hidden states.
        module: a wrapper around the model (accelerate, DDP) to call in its place.
        """
        device = self.device
        self.check_positions(layout)
        # Under autocast attention sees the autocast type; the plan only needs the device.
        current = Pass(
            self.backend,
            self.backend.plan(layout, device),
            self.spec.layer,
            torch.from_numpy(layout.signal_G).to(device, non_blocking=True),
            stop and label_T is None and not hidden,
            int(layout.positions_T.max()),
        )
        inputs: dict[str, Any] = {
            "input_ids": torch.from_numpy(layout.ids_T)[None].to(device, non_blocking=True),
            "position_ids": torch.from_numpy(layout.positions_T)[None].to(device, non_blocking=True),
            "use_cache": False,
            "blockrank": current,
        }
        if label_T is not None:
            inputs["logits_to_keep"] = label_T
        outputs = None
        try:
            outputs = (module or self.module)(**inputs, **({"output_hidden_states": True} if hidden else {}))
        except _Done:
            pass
        if current.q_GNH is None or current.k_PKH is None:
            raise ModelError(f"{type(self.module).__name__} never called the attention seam at layer {self.spec.layer}.")
        return Capture(
            current.q_GNH,
            current.k_PKH,
            current.scale,
            outputs.hidden_states[-1][0] if hidden and outputs is not None else None,
            outputs.logits[0] if label_T is not None and outputs is not None else None,
        )


def resolve_spec(name_or_path: str | Path | None, spec: RankSpec | str | None) -> RankSpec:
    """The spec given, or by built-in name, or from `blockrank.json`, or built in for a published checkpoint."""
    if isinstance(spec, RankSpec):
        return spec
    if spec is not None:
        if spec not in BUILT_IN_SPECS:
            raise InputError(f"spec {spec!r} is unknown; built in are {sorted(BUILT_IN_SPECS)}.")
        return BUILT_IN_SPECS[spec]
    folder = EMBEDDED_MODEL if name_or_path is None else Path(name_or_path)
    if not (folder / SPEC_FILE).is_file() and str(name_or_path) in BUILT_IN_SPECS:
        return BUILT_IN_SPECS[str(name_or_path)]
    if folder.is_dir():
        return RankSpec.load(folder)
    return _spec_from_hub(str(name_or_path))


def _spec_from_hub(name: str) -> RankSpec:
    """`blockrank.json` of a hub repository."""
    from transformers.utils import cached_file

    try:
        path = cached_file(name, SPEC_FILE)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {name!r} is neither a folder nor a reachable hub repository with a {SPEC_FILE}."
        ) from error
    return RankSpec.load(Path(path).parent)


def load_model(
    name_or_path: str | Path | None = None,
    *,
    spec: RankSpec | str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    head: bool = False,
    omit_dropout: bool = False,
    probe: bool = True,
) -> RankModel:
    """Load a checkpoint for ranking: layers up to the scoring layer, nothing above, safetensors only.

    name_or_path: a folder, a hub name, or None for the embedded model. head: keep every layer and the language-model
    head (training with the LM loss, generation). omit_dropout: set every dropout of the config to 0. dtype None: float32 on a CPU, the checkpoint's own elsewhere.
    probe: check with a small forward that the model does what the layout says; see `blockrank.probe`.

    Raises `ModelError` where the checkpoint is unknown, incomplete, or fails the probe.
    """
    resolved = resolve_spec(name_or_path, spec)
    source = EMBEDDED_MODEL if name_or_path is None else name_or_path
    place = torch.device(device) if device else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if dtype is None and place.type == "cpu":
        dtype = torch.float32
    with _quiet():
        config, tokenizer = _config_and_tokenizer(source)
        if not head:
            _cut(config, resolved.layer + 1)
        for key in _DROPOUTS if omit_dropout else ():
            if hasattr(config, key):
                setattr(config, key, 0.0)
        module = _weights(source, config, head, dtype)
    module = module.to(place).eval()  # type: ignore[arg-type]
    model = RankModel(module, tokenizer, resolved, get_backend(backend, place, module.dtype), str(source))
    if probe:
        from blockrank.probe import probe_model

        probe_model(model)
    return model


def _config_and_tokenizer(source: str | Path) -> tuple[PreTrainedConfig, Any]:
    if isinstance(source, Path) and not source.is_dir():
        raise ModelError(f"model folder {source} does not exist.")
    try:
        return AutoConfig.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model {str(source)!r} cannot be read: {_first_line(error)}") from error


def _cut(config: PreTrainedConfig, layers: int) -> None:
    """Keep the first `layers` layers in a config, so that the rest is never built nor read from disk."""
    if layers > config.num_hidden_layers:
        raise ModelError(f"the spec reads layer {layers - 1}, but the model has {config.num_hidden_layers} layers.")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


def _weights(source: str | Path, config: PreTrainedConfig, head: bool, dtype: torch.dtype | None) -> PreTrainedModel:
    """Build the model and load its weights; no weight that a forward needs may be missing."""
    kind = AutoModelForCausalLM if head else AutoModel
    options: dict[str, Any] = {"config": config, "attn_implementation": SEAM, "output_loading_info": True}
    if dtype is not None:
        options["dtype"] = dtype
    omitted: frozenset[str] = frozenset()
    try:
        if isinstance(source, Path | str) and Path(source).is_dir() and is_int8(source):
            state, omitted = read_int8(source)
            with torch.device("meta"):  # the auto classes read from disk only; ask which class it would be
                model_class = type(kind.from_config(config))
            module, info = model_class.from_pretrained(None, state_dict=state, **options)
        else:
            module, info = kind.from_pretrained(source, use_safetensors=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the weights of {str(source)!r} cannot be loaded: {_first_line(error)}") from error
    prefix = getattr(module, "base_model_prefix", "") + "."
    missing = {name for name in info["missing_keys"] if name not in omitted and prefix + name not in omitted}
    missing = {name for name in missing if not name.removeprefix(prefix).startswith("pooler.")}
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise ModelError(f"the checkpoint {str(source)!r} lacks {len(missing)} weights of its model, such as {some}.")
    return module  # type: ignore[no-any-return]


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
