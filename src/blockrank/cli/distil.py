"""`blockrank distil`: fine-tune a bi-encoder on a teacher's scores."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from blockrank.cli.console import VerboseOption, logs, note


def distil_command(
    requests: Annotated[
        Path, typer.Argument(metavar="REQUESTS", help="Training requests with a teacher's scores; may be .gz.")
    ],
    encoder: Annotated[str, typer.Option("--encoder", metavar="MODEL", help="Bi-encoder of sentence-transformers.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="New folder for the trained bi-encoder.")
    ],
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the requests.")] = 1.0,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Number of steps, in place of --epochs.", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Requests per step.")] = 16,
    accumulate: Annotated[int, typer.Option("--accumulate", min=1, help="Forwards per step, to save memory.")] = 1,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", help="Highest learning rate, after the warm-up.")
    ] = 2e-5,
    warmup: Annotated[float, typer.Option("--warmup", help="Share of the steps over which it rises.")] = 0.1,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            help="Temperature of the bi-encoder's similarities.  [default: 0.05 for cosines, 1 for dot products]",
            show_default=False,
        ),
    ] = None,
    teacher_temperature: Annotated[
        float, typer.Option("--teacher-temperature", help="Temperature of the teacher's scores; above 1 flattens them.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of order and dropout.")] = 0,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda; chosen if left out.", show_default=False)
    ] = None,
    bf16: Annotated[
        bool | None,
        typer.Option("--bf16/--no-bf16", help="Compute in bfloat16; on a GPU if left out.", show_default=False),
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Fine-tune a bi-encoder on the scores that a teacher gave to the documents of requests."""
    with logs(verbose, logging.INFO):
        from blockrank.train.distil import Distillation, distil

        settings = Distillation(
            epochs, steps, batch_size, accumulate, learning_rate, warmup, temperature, teacher_temperature, bf16, seed
        )
        found = distil(requests, encoder, output, settings, device=device)
    if found.single:
        note(f"requests left out, they have one document: {found.single}.")
    note(
        f"{output}: {found.requests} requests, {found.documents} documents, {found.steps} steps; "
        f"divergence {found.first_loss:.4f} at first, {found.last_loss:.4f} at last."
    )
