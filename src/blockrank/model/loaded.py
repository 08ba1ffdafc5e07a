"""`LoadedModel`: the weights of a checkpoint on one device, held once, whatever reads them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from transformers import PreTrainedModel

from blockrank import engine
from blockrank.layout import PromptTokenizer
from blockrank.types import ModelError

_WIDTH_STEP = 16  # of int8 and fp8 products


class LoadedModel:
    """A Hugging Face decoder with its tokenizer, on one device: what all views over it (`RankModel`) share.

    `module` is the (cut) model; `tokenizer` a `PromptTokenizer`; `hf_tokenizer` the library's own; `name` where it came
    from; `omitted` the parameters that the checkpoint leaves out because no ranking reads them; `layers` how many
    layers the checkpoint has, loaded or not; `decoder`, where there is one, its layers fused for inference, and
    `graphs` their captured forwards.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        hf_tokenizer: Any = None,
        name: str = "",
        omitted: frozenset[str] = frozenset(),
        layers: int | None = None,
    ) -> None:
        self.module, self.hf_tokenizer, self.name, self.omitted = module, hf_tokenizer, name, omitted
        self.tokenizer = PromptTokenizer(hf_tokenizer) if hf_tokenizer is not None else None
        self.layers: int = module.config.num_hidden_layers if layers is None else layers
        self.decoder: engine.Decoder | None = None
        self.graphs: engine.Graphs | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.module.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights; where products are quantised, of everything else."""
        dtype: torch.dtype = self.module.dtype
        return dtype

    @property
    def key_bytes(self) -> int:
        """Bytes of one row's keys at one layer."""
        config = self.module.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(heads * width * self.dtype.itemsize)

    @property
    def has_head(self) -> bool:
        """Whether the model was loaded with its language-model head."""
        return self.module.get_output_embeddings() is not None

    @property
    def is_quantised(self) -> bool:
        """Whether products run in int8 or fp8."""
        return self.decoder is not None and self.decoder.quantised

    def fuse(self) -> None:
        """Run inference in fused layers from now on. Raises `ModelError` for a model that cannot be fused."""
        if reason := engine.unfusable(self.module):
            raise ModelError(f"the layers of {self.name or 'the model'} cannot be fused: {reason}.")
        self.decoder = engine.fuse(self.module)
        self.graphs = engine.Graphs(self.decoder)

    def quantise(self, dtype: torch.dtype, exact_layers: Collection[int] = ()) -> None:
        """Run the products of the fused layers in an 8-bit type, but for those of `exact_layers`.

        The library's own layers give up their weights: from now on the model ranks, and does nothing else. Raises
        `ModelError` for a model that cannot be fused, or whose widths the hardware's products do not take.
        """
        if self.decoder is None:
            self.fuse()
        assert self.decoder is not None
        shapes = (linear.weight_ND.shape for block in self.decoder.blocks for linear in block.linears)
        if odd := next((shape for shape in shapes if any(size % _WIDTH_STEP for size in shape)), None):
            raise ModelError(
                f"{self.name or 'the model'} has a product of {odd[0]} x {odd[1]}: 8-bit products take multiples of "
                f"{_WIDTH_STEP}."
            )
        engine.quantise(self.decoder, self.module, dtype, exact_layers)
        self.graphs = engine.Graphs(self.decoder)  # none of the products captured before
