"""The benchmark itself: commands first, then the model, then its plain peer, never two models in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from blockrank.bench.commands import time_command
from blockrank.bench.flops import useful_flops
from blockrank.bench.record import environment
from blockrank.bench.requests import random_request
from blockrank.bench.result import OURS, OUT_OF_MEMORY, BenchResult, Ceiling, Row, Timing
from blockrank.bench.settings import FP8, HF_FULL, INT8, BenchSettings, Shape, schedule_text
from blockrank.errors import is_out_of_memory
from blockrank.layout import PackedLayout, TokenisedRequest, forward_tokens, pack
from blockrank.types import InputError
from blockrank.types.progress import NamedProgress

if TYPE_CHECKING:
    import torch

    from blockrank.bench.subject import Subject
    from blockrank.model import RankModel
    from blockrank.scorers import Prompts, Scorer

_INSTRUCTION = 60


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark whose model was found and whose requests fit it. requests: one a shape, in order;
    prompts: what the scorer makes of each."""

    settings: BenchSettings
    subject: Subject
    devices: Sequence[torch.device]
    requests: dict[Shape, TokenisedRequest]
    prompts: dict[Shape, Prompts]
    flops: dict[Shape, int | None]
    progress: NamedProgress

    @property
    def peer_repeats(self) -> int:
        """Times each shape of a peer is measured."""
        return self.settings.peer_repeats or self.settings.repeats

    def layout(self, shape: Shape) -> PackedLayout:
        """The request of a shape, packed."""
        return pack([self.requests[shape]], self.subject.spec)

    def over_shapes(self, what: str, measure: Callable[[Shape], Timing]) -> dict[Shape, Timing]:
        """Measure each shape, and report progress."""
        timings: dict[Shape, Timing] = {}
        for done, shape in enumerate(self.requests):
            self.progress(what, done, len(self.requests))
            timings[shape] = measure(shape)
        self.progress(what, len(self.requests), len(self.requests))
        return timings


def bench(settings: BenchSettings, progress: NamedProgress | None = None) -> BenchResult:
    """Measure shapes and their peers in one run. Imports torch.

    Commands run before a model is loaded, so that they have the device to themselves and a broken one is reported
    early. Raises `InputError` where a request or a schedule does not fit the model, a device cannot be used, or a
    command fails; `ModelError` where the model cannot be loaded.
    """
    job = _prepare(settings, progress or (lambda *_: None))
    peers: dict[str, dict[Shape, Timing]] = {}
    for peer in settings.peers:
        if peer != HF_FULL:
            peers[peer] = job.over_shapes(peer, partial(time_command, peer, repeats=job.peer_repeats))
    ceiling, model, ours = _measure_ranking(job)
    if HF_FULL in settings.peers:
        peers[HF_FULL] = _measure_full(job)
    rows = [
        Row(
            shape,
            job.prompts[shape].length,
            job.flops[shape],
            ours[shape],
            {peer: peers[peer][shape] for peer in settings.peers},
        )
        for shape in job.requests
    ]
    return BenchResult(settings, environment([str(it) for it in job.devices], settings.command), model, ceiling, rows)


def rank(model: RankModel, scorer: Scorer, prompts: Prompts) -> list[int]:
    """The measured call: from the tokens of a request to the order of its documents, on the host."""
    [scored] = scorer.score(model, [prompts], max_tokens=forward_tokens(model.device.type))
    order: list[int] = scored.scores_C.argsort(descending=True).tolist()
    return order


def _prepare(settings: BenchSettings, progress: NamedProgress) -> Benchmark:
    """Find the model, make the requests and check that they fit: all that can fail before anything is measured."""
    from blockrank.bench.prompts import random_prompts
    from blockrank.bench.subject import arithmetic, find_subject, position_table, skeleton
    from blockrank.model import resolve_devices

    devices = resolve_devices(settings.device)
    subject = find_subject(settings.model, settings.scorer, **settings.spec_changes)
    scorer = subject.scorer
    if subject.random and scorer.needs(subject.spec).head:
        raise InputError(f"scorer {scorer.name!r} needs a head and a tokenizer, which {subject.name} lacks.")
    instruction = settings.instruction
    if instruction is None:
        instruction = _INSTRUCTION if subject.spec.prompt.instruction else 0
    shared: dict[str, Any] = {"instruction": instruction, "query": settings.query, "vocabulary": subject.vocabulary}
    shared |= {"ragged": settings.ragged, "seed": settings.seed}
    requests = {shape: random_request(shape, **shared) for shape in settings.shapes}
    bare = skeleton(subject)
    table = position_table(bare.module) if HF_FULL in settings.peers else None
    counted, flops = arithmetic(bare) if scorer.name == "attention" else None, {}
    prompts = {shape: random_prompts(request, scorer, subject.spec) for shape, request in requests.items()}
    for shape, request in requests.items():
        layout = pack([request], subject.spec)
        for part in prompts[shape].parts:
            bare.check_positions(pack([part], subject.spec))
        if table is not None and request.length > table:
            raise InputError(
                f"{HF_FULL}: {shape} make a prompt of {request.length} tokens and {subject.name} has {table} "
                "positions: take fewer or shorter documents."
            )
        flops[shape] = useful_flops(layout, counted) if counted is not None else None
    return Benchmark(settings, subject, devices, requests, prompts, flops, progress)


def _measure_ranking(job: Benchmark) -> tuple[Ceiling, dict[str, Any], dict[Shape, Timing]]:
    """The ceiling, what was loaded, and the times of the model, which nothing refers to afterwards."""
    import torch

    from blockrank.bench.subject import rank_model
    from blockrank.bench.timing import gemm_ceiling, release, time_call

    settings = job.settings
    release(job.devices)  # memory left by an earlier benchmark of this process
    model = rank_model(job.subject, job.devices, settings, job.subject.scorer.needs(job.subject.spec))
    job.subject.scorer.check(model)
    with torch.inference_mode():
        before = gemm_ceiling(job.devices, model.dtype, settings.dtype)
        release(job.devices)
        timings = job.over_shapes(
            OURS,
            lambda shape: time_call(
                lambda: rank(model, job.subject.scorer, job.prompts[shape]), settings.repeats, job.devices
            ),
        )
        # Twice, because a machine may be busy with something else at either end of the run.
        after = gemm_ceiling(job.devices, model.dtype, settings.dtype)
    facts = {
        "name": job.subject.name, "class": type(model.module).__name__, "random_weights": job.subject.random,
        "dtype": settings.dtype if settings.dtype in (FP8, INT8) else str(model.dtype).removeprefix("torch."),
        "layers": "library" if model.decoder is None else "fused", "backend": model.backend.name,
        "scorer": job.subject.scorer.identity(),
        "scoring_layer": model.spec.readout.layer, "all_layers": job.subject.config.num_hidden_layers,
        "prune": schedule_text(model.spec.exits.prune) or None, "prune_by": model.spec.exits.prune_by,
    }  # fmt: skip
    return max(before, after, key=lambda found: found.flops_per_second), facts, timings


def _measure_full(job: Benchmark) -> dict[Shape, Timing]:
    """Times of the plain peer: one prefill of the same tokens through every layer, every token reading all before.

    On the first device alone.
    """
    import torch

    from blockrank.bench.subject import plain_model
    from blockrank.bench.timing import release, time_call

    release(job.devices)
    device = job.devices[0]
    try:
        module = plain_model(job.subject, device, job.settings.dtype)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return dict.fromkeys(job.requests, Timing(error=OUT_OF_MEMORY))

    def measure(shape: Shape) -> Timing:
        ids_1T = torch.from_numpy(job.layout(shape).ids_T)[None].to(device)
        return time_call(lambda: module(input_ids=ids_1T, use_cache=False), job.peer_repeats, [device])

    with torch.inference_mode():
        return job.over_shapes(HF_FULL, measure)
