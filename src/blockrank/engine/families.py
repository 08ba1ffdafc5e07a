"""From a Hugging Face model to fused blocks: which families can be fused, and where their parts are."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockrank.engine.block import Decoder, FusedLayer, Head, Rotation
from blockrank.engine.kernels import Norm
from blockrank.engine.linear import Linear

_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}

_DYNAMIC = {"dynamic", "longrope"}  # rotary embeddings that look at the positions on the host


def fuse(module: PreTrainedModel) -> Decoder:
    """The layers of a model as fused blocks. Its own modules keep working, as views of the fused weights.

    Only for a model of which `unfusable` gives no reason.
    """
    base = module.base_model
    with torch.inference_mode(mode=False), torch.no_grad():
        decoder = FAMILIES[type(base).__name__](base)
        decoder.head = _head(module)
        return decoder


def _head(module: Any) -> Head | None:
    """The language-model head as the model applies it, None where it has none. It stays the model's own module, in its
    own type also where products are in int8 or fp8: it is one product, mostly of few rows, whose weight is often the
    table of embeddings too."""
    if module.get_output_embeddings() is None:
        return None
    if hasattr(module, "cls"):  # BERT turns states over before its table of outputs
        return module.cls  # type: ignore[no-any-return]
    cap = getattr(module.config, "final_logit_softcapping", None)
    if cap is None:
        return module.lm_head  # type: ignore[no-any-return]
    return lambda states_RD: cap * torch.tanh(module.lm_head(states_RD) / cap)


def quantise(decoder: Decoder, module: PreTrainedModel, dtype: torch.dtype, exact_layers: Collection[int] = ()) -> None:
    """The products of a decoder in an 8-bit type, layer by layer, but for those of `exact_layers`.

    The weights they were made from are freed, so that the model's own layers work no more.
    """
    with torch.inference_mode(mode=False), torch.no_grad():
        for index, (block, layer) in enumerate(zip(decoder.blocks, _layers(module.base_model), strict=True)):
            for parameter in layer.parameters():
                parameter.data = parameter.data.new_empty(0)
            if index not in exact_layers:
                block.quantise(dtype)
    decoder.quantised = True


def _layers(base: Any) -> Any:
    return base.encoder.layer if hasattr(base, "encoder") else base.layers


def unfusable(module: PreTrainedModel) -> str | None:
    """Why a model cannot be fused, as the end of a sentence; None when it can."""
    name = type(module.base_model).__name__
    if name not in FAMILIES:
        return f"{name} is not among {', '.join(FAMILIES)}"
    if (kind := _activation(module.config)) not in _ACTIVATIONS:
        return f"its activation {kind!r} is not among {', '.join(_ACTIVATIONS)}"
    if getattr(module.config, "add_cross_attention", False):
        return "it has cross-attention"
    return None


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None))


def _gated_decoder(base: Any) -> Decoder:
    """Pre-norm layers with rotary positions and a gated MLP: Llama and what followed it."""
    shift = 1.0 if type(base).__name__.startswith("Gemma") else 0.0
    blocks = [_gated_block(layer, base.config, shift) for layer in base.layers]
    kinds = sorted({block.rotation for block in blocks if block.rotation})

    def rotate(x_TD: Tensor, positions_T: Tensor) -> dict[str, Rotation]:
        # A model with kinds of layers is asked for each kind's by name.
        named = {kind: () if kind == "all" else (kind,) for kind in kinds}
        found = {kind: base.rotary_emb(x_TD[None], positions_T[None], *extra) for kind, extra in named.items()}
        return {kind: (cos[0].contiguous(), sin[0].contiguous()) for kind, (cos, sin) in found.items()}

    capturable = not _DYNAMIC & _rope_types(base)
    final = _root_norm(base.norm, shift)
    name = type(base).__name__
    return Decoder(lambda ids_T, _: base.embed_tokens(ids_T), rotate, blocks, final, name, capturable=capturable)


def _root_norm(module: Any, shift: float) -> Norm:
    """A norm without a mean. shift: of its weight, as a family stores it."""
    return Norm(module.weight.detach(), getattr(module, "variance_epsilon", None) or module.eps, shift=shift)


def _rope_types(base: Any) -> set[str]:
    """The kinds of rotary embedding of a model; some have one for each kind of layer."""
    found = getattr(base.rotary_emb, "rope_type", "default")
    return set(found.values()) if isinstance(found, dict) else {found}


def _gated_block(layer: Any, config: Any, shift: float) -> FusedLayer:
    attention, mlp = layer.self_attn, layer.mlp
    sandwiched = hasattr(layer, "pre_feedforward_layernorm")

    def norm(module: Any) -> Norm:
        return _root_norm(module, shift)

    local = getattr(attention, "layer_type", None) if type(layer).__name__.startswith("Gemma3") else None
    return FusedLayer(
        entry=norm(layer.input_layernorm),
        qkv=Linear.fused([attention.q_proj, attention.k_proj, attention.v_proj]),
        head_norms=(norm(attention.q_norm), norm(attention.k_norm)) if hasattr(attention, "q_norm") else None,
        out=Linear.fused([attention.o_proj]),
        out_norm=norm(layer.post_attention_layernorm) if sandwiched else None,
        middle=norm(layer.pre_feedforward_layernorm if sandwiched else layer.post_attention_layernorm),
        up=Linear.fused([mlp.gate_proj, mlp.up_proj]),
        activation=_ACTIVATIONS[_activation(config)],
        gated=True,
        down=Linear.fused([mlp.down_proj]),
        down_norm=norm(layer.post_feedforward_layernorm) if sandwiched else None,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        width=attention.head_dim,
        scale=float(attention.scaling),
        rotation=local or "all",
        window=_window(attention, config),
        keeps_norm=False,
    )


def _window(attention: Any, config: Any) -> int | None:
    """The sliding window that a layer asks for, as its own attention would."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window  # type: ignore[no-any-return]
    return getattr(config, "sliding_window", None) if type(attention).__name__ == "MistralAttention" else None


def _bert(base: Any) -> Decoder:
    """Post-norm layers with learned positions: a layer's entry is the norm after the layer before it."""
    config, layers = base.config, base.encoder.layer

    def norm(module: nn.LayerNorm) -> Norm:
        return Norm(module.weight.detach(), module.eps, module.bias.detach(), centred=True)

    def block(layer: Any, before: Any) -> FusedLayer:
        attention = layer.attention.self
        return FusedLayer(
            entry=norm(before.output.LayerNorm) if before is not None else None,
            qkv=Linear.fused([attention.query, attention.key, attention.value]),
            head_norms=None,
            out=Linear.fused([layer.attention.output.dense]),
            out_norm=None,
            middle=norm(layer.attention.output.LayerNorm),
            up=Linear.fused([layer.intermediate.dense]),
            activation=_ACTIVATIONS[_activation(config)],
            gated=False,
            down=Linear.fused([layer.output.dense]),
            down_norm=None,
            heads=config.num_attention_heads,
            kv_heads=config.num_attention_heads,
            width=attention.attention_head_size,
            scale=float(attention.scaling),
            rotation=None,
            window=None,
            keeps_norm=True,
        )

    def embed(ids_T: Tensor, positions_T: Tensor) -> Tensor:
        states: Tensor = base.embeddings(input_ids=ids_T[None], position_ids=positions_T[None])[0]
        return states

    blocks = [block(layer, layers[i - 1] if i else None) for i, layer in enumerate(layers)]
    return Decoder(embed, lambda *_: {}, blocks, norm(layers[-1].output.LayerNorm), type(base).__name__)


# Class of the model -> how its layers are fused. Everything else runs in the library's own layers.
FAMILIES: dict[str, Callable[[Any], Decoder]] = {
    "MistralModel": _gated_decoder,
    "LlamaModel": _gated_decoder,
    "Qwen2Model": _gated_decoder,
    "Qwen3Model": _gated_decoder,
    "GemmaModel": _gated_decoder,
    "Gemma3TextModel": _gated_decoder,
    "BertModel": _bert,
}
