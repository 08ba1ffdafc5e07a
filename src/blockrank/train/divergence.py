"""A run whose loss, gradients or weights become NaN or infinite ends there: nothing more is saved, and the last
checkpoint stays.

The library's own trainer logs the mean of earlier losses in place of a NaN, goes on and saves the result.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.trainer_callback import TrainerCallback

from blockrank.types import ModelError


class FiniteTrainer(Trainer):  # type: ignore[misc]
    """`transformers.Trainer` that raises `ModelError` at the step whose loss or gradient is not finite, and before it
    evaluates or saves weights that are not finite."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(_Gradients(self))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of one batch."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if not bool(loss.isfinite()):
            raise self._diverged(f"the loss is {float(loss)}")
        return loss

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save the weights, if they are finite."""
        self.check_weights()
        super().save_model(*args, **kwargs)

    def check_weights(self) -> None:
        """Raise `ModelError` where a weight is not finite; each process checks its own shards."""
        if (name := _broken(self.model.named_parameters())) is not None:
            raise self._diverged(f"{name} holds values that are not finite", self.state.global_step)

    def check_gradients(self) -> None:
        """Raise `ModelError` where a gradient is not finite. Scaled ones (float16) may be infinite: such steps are
        skipped."""
        if self.accelerator.scaler is None:
            gradients = (
                (name, weight.grad) for name, weight in self.model.named_parameters() if weight.grad is not None
            )
            if (name := _broken(gradients)) is not None:
                raise self._diverged(f"the gradient of {name} is not finite")

    def _diverged(self, what: str, step: int | None = None) -> ModelError:
        step = self.state.global_step + 1 if step is None else step
        kept = sorted(Path(self.args.output_dir).glob("checkpoint-*/trainer_state.json"))
        stays = "what was saved before stays" if kept else "nothing is saved"
        return ModelError(f"training diverged at step {step}: {what}; {stays}. A lower learning_rate may help.")


class _Gradients(TrainerCallback):  # type: ignore[misc]
    """Looks at the gradients before they change the weights."""

    def __init__(self, trainer: FiniteTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Called once per step, gradients summed over forwards and processes."""
        self._trainer.check_gradients()


def _broken(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of a tensor that is not finite, None where all are; synchronises with the device once."""
    names, finite = [], []
    for name, tensor in tensors:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if local.numel():
            low, high = torch.aminmax(local.detach())
            names.append(name)
            finite.append(low.isfinite() & high.isfinite())
    found = torch.stack(finite).tolist() if finite else []
    return next((name for name, fine in zip(names, found, strict=True) if not fine), None)
