"""`RankModel`: a view over loaded weights (how they are read, with which attention), and a layout run through it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockrank import engine
from blockrank.attention import AttentionBackend, MergingBackend, get_backend
from blockrank.engine.capture import Capture, Wanted
from blockrank.engine.rows import RowBuffers
from blockrank.layout import Ints, Memo, PackedLayout, PromptTokenizer, Segment
from blockrank.model.loaded import LoadedModel
from blockrank.model.seam import Done, Pass
from blockrank.model.vocabulary import check_prompt
from blockrank.model.wrapping import is_sharded, runs_whole, tied
from blockrank.reuse.keys import Store, complete, plan_reuse, reuse_context
from blockrank.spec import RankSpec
from blockrank.types import InputError, ModelError

_LEAST_SHARED_TOKENS = 4096  # below, one device is as fast as several


class RankModel:
    """A view over loaded weights: what reads them, and how.

    `weights` are held once, whatever views there are; `spec` says how they are read, `backend` computes attention;
    `replicas` are the same view over the same weights on other devices; `store` and `memo`, where there are any and the
    spec allows it, keep documents from being encoded and tokenised twice. A view costs nothing, and several over the
    same weights may be used at once, each by a thread of its own.

    `with_spec` and the like give another view and leave this one as it is. They keep store and memo: an entry is found
    by all that it depends on, so that no view reads what was made for another reading (`reuse.keys.reuse_context`).
    `through` alone drops them, because weights change behind a wrapper that trains.
    """

    def __init__(
        self, weights: LoadedModel, spec: RankSpec, backend: AttentionBackend, replicas: Sequence[RankModel] = ()
    ) -> None:
        self.weights, self.spec, self.backend, self.replicas = weights, spec, backend, tuple(replicas)
        self.store: Store | None = None
        self.memo: Memo[Segment] | None = None
        self._fused = True  # where the weights are
        self._outer: nn.Module = weights.module
        self._between: Callable[[], None] | None = None
        self._check_spec()

    @property
    def module(self) -> PreTrainedModel:
        """The (cut) model of transformers."""
        return self.weights.module

    @property
    def tokenizer(self) -> PromptTokenizer | None:
        """What makes tokens of prompts."""
        return self.weights.tokenizer

    @property
    def name(self) -> str:
        """Where the weights came from."""
        return self.weights.name

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.weights.dtype

    @property
    def decoder(self) -> engine.Decoder | None:
        """The fused layers that inference runs in; None where this view runs in the library's own."""
        return self.weights.decoder if self._fused else None

    @property
    def product_dtype(self) -> str | None:
        """The 8-bit type that products run in, None where they run in the model's own."""
        blocks = self.decoder.blocks if self.decoder is not None else ()
        kinds = {linear.takes for block in blocks for linear in block.linears} - {None}
        return ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds)) or None

    def with_spec(self, spec: RankSpec) -> RankModel:
        """The same weights read in another way (at the same layer or below)."""
        changed = self._view(spec=spec, replicas=tuple(replica.with_spec(spec) for replica in self.replicas))
        changed._check_spec()
        return changed

    def through(self, module: nn.Module) -> RankModel:
        """The same model, called through a wrapper around it (adapters, DDP, FSDP2) wherever a forward names none."""
        return self._view(_outer=module, store=None, memo=None)

    def with_turns(self, between: Callable[[], None]) -> RankModel:
        """The same model, whose forwards in fused layers call `between` between their parts, for others to have a turn;
        see `engine.forward`. In the library's own layers a forward has one part."""
        return self._view(_between=between)

    def on_each_device(self) -> tuple[RankModel, ...]:
        """The model and its replicas, each to be used alone."""
        return (self._view(replicas=()), *self.replicas)

    def in_library_layers(self) -> RankModel:
        """The same weights in the library's own layers."""
        self._refuse_quantised()
        return self._view(_fused=False, replicas=())

    def with_backend(self, backend: AttentionBackend) -> RankModel:
        """The same weights attending with another backend, on this device alone."""
        return self._view(backend=backend, replicas=())

    def _view(self, **changes: Any) -> RankModel:
        """A copy of this view with some attributes changed."""
        found = copy.copy(self)
        vars(found).update(changes)
        return found

    def give_turn(self) -> None:
        """Let others have a turn, if there are any: for those who run several forwards, between two of them."""
        if self._between is not None:
            self._between()

    def inference(self) -> AbstractContextManager[None]:
        """A context for forwards without gradients. Weights in shards do not take inference mode."""
        if is_sharded(self._outer):
            return torch.no_grad()
        return torch.inference_mode()

    def _refuse_quantised(self) -> None:
        if self.weights.is_quantised:
            raise ModelError("the model is loaded in int8 or fp8: it can infer, and nothing else.")

    def use_backend(self, name: str | None, dtype: torch.dtype) -> None:
        """Switch to a backend for training; `dtype` is what attention will see (autocast's type)."""
        self.backend = get_backend(name, self.device, dtype, training=True)

    def _check_spec(self) -> None:
        config = self.module.config
        if self.spec.readout.layer >= config.num_hidden_layers:
            raise ModelError(
                f"the spec reads layer {self.spec.readout.layer}, but {self.name or 'the model'} has "
                f"{config.num_hidden_layers} layers (counted from 0)."
            )
        bad = [head for head in self.spec.readout.heads or () if not 0 <= head < config.num_attention_heads]
        if bad:
            raise ModelError(
                f"the spec reads heads {bad}, but the model has {config.num_attention_heads} heads (counted from 0)."
            )
        if self.tokenizer is not None:
            check_prompt(self.tokenizer, config, self.spec)

    def check_positions(self, layout: PackedLayout) -> None:
        """Raise `InputError` where the prompt runs past the model's position table."""
        table = getattr(self.module.config, "max_position_embeddings", None)
        highest = int(layout.positions_T.max())
        if table is not None and highest >= table:
            fewer = "rank fewer documents, " if self.spec.pattern.kind == "causal" else ""
            raise InputError(
                f"the prompt reaches position {highest} and the model has {table}: {fewer}shorten the "
                "query, lower max_segment_tokens or the spec's query_offset."
            )

    def start_pass(self, layout: PackedLayout, wanted: Wanted, *, stop: bool, rows: RowBuffers | None = None) -> Pass:
        """What the seam needs for a forward of a layout. stop: at the last wanted layer; rows: as in `forward`."""
        assert rows is not None or not layout.cached_rows, "cached rows lie in buffers"
        # Under autocast attention sees the autocast type; the plan only needs the device.
        return Pass(
            self.backend,
            self.backend.plan(layout, self.device),
            wanted,
            torch.from_numpy(layout.signal_G).to(self.device, non_blocking=True),
            stop=stop,
            longest_position=int(layout.positions_T.max()),
            rows=rows,
            cached_rows=layout.cached_rows,
        )

    def inputs(self, layout: PackedLayout) -> dict[str, Any]:
        """What the model itself takes of a layout: one row of T tokens with their positions."""
        return {
            "input_ids": torch.from_numpy(layout.ids_T)[None].to(self.device, non_blocking=True),
            "position_ids": torch.from_numpy(layout.positions_T)[None].to(self.device, non_blocking=True),
            "use_cache": False,
        }

    def read(self, layout: PackedLayout) -> Capture:
        """Queries and keys at the scoring layer for a read-out: a forward of what the store does not hold yet."""
        if self.spec.leaves_early and not self._runs_fused():
            reason = engine.unfusable(self.module) or "it was loaded with the library's own"
            raise ModelError(f"the spec prunes documents, which needs fused layers: {reason}.")
        if self.store is None or not self.spec.reuses_documents:
            return self.forward(layout)
        plan = plan_reuse(layout, self.store, reuse_context(self.spec, self.arithmetic))
        capture = self.forward(plan.lean)
        whole = replace(capture.only, k_PKH=complete(layout, plan, capture.only.k_PKH, self.store))
        return replace(capture, layers=(whole,), layout=layout)

    @property
    def arithmetic(self) -> str:
        """What computes, beside the weights: two that differ agree but for rounding."""
        layers = "library" if self.decoder is None else "fused"
        return f"{layers} {self.weights.is_quantised} {self.backend.name}"

    @property
    def shares_documents(self) -> bool:
        """Whether the documents of a request can be divided among devices: where none reads another."""
        mergeable = self.spec.pattern.query_reads == "own" or isinstance(self.backend, MergingBackend)
        return mergeable and self.spec.pattern.kind == "block" and self.decoder is not None

    def _decoders(self, layout: PackedLayout) -> list[engine.Decoder]:
        """The decoders that share the work on a layout: all of them where it has enough documents to divide."""
        shares = self.shares_documents and layout.tokens >= _LEAST_SHARED_TOKENS and not layout.cached_rows
        shares = shares and len(layout.document_segment_C) > 1
        models = (self, *self.replicas) if shares else (self,)
        return [model.decoder for model in models if model.decoder is not None]

    def _runs_fused(self) -> bool:
        """Whether forwards run in fused layers: for inference, where there are any."""
        return self.decoder is not None and not torch.is_grad_enabled() and not self.module.training

    def forward(
        self,
        layout: PackedLayout,
        wanted: Wanted | None = None,
        *,
        whole: bool = False,
        module: nn.Module | None = None,
        rows: RowBuffers | None = None,
    ) -> Capture:
        """Run a packed layout for what is wanted of it, None for what the spec's read-out reads.

        For inference in fused layers, where there are any; in the library's own with gradients, in training, or where
        `module` or `whole` ask for them. whole: run through every layer, whatever is wanted. module: a wrapper around
        the model (adapters, DDP, FSDP2) to call in its place; under those of them that need it, the forward runs to its
        end. rows: buffers that hold keys and values of the layout's cached rows, and get those of its tokens; for
        forwards that want logits or hidden states.

        Raises `InputError` where a wanted layer or position is not there, `ModelError` where logits are wanted of a
        model without its head, or what its checkpoint leaves out.
        """
        wanted = wanted if wanted is not None else Wanted.read_out(self.spec)
        self.check_positions(layout)
        self._check_wanted(layout, wanted)
        if not whole and module is None and self._runs_fused():
            with torch.autocast(self.device.type, enabled=False):  # fused layers choose their types themselves
                decoders = self._decoders(layout)
                return engine.forward(
                    decoders, layout, wanted, self.spec, self.backend, self.weights.graphs, rows, self._between
                )
        return self._library_forward(layout, wanted, whole, module if module is not None else self._outer, rows)

    def _check_wanted(self, layout: PackedLayout, wanted: Wanted) -> None:
        name = self.name or "the model"
        wanted.check(layout, self.module.config.num_hidden_layers)
        if wanted.logits_R is not None and not self.weights.has_head:
            raise ModelError(
                f"{name} was loaded without a language-model head, which logits need: load it with "
                "needs=Needs(logits=True)."
            )
        if wanted.whole and self.weights.omitted:
            raise ModelError(
                f"{name} has neither logits nor last hidden states: its checkpoint leaves out what they need."
            )

    def _library_forward(
        self, layout: PackedLayout, wanted: Wanted, whole: bool, outer: nn.Module, rows: RowBuffers | None
    ) -> Capture:
        """A forward through the library's own layers."""
        self._refuse_quantised()
        wrapped = runs_whole(outer)
        current = self.start_pass(layout, wanted, stop=not (wanted.whole or whole or wrapped), rows=rows)
        extras: dict[str, Any] = {"output_hidden_states": True} if wanted.hidden_R is not None else {}
        if self.weights.has_head:  # nobody asked for logits: those of the last token will do
            extras["logits_to_keep"] = self._moved(wanted.logits_R) if wanted.logits_R is not None else 1
        outputs = None
        with suppress(Done):
            outputs = outer(**self.inputs(layout), blockrank=current, **extras)
        if missed := sorted(set(wanted.layers) - set(current.layers_seen)):
            raise ModelError(f"{type(self.module).__name__} never called the attention seam at layer {missed[0]}.")
        layers = tuple(current.captured[layer] for layer in wanted.layers if wanted.observer is None)
        if wrapped and outputs is not None and torch.is_grad_enabled():
            layers = tuple(replace(layer, q_GNH=tied(layer.q_GNH, outputs.values())) for layer in layers)
        logits_RV = hidden_RD = None
        if outputs is not None and wanted.logits_R is not None:
            logits_RV = outputs.logits[0]
        if outputs is not None and wanted.hidden_R is not None:
            hidden_RD = outputs.hidden_states[-1][0].index_select(0, self._moved(wanted.hidden_R))
        return Capture(layers, layout, logits_RV, hidden_RD)

    def _moved(self, positions_R: Ints) -> Tensor:
        return torch.from_numpy(positions_R).to(self.device, non_blocking=True)
