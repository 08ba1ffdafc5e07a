"""How a training run shows its progress: log lines, a bar on standard error, nothing on standard output."""

from __future__ import annotations

import logging
from typing import Any

from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils import logging as hf_logging

_log = logging.getLogger(__name__)


class LogLines(TrainerCallback):  # type: ignore[misc]
    """Each log entry of the trainer as one line of the package's own log."""

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write the entry."""
        if state.is_world_process_zero and logs:
            values = (
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in logs.items()
            )
            _log.info("step %d: %s", state.global_step, "  ".join(values))


class Bar(ProgressCallback):  # type: ignore[misc]
    """The library's bar, without the entries that it writes to standard output."""

    def on_log(self, *_: Any, **__: Any) -> None:
        """Leave entries to `LogLines`."""


def use_log_lines(trainer: Trainer) -> None:
    """Replace the library's own reporting of a trainer."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if trainer.args.disable_tqdm:
        hf_logging.disable_progress_bar()  # the library also draws a bar for every checkpoint it writes
    else:
        trainer.add_callback(Bar())
    trainer.add_callback(LogLines())
