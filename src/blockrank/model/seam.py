"""The seam: the one function that a Hugging Face model calls for attention in every layer.

It is registered in the library's own attention registry with no mask function of that name, so that no mask is ever
built. The layout's plan travels as a model keyword argument, which also survives checkpoint recomputation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from blockrank.attention import AttentionBackend
from blockrank.engine.capture import LayerCapture, Wanted
from blockrank.engine.rows import RowBuffers
from blockrank.types import ModelError

SEAM = "blockrank"
# Keyword arguments that models pass along and that cannot change attention under a packed layout.
_HARMLESS = frozenset(
    {"position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "return_dict",
     "is_causal", "layer_idx", "position_embeddings", "past_key_values", "num_items_in_batch"}
)  # fmt: skip


class Done(Exception):  # noqa: N818  # it ends a forward; nothing went wrong
    """Raised by the seam at the last wanted layer once queries and keys are in hand: nothing above is needed."""


class Pass:
    """One forward through the seam: what to attend with, what is wanted, and what was captured by layer (nothing where
    an observer took it).

    stop: end the forward at the last wanted layer. rows: where keys and values of the new tokens are written, and those
    of the `cached_rows` before them are read.
    No dataclass: FSDP2 in mixed precision copies those on their way in, and what is captured would stay in the copy.
    """

    def __init__(
        self,
        backend: AttentionBackend,
        plan: Any,
        wanted: Wanted,
        signal_G: Tensor,
        *,
        stop: bool,
        longest_position: int,
        rows: RowBuffers | None = None,
        cached_rows: int = 0,
    ) -> None:
        self.backend, self.plan, self.wanted, self.signal_G = backend, plan, wanted, signal_G
        self.stop, self.longest_position = stop, longest_position
        self.rows, self.cached_rows = rows, cached_rows
        self.captured: dict[int, LayerCapture] = {}
        self.layers_seen: list[int] = []

    def see(self, layer: int, q_TNH: Tensor, k_PKH: Tensor, scale: float) -> None:
        """Capture a layer if it is wanted. Raises `Done` where nothing is wanted of what comes after it."""
        self.layers_seen.append(layer)
        if layer not in self.wanted.layers:
            return
        if self.rows is not None and self.wanted.observer is None:
            k_PKH = k_PKH.clone()  # the buffers are written again
        found = LayerCapture(layer, q_TNH.index_select(0, self.signal_G), k_PKH, scale)
        if self.wanted.observer is not None:
            self.wanted.observer(found)
        else:
            self.captured[layer] = found
        if self.stop and layer == self.wanted.layers[-1]:
            raise Done


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
    if blockrank.rows is not None:
        k_PKH, v_PKH = blockrank.rows.put(layer, blockrank.cached_rows, k_PKH, v_PKH)
    blockrank.see(layer, q_TNH, k_PKH, float(scale))
    q_TNH, k_PKH, v_PKH = _computing(q_TNH), _computing(k_PKH), _computing(v_PKH)
    out_TNH = blockrank.backend.attend(q_TNH, k_PKH, v_PKH, blockrank.plan, float(scale))
    return out_TNH[None], None


def _computing(states: Tensor) -> Tensor:
    """Under autocast, in its type: rotary positions leave queries and keys in that of the hidden states."""
    device = states.device.type
    return states.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else states


def _refuse_extras(
    module: nn.Module, current: Pass, attention_mask: Tensor | None, dropout: float, extras: dict[str, Any]
) -> None:
    """Raise `ModelError` for anything that would change attention: backends know causality and scaling alone."""
    name = type(module).__name__
    if attention_mask is not None:
        raise ModelError(f"{name} builds an attention mask of its own beside the layout.")
    if dropout:
        raise ModelError(f"{name} asks for attention dropout {dropout}; set it to 0 in the model's config.")
    for key, value in extras.items():
        if value is None or value is False or key in _HARMLESS:
            continue
        if key == "sliding_window" and value > current.longest_position:
            continue  # the window is wider than the prompt: it never binds
        raise ModelError(
            f"{name} passes {key}={_brief(value)} to attention, which the {current.backend.name} backend cannot honour."
        )


def _brief(value: object) -> str:
    return f"tensor{tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


AttentionInterface.register(SEAM, _attend)
